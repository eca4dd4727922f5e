"""Tests of the training loop: exact resume, exact accumulation, two processes, and the stop at a loss that is not finite.

Run as a script, this file starts two processes (`test_two_processes_equal_one`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic

import pytest
import torch
from forked import PYTHONPATH
from torch import nn

from mmm.train import progress as module
from mmm.train.config import TrainConfig, identity
from mmm.train.distributed.processes import on_main
from mmm.train.distributed.setup import start
from mmm.train.loop import fit, seed_noise
from mmm.train.metrics import NonFiniteError
from mmm.train.optimizer import make_optimizer
from mmm.train.progress import Progress
from mmm.train.run.folder import RunFolder
from mmm.train.run.lock import RunLock
from mmm.train.schedule import make_plan
from mmm.train.state import Training
from mmm.train.watchdog.watchdog import Watchdog

SAMPLES = 20  # an epoch is not a multiple of the batch
CONFIG = TrainConfig(
    batch_size=8,
    learning_rate=0.5,
    steps=12,
    warmup_steps=3,
    log_every=5,
    save_every=3,
    clip_norm=0.5,
    ema=0.9,
    precision="fp32",
    threads=1,
)


class Net(nn.Module):
    """Has everything that makes a resume difficult: dropout, running statistics and a frozen parameter."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 3))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x):
        self.calls += 1
        return self.layers(x) * self.frozen


class Plain(Net):
    """Does not count its calls."""

    def forward(self, x):
        return self.layers(x) * self.frozen


def table(dtype=torch.float32):
    return torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def ids(step, batch_size=CONFIG.batch_size):
    return [(7 * (step * batch_size + i)) % SAMPLES for i in range(batch_size)]


def micro_batches(data, plan, first, rank):
    for step in range(first, plan.steps):
        share = torch.tensor(ids(step, plan.batch_size)).view(plan.processes, plan.accumulation, -1)[rank]
        yield from (data[part] for part in share)


def loss_of(model, batch, step):
    return (model(batch) - batch[:, :3]).square().mean()


def build(accelerator, config, dropout=0.3, dtype=torch.float32, net=Net, **other):
    torch.manual_seed(0)
    model = net(dropout).to(dtype)
    choices = identity({"train": vars(config), **other})
    return Training.prepare(accelerator, model, make_optimizer(model, config), identity=choices, ema=config.ema is not None)


def train(folder, config=CONFIG, *, until=None, resume=False, allow=(), data=None, loss=loss_of, between=None, **choices):
    """Trains as a task does, in a loop around `fit`. `until`: the step after which the training stops, as if killed."""
    data = table(choices.get("dtype", torch.float32)) if data is None else data
    accelerator = start(config)
    plan = make_plan(config, samples=SAMPLES, processes=accelerator.num_processes)
    training = build(accelerator, config, **choices)
    folder.mkdir(exist_ok=True)
    run = RunFolder(folder, RunLock(folder) if accelerator.is_main_process else None)
    with run, Watchdog(training, config.timeout):
        if resume:
            training.restore(run.checkpoints, allow)
            run.cut_metrics(training.step)
        batches = micro_batches(data, plan, training.step, accelerator.process_index)
        name = partial(ids, batch_size=plan.batch_size)
        updates = fit(training, batches, loss, config=config, plan=plan, seed=3, name_samples=name)
        progress = Progress(plan, training.step, accelerator.is_main_process)
        for update in updates:
            progress.bar.update(plan.batch_size)
            if update.metrics or monotonic() - progress.shown > module.SILENCE:
                progress.show(update)
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
        progress.close()
    return training


def state(training):
    """Returns the weights, buffers, optimizer state and averages of a run by name."""
    optimizer = {
        f"{i}/{key}": value for i, entry in training.optimizer.state_dict()["state"].items() for key, value in entry.items()
    }
    averages = {f"ema/{name}": value for name, value in training.ema.averages.items()} if training.ema else {}
    return {**training.unwrapped.state_dict(), **optimizer, **averages}


