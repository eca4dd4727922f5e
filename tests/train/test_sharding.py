"""Tests of sharding: two processes with half of each tensor give the results of one, and any number of processes can resume.

Run as a script, this file starts several processes. On a CPU, only tests shard.
"""

from __future__ import annotations

import copy
import os
import resource
import shutil
import socket
import subprocess
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked import PYTHONPATH
from test_load_run import BASE, make
from test_loop import CONFIG, SAMPLES, ids, lines, loss_of, micro_batches, table
from torch import nn

from mmm import load
from mmm.config.serialize import save
from mmm.core.rng import sample_keys
from mmm.train.checkpoint import writer as checkpoint
from mmm.train.config import identity
from mmm.train.distributed.fsdp import blocks_of, check_sharding, gather, sharding_asked
from mmm.train.distributed.setup import start
from mmm.train.loop import fit
from mmm.train.optimizer import make_optimizer
from mmm.train.run.folder import RunFolder
from mmm.train.run.lock import RunLock
from mmm.train.schedule import make_plan
from mmm.train.state import Training

SETTINGS = replace(CONFIG, steps=6, save_every=2, micro_batch_size=2, log_every=1, max_skipped=3)
BAD = 2  # the step, counted from 0, that is skipped
HALF, END = 3, 6


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)
        self.seen: set[tuple[torch.dtype, ...]] = set()

    def forward(self, x):
        product = self.linear(self.norm(x))
        self.seen.add((x.dtype, self.linear.weight.dtype, product.dtype))
        return x + torch.tanh(product)


class Net(nn.Module):
    """Difficult cases for sharding: an odd number of rows, one row, a buffer, a frozen weight, a teacher with blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 5), nn.Linear(5, 3)
        self.token = nn.Parameter(torch.zeros(1, 1, 5))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.blocks = nn.ModuleList(Block(5) for _ in range(2))
        self.teacher = copy.deepcopy(nn.ModuleDict({"blocks": self.blocks})).requires_grad_(False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scale", torch.full((3,), 0.5), persistent=False)

    def forward(self, x):
        self.calls += 1
        hidden = self.embed(x) + self.token[0]
        for own, slow in zip(self.blocks, self.teacher["blocks"], strict=True):
            hidden = own(hidden) + 0.1 * slow(hidden)
        return self.head(hidden) * self.frozen * self.scale

    @torch.no_grad()
    def update(self) -> None:
        for slow, fast in zip(self.teacher["blocks"].parameters(), self.blocks.parameters(), strict=True):
            slow.lerp_(fast, 0.1)


def bad_loss(model, batch, step):
    """Makes the loss of one micro-batch of one process non-finite."""
    loss = loss_of(model, batch, step)
    return loss / 0 if step == BAD and torch.equal(batch[0].float(), table()[ids(BAD)[-2]]) else loss


def train(folder, config=SETTINGS, *, sharded=False, until=None, resume=False, between=None, loss=bad_loss, dtype=torch.float64):
    accelerator = start(config)
    plan = make_plan(config, samples=SAMPLES, processes=accelerator.num_processes)
    torch.manual_seed(0)
    model = Net().to(dtype)
    training = Training.prepare(
        accelerator,
        model,
        make_optimizer(model, config),
        identity=identity({"train": vars(config)}),
        ema=config.ema is not None,
        sharded=sharded,
    )
    folder.mkdir(exist_ok=True)
    with RunFolder(folder, RunLock(folder) if accelerator.is_main_process else None) as run:
        if resume:
            training.restore(run.checkpoints)
            run.cut_metrics(training.step)
        batches = micro_batches(table(dtype), plan, training.step, accelerator.process_index)
        for update in fit(training, batches, loss, config=config, plan=plan, seed=3, name_samples=ids):
            training.unwrapped.update()
            run.note_skipped(update.skipped)
            if update.metrics:
                run.log(update.step, update.metrics)
            if update.save:
                training.save(run.checkpoints, config.keep_last, needed=update.last)
            if between:
                between(training)
            if update.step == until:
                break
        training.wait_for_checkpoint()
    return training


def content(folder, step=END):
    """Returns all tensors of a checkpoint, gathered, by file and name."""
    tensors, _ = checkpoint.read(folder / "checkpoints" / f"step_{step:08d}")
    return {f"{file}/{name}": value for file, values in tensors.items() for name, value in values.items()}


def assert_close(a, b):
    """Compares to rounding: the order of sums depends on the processes (1e-14 was seen). Leaves out `calls`, which differ."""
    assert a.keys() == b.keys()
    for name in (name for name, value in a.items() if value.is_floating_point()):
        torch.testing.assert_close(b[name], a[name], rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


# --- on several processes ---------------------------------------------------------------------------------------------------


def one_of_several(folder):
    """Does the work of each process. The tests check the results."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world == 4:
        train(folder / "begun", sharded=True, resume=True)
        return
    training = train(folder / "two", sharded=True)
    train(folder / "two_lion", replace(SETTINGS, optimizer="lion"), sharded=True)
    assert all(type(value).__name__ == "DTensor" for value in training.unwrapped.parameters())
    assert training.unwrapped.blocks[0].linear.weight.to_local().shape == ((3, 2)[rank], 5)
    train(folder / "begun", sharded=True, until=HALF)
    if rank == 0:
        shutil.copytree(folder / "begun", folder / "stopped")
    training.accelerator.wait_for_everyone()
    train(folder / "stopped", sharded=True, resume=True)
    train(folder / "whole", sharded=True, resume=True)  # one process began this run, unsharded
    evaluate(training, rank)
    full_disk(folder, rank)
    masked_model(folder, rank)
    in_bf16(folder)
    print("done", flush=True)