def lines(folder):
    """Returns the metrics without measurements of time."""
    parsed = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "clock"} for line in parsed]


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_metrics_of_a_run(tmp_path):
    train(tmp_path)
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in written] == [3, 5, 6, 9, 10, 12]
    assert written[-1].keys() == {"step", "loss", "learning_rate", "epoch", "grad_norm", "clock"}
    assert written[-1]["epoch"] == 12 * 8 / SAMPLES
    assert written[-1]["loss"] < written[0]["loss"]
    assert written[-1]["clock"]["samples_per_second"] > 0


def test_progress_on_a_terminal_and_in_a_file(tmp_path, capsys, monkeypatch, caplog):
    with caplog.at_level("INFO"):
        train(tmp_path / "a")
    assert "step 5/12  loss 1." in caplog.text
    assert "samples/s" in caplog.text
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train(tmp_path / "b")
    bar = capsys.readouterr().err
    assert "96.0/96.0" in bar
    assert "samples/s" in bar
    assert "loss=" in bar


@pytest.mark.parametrize("until", [6, 8, 11])
def test_resume_is_bit_for_bit(tmp_path, until):
    """N steps equal N/2 steps, a stop, a resume and N/2 steps, also if lines were written after the last checkpoint."""
    whole = train(tmp_path / "whole")
    train(tmp_path / "parts", until=until)
    parts = train(tmp_path / "parts", resume=True)
    assert_same(state(whole), state(parts))
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    for name in ("model", "optimizer", "ema"):
        a, b = (tmp_path / run / f"checkpoints/step_00000012/{name}.safetensors" for run in ("whole", "parts"))
        assert a.read_bytes() == b.read_bytes()


def test_resume_from_the_one_before_where_the_newest_is_damaged(tmp_path):
    whole = train(tmp_path / "whole")
    train(tmp_path / "parts", until=10)
    os.truncate(tmp_path / "parts/checkpoints/step_00000009/optimizer.safetensors", 100)
    assert_same(state(whole), state(train(tmp_path / "parts", resume=True)))
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_noise_is_there_and_differs_between_steps(tmp_path):
    """The tests above rely on dropout, so this test checks that it is active."""
    assert not torch.equal(
        train(tmp_path / "a").unwrapped.layers[0].weight, train(tmp_path / "b", dropout=0.0).unwrapped.layers[0].weight
    )
    draws = []
    for step, part in ((0, 0), (1, 0), (0, 1), (0, 0)):
        seed_noise(torch.device("cpu"), 3, step, part)
        draws.append(torch.rand(2).tolist())
    assert draws[0] == draws[-1]
    assert len({tuple(draw) for draw in draws}) == 3


def test_what_the_caller_does_between_updates_changes_nothing(tmp_path):
    """Between updates, a task evaluates, which draws random numbers, and uses the average of the weights."""

    def evaluate(training):
        training.unwrapped.eval()
        torch.rand(3)
        with training.ema.applied(training.unwrapped):
            pass

    assert_same(state(train(tmp_path / "a")), state(train(tmp_path / "b", between=evaluate)))


def test_a_run_with_other_choices_is_not_resumed_unless_they_are_named(tmp_path, caplog):
    train(tmp_path, until=3)
    other = replace(CONFIG, learning_rate=0.1, weight_decay=0.2, log_every=7)
    said = r"train\.learning_rate was 0\.5, is 0\.1; train\.weight_decay was 0\.05, is 0\.2$"
    with pytest.raises(ValueError, match=said):
        train(tmp_path, other, resume=True)
    with pytest.raises(ValueError, match=r"accepts a difference: train\.weight_decay was 0\.05, is 0\.2$"):
        train(tmp_path, other, resume=True, allow=("train.learning_rate",))
    with pytest.raises(
        ValueError, match=r"--allow train\.learning is not an option of this run; did you mean 'train\.learning_rate'"
    ):
        train(tmp_path, other, resume=True, allow=("train.learning",))
    allow = ("train.learning_rate", "train.weight_decay", "seed")
    assert train(tmp_path, other, resume=True, allow=allow, seed=1, until=4).step == 4
    assert "continues with other options: seed was not set, is 1; train.learning_rate was 0.5, is 0.1" in caplog.text