def evaluate(training, rank):
    """Checks that a gathered copy has the weights, and that one process can call it without the other."""
    with training.gathered() as plain:
        if rank == 0:
            plain(table(torch.float64))
    live = {**training._tensors()["model"], "scale": torch.full((3,), 0.5)}
    for name, value in (*plain.named_parameters(), *plain.named_buffers()):
        assert torch.equal(value, gather(live[name]) + (name == "calls" and rank == 0)), name
    with training.ema.applied(training.unwrapped), training.gathered() as plain:
        assert torch.equal(plain.embed.weight, gather(training.ema.averages["embed.weight"]))


def full_disk(folder, rank):
    """Makes the second process's disk full at step 4, and checks that both processes skip this checkpoint."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(training):
        if training.step == 4:
            training.wait_for_checkpoint()
            assert names(folder / "full") == ["step_00000002"]
        if rank == 1 and training.step in (3, 4):
            resource.setrlimit(resource.RLIMIT_FSIZE, (600 if training.step == 3 else soft, hard))

    train(folder / "full", sharded=True, between=limit)


def masked_model(folder, rank):
    """Trains a real model for one update, and saves a checkpoint with the expected weights and features."""
    config = replace(SETTINGS, steps=1, clip_norm=None, micro_batch_size=None)
    model = make(BASE, seed=3)
    accelerator, optimizer = start(config), make_optimizer(model, config)
    training = Training.prepare(accelerator, model, optimizer, identity={}, ema=True, sharded=True)
    assert len(list(blocks_of(model))) == 3
    x = torch.randn(8, 2, 8, 12, generator=torch.Generator().manual_seed(1))
    mask = model.masker(sample_keys(0, 0, torch.arange(8)), (2, 3))
    mine = slice(4 * rank, 4 * rank + 4)

    def loss_of(model, batch, step):
        own = type(mask)(visible=mask.visible[mine], predict=mask.predict[mine])
        return model(batch, own).loss

    plan = make_plan(config, samples=8, processes=2)
    for _ in fit(training, iter([x[mine]]), loss_of, config=config, plan=plan, seed=0, name_samples=ids):
        training.save(folder / "masked" / "checkpoints", 1)
    expected = {name: gather(value) for name, value in training.unwrapped.state_dict().items()}
    with training.gathered() as plain:
        features = plain.encode(x).tokens
    if rank == 0:
        torch.save({"weights": expected, "features": features}, folder / "masked" / "expected.pt")
        save(BASE, folder / "masked" / "config.yaml")


def in_bf16(folder):
    """Checks that products are bf16, and that the inputs of blocks, the weights and the optimizer's state are fp32."""
    config = replace(SETTINGS, precision="bf16", steps=2, warmup_steps=0)
    training = train(folder / "bf16", config, sharded=True, dtype=torch.float32)
    assert training.unwrapped.blocks[0].seen == {(torch.float32, torch.float32, torch.bfloat16)}
    assert all(value.dtype == torch.float32 for value in training._tensors()["optimizer"].values())
    assert all(value.dtype == torch.float32 for value in training.unwrapped.parameters())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns the folder of runs on one process, and on two processes with sharding."""
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "one")
    train(folder / "one_lion", replace(SETTINGS, optimizer="lion"))
    train(folder / "whole", until=HALF)
    (folder / "masked").mkdir()
    assert several(folder, 2).count("done") == 2
    return folder


def several(folder, count, script=__file__):
    """Runs a script on `count` processes and returns its output. Fails at a timeout if one waits for an ended one."""
    command = [sys.executable, script, str(folder), str(count)]
    path = {"PYTHONPATH": PYTHONPATH}
    done = subprocess.run(command, env=os.environ | path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_two_that_shard_do_what_one_does(runs):
    """Losses, norms, weights, optimizer and averages are equal with accumulation, clipping, a teacher and a skipped update."""
    one, two = content(runs / "one"), content(runs / "two")
    assert_close(one, two)
    for line, other in zip(lines(runs / "one"), lines(runs / "two"), strict=True):
        assert other.keys() == line.keys()
        for name, value in line.items():  # the loss of a skipped update is null
            assert other[name] == (None if value is None else pytest.approx(value, rel=1e-9))
    assert lines(runs / "two")[BAD]["skipped"] == 1
    assert (runs / "two" / "skipped.jsonl").read_text() == (runs / "one" / "skipped.jsonl").read_text()


def test_lion_shards_too(runs):
    assert_close(content(runs / "one_lion"), content(runs / "two_lion"))


def test_each_process_saves_its_part(runs):
    saved = runs / "two" / "checkpoints" / "step_00000006"
    parts = [f"{name}-0000{part}-of-00002.safetensors" for name in ("ema", "model", "optimizer") for part in (1, 2)]
    assert sorted(path.name for path in saved.iterdir()) == sorted([*parts, "manifest.json", "state.json"])
    _, state = checkpoint.read(saved)
    assert state["shards"]["model"]["embed.weight"] == [3, 2]
    assert state["shards"]["model"]["token"] == [1, 0]
    assert "calls" not in state["shards"]["model"]


def test_a_resume_by_as_many_is_bit_for_bit(runs):
    one, other = content(runs / "two"), content(runs / "stopped")
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert lines(runs / "two") == lines(runs / "stopped")


def test_sharded_goes_on_whole_and_whole_goes_on_sharded(runs, caplog):
    """A resume on another number of processes works too, and logs the difference."""
    train(runs / "begun", resume=True)
    assert "processes was 2, is 1; sharded was True, is False" in caplog.text
    for name in ("begun", "whole"):
        assert_close(content(runs / "one"), content(runs / name))


def test_a_full_disk_of_one_process_costs_the_write_and_not_the_run(runs):
    assert names(runs / "full") == ["step_00000002", "step_00000006"]
    full, two = content(runs / "full"), content(runs / "two")
    assert [name for name in two if not torch.equal(full[name], two[name])] == []


def test_damage_to_any_file_is_found(runs, tmp_path):
    saved = runs / "two" / "checkpoints" / "step_00000006"
    for path in sorted(saved.iterdir()):
        whole_content = path.read_bytes()
        for harm in (b"", whole_content[:-2], whole_content[:200] + b"\0" + whole_content[201:], None):
            path.unlink() if harm is None else path.write_bytes(harm)
            if harm is None or harm != whole_content:
                assert path.name in checkpoint.damage(saved), path.name
            path.write_bytes(whole_content)
    parts = sorted(saved.glob("model-*"))
    contents = [part.read_bytes() for part in parts]
    for part, other in zip(parts, reversed(contents), strict=True):  # another process's part under this name
        part.write_bytes(other)
    assert "model-00001-of-00002" in checkpoint.damage(saved)
    for part, own in zip(parts, contents, strict=True):
        part.write_bytes(own)
    assert checkpoint.damage(saved) is None


def test_load_and_export_make_one_model_of_the_parts(runs, tmp_path):
    """Export writes one file, and loading one shard loads all shards."""
    expected = torch.load(runs / "masked" / "expected.pt", weights_only=True)
    model = load(runs / "masked")
    assert all(torch.equal(value, expected["weights"][name]) for name, value in model.state_dict().items())
    x = torch.randn(8, 2, 8, 12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.encode(x).tokens, expected["features"])
    saved = runs / "masked" / "checkpoints" / "step_00000001"
    average = load(saved / "ema-00002-of-00002.safetensors")
    start = make(BASE, seed=3).state_dict()["encoder.norm.weight"]
    live = expected["weights"]["encoder.norm.weight"]
    assert torch.allclose(average.encoder.norm.weight, start.lerp(live, 0.1))
    model.save_pretrained(tmp_path / "export")
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.slow
def test_four_go_on_with_what_two_began(runs):
    checkpoints = runs / "begun" / "checkpoints"
    for path in checkpoints.glob("step_*"):
        if checkpoint.step_of(path) > HALF:
            path.rename(runs / path.name)
    several(runs, 4)
    assert_close(content(runs / "one"), content(runs / "begun"))


# --- what is refused --------------------------------------------------------------------------------------------------------

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


class GPUs:
    device, num_processes = torch.device("cuda"), 2


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"FSDP_VERSION": "1"}, r"asks for FSDP 1; mmm uses FSDP 2; set --fsdp_version 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "sets FSDP_OFFLOAD_PARAMS, which mmm does not follow"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "sets FSDP_ACTIVATION_CHECKPOINTING"),
    ],
)
def test_another_sharding_than_ours_is_refused(environment, said):
    with pytest.raises(ValueError, match=said):
        check_sharding(FSDP2 | environment, GPUs, precision="bf16", strict=False)


def test_what_sharding_cannot_do_is_refused():
    check_sharding(FSDP2, GPUs, precision="bf16", strict=False)
    check_sharding({}, GPUs, precision="fp16", strict=True)
    with pytest.raises(ValueError, match=r"train\.precision fp16 is not computed under FSDP; use bf16"):
        check_sharding(FSDP2, GPUs, precision="fp16", strict=False)
    with pytest.raises(ValueError, match=r"train\.strict does not work with FSDP"):
        check_sharding(FSDP2, GPUs, precision="fp32", strict=True)
    with pytest.raises(ValueError, match="FSDP with one process"):
        check_sharding(FSDP2, type("One", (GPUs,), {"num_processes": 1}), precision="fp32", strict=False)


def test_on_a_cpu_it_is_refused_and_not_replaced(monkeypatch):
    """Accelerate would train with DDP without a message."""
    for name, value in FSDP2.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"asks for FSDP, and on a CPU nothing is sharded; run `accelerate config` again"):
        start(SETTINGS)


def test_a_task_that_cannot_shard_says_so(monkeypatch):
    accelerator, model = start(SETTINGS), Net()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert sharding_asked(os.environ)
    with pytest.raises(ValueError, match="asks for FSDP, which only pretraining supports"):
        Training.prepare(accelerator, model, make_optimizer(model, SETTINGS), identity={})


def test_a_model_without_blocks_is_not_sharded():
    with pytest.raises(ValueError, match="FSDP shards transformer blocks"):
        blocks_of(nn.Linear(2, 2))


def fork(folder, count, work):
    """Forks into `count` processes after the imports, which all call `work`. No threads have started, so the fork loses none."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    size = str(count)
    os.environ |= {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    rank, others = 0, []
    for other in range(1, count):
        child = os.fork()
        if child == 0:
            rank, others = other, []
            break
        others.append(child)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    try:
        work(folder)
    except BaseException:
        traceback.print_exc()
        leave(1)
    leave(max((os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) for other in others), default=0))


def leave(code):
    """Exits at once: destroying a process group may wait for a process that waits for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    fork(Path(sys.argv[1]), int(sys.argv[2]), one_of_several)