def test_allowed_changes_of_what_a_checkpoint_holds(tmp_path):
    """A new average starts from the restored weights, and fp16 from a new scaler; another optimizer is refused."""
    train(tmp_path, replace(CONFIG, ema=None), until=3)
    accelerator = start(CONFIG)
    training = build(accelerator, CONFIG)
    accelerator.scaler = scaler = torch.amp.GradScaler("cpu")
    fresh = scaler.state_dict()
    assert len(training.restore(tmp_path / "checkpoints", ["train.ema"])) == 1
    assert_same(training.ema.averages, training.unwrapped.state_dict())
    assert scaler.state_dict() == fresh
    with pytest.raises(ValueError, match=r"^train\.optimizer was adamw, is sgd; the checkpoint has no state .* start a new run$"):
        train(tmp_path, replace(CONFIG, ema=None, optimizer="sgd"), resume=True, allow=("train.optimizer",))


def test_another_set_up_is_said(tmp_path, caplog, monkeypatch):
    """If versions of code or libraries, device, processes or threads differ, the run continues and logs the differences."""
    from mmm.train.run import environment

    train(tmp_path, until=3)
    train(tmp_path, resume=True, until=4)
    assert "environment" not in caplog.text
    monkeypatch.setattr(environment, "_commit", lambda folder: "1234567+changes")
    monkeypatch.setattr(environment, "_version", lambda package: "9.9")
    torch.set_num_threads(2)
    train(tmp_path, replace(CONFIG, threads=2), resume=True, until=5)
    (said,) = [record.message for record in caplog.records if "environment" in record.message]
    assert all(word in said for word in ("commit was", "is 1234567+changes", "versions.timm was", "threads was 1, is 2"))


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_accumulation_equals_a_larger_batch(tmp_path, micro):
    config = replace(CONFIG, clip_norm=0.1)
    whole = train(tmp_path / "whole", config, dropout=0.0, dtype=torch.float64)
    parts = train(tmp_path / "parts", replace(config, micro_batch_size=micro), dropout=0.0, dtype=torch.float64)
    for name, value in state(whole).items():
        if value.is_floating_point():
            torch.testing.assert_close(state(parts)[name], value, rtol=1e-12, atol=1e-12)
    assert lines(tmp_path / "parts")[0]["loss"] == pytest.approx(lines(tmp_path / "whole")[0]["loss"], rel=1e-12)


def test_an_accumulation_in_the_launch_configuration_changes_nothing(tmp_path, monkeypatch):
    train(tmp_path / "a")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    train(tmp_path / "b")
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


@pytest.mark.parametrize("micro", [8, 2])
def test_a_loss_that_is_not_finite_stops_with_step_and_samples(tmp_path, micro):
    data = table()
    bad = ids(7)[4]
    data[bad] = float("inf")
    first = min(step for step in range(12) if bad in ids(step))
    position = ids(first).index(bad)
    concerned = ids(first)[position // micro * micro : position // micro * micro + micro]
    with pytest.raises(
        NonFiniteError, match=rf"loss of step {first} is not finite; its samples: {', '.join(map(str, concerned))}\."
    ) as e:
        train(tmp_path, replace(CONFIG, micro_batch_size=micro, save_every=1000, max_skipped=0), data=data)
    assert (e.value.step, e.value.samples) == (first, concerned)
    assert not (tmp_path / "checkpoints").exists()


class Bend(torch.autograd.Function):
    """Returns a finite value with a gradient that is not finite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


def loss_with_bad_gradient(model, batch, step):
    loss = loss_of(model, batch, step)
    return Bend.apply(loss) if step == 2 else loss


def test_a_gradient_that_is_not_finite_stops_too(tmp_path):
    with pytest.raises(NonFiniteError, match="gradient of step 2"):
        train(tmp_path, replace(CONFIG, max_skipped=0), loss=loss_with_bad_gradient)


def test_poisoned_weights_are_never_saved(tmp_path):
    """A weight becomes NaN between two updates, before a checkpoint is due."""

    def poison(training):
        if training.step == 2:
            training.unwrapped.layers[0].weight.data[0, 0] = float("nan")

    with pytest.raises(ValueError, match=r"after step 3 weights are not finite \(layers\.0\.weight"):
        train(tmp_path, between=poison)
    assert not (tmp_path / "checkpoints").exists()


def test_bf16_trains_in_a_process_that_has_trained_in_fp32(tmp_path):
    from mmm.train.distributed.setup import precision_of

    for run, precision in enumerate(("fp32", "bf16", "fp32")):
        training = train(tmp_path / f"{run}", replace(CONFIG, precision=precision))
        assert precision_of(training.accelerator) == precision
        assert all(value.dtype == torch.float32 for value in training.unwrapped.parameters())


def test_two_processes_equal_one(tmp_path):
    """Samples are the same and losses agree to rounding, also with accumulation, and one process resumes a run of two."""
    script = [sys.executable, __file__, str(tmp_path)]
    both = subprocess.Popen(
        script,
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = both.communicate(timeout=150)  # the timeout fails the test if a process waits for one that has ended
    finally:
        with suppress(ProcessLookupError):
            os.killpg(both.pid, signal.SIGKILL)
    assert both.returncode == 0, output

    config = replace(CONFIG, log_every=1)
    one = train(tmp_path / "one", config, dropout=0.0)
    expected = [line["loss"] for line in lines(tmp_path / "one")]
    for name in ("two", "accumulated"):
        losses = [line["loss"] for line in lines(tmp_path / name)]
        assert losses[0] == pytest.approx(expected[0], rel=1e-6)
        assert losses == pytest.approx(expected, rel=1e-4)
    resumed = train(tmp_path / "begun", config, resume=True, dropout=0.0)
    assert resumed.step == 12
    for name, value in one.unwrapped.layers.state_dict().items():
        torch.testing.assert_close(resumed.unwrapped.layers.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    # both processes report the samples of a non-finite loss that one of them computed
    assert output.count(f"step 1 samples {ids(1)[6:8]}") == 2


def one_of_two(folder):
    config = replace(CONFIG, log_every=1)
    two = train(folder / "two", config, dropout=0.0)
    train(folder / "stopped", config, until=6, dropout=0.0)
    assert_same(state(two), state(train(folder / "stopped", config, resume=True, dropout=0.0)))
    train(folder / "accumulated", replace(config, micro_batch_size=2), dropout=0.0)
    train(folder / "begun", config, until=6, dropout=0.0)
    with pytest.raises(OSError, match="No space left"):  # raised on both, or the other would wait
        on_main(two.accelerator, fill_the_disk)
    try:
        config = replace(CONFIG, micro_batch_size=2, log_every=4, save_every=4, max_skipped=0)
        train(folder / "bad", config, loss=bad_on_the_second)
    except NonFiniteError as error:
        print(f"step {error.step} samples {error.samples}", flush=True)


def fill_the_disk():
    raise OSError(28, "No space left on device")


def bad_on_the_second(model, batch, step):
    loss = loss_of(model, batch, step)
    return loss / 0 if step == 1 and torch.equal(batch, table()[ids(1)[6:8]]) else loss


def fork_two(folder, work):
    """Forks into two processes after the imports, which both call `work`. No threads have started yet, so the fork loses none."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    other = os.fork()
    os.environ |= {"RANK": str(int(other == 0)), "LOCAL_RANK": str(int(other == 0))}
    work(folder)
    if other:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))


if __name__ == "__main__":
    fork_two(Path(sys.argv[1]), one_of_two)
