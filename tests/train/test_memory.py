"""Keeping fewer tensors for the backward pass changes no gradient, and a lack of memory gives an error of one line with advice."""

from __future__ import annotations

import copy
import errno
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import load_recipe
from forked import ends, fork_ranks, watch
from tar_files import photographs
from torch import nn

from mmm.config.cli import main
from mmm.core.rng import sample_keys
from mmm.decoders import CrossAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.train.config import TrainConfig
from mmm.train.memory.usage import (
    SavedTensors,
    advise_on_memory,
    checkpoint_blocks,
    free_memory,
    is_lack_of_memory,
    memory_advice,
)
from mmm.train.schedule import make_plan

PLAN = make_plan(TrainConfig(batch_size=96, micro_batch_size=48, learning_rate=0.1, steps=1), samples=96, processes=1)
ENCODER = VisionTransformer.Config(width=24, depth=4, heads=2, drop_path=0.6)


def gradients(model, x, mask):
    torch.manual_seed(3)
    model.zero_grad()
    with SavedTensors(model) as kept:
        loss = model(x, mask=mask).loss
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}, kept.bytes


@pytest.mark.parametrize("decoder", [{}, {"decoder": CrossAttentionDecoder.Config(width=16, depth=2, heads=2)}])
def test_gradients_are_the_same_bits_and_less_is_kept(build, decoder):
    model = build(size=(16, 32), encoder=ENCODER, **decoder).train()
    x = torch.randn(8, 3, 16, 32)
    mask = model.masker(sample_keys(0, 0, torch.arange(8)), model.tokenizer.grid(x), step=0, steps=1)
    expected, before = gradients(model, x, mask)
    names = list(model.state_dict())
    assert checkpoint_blocks(model) == 6
    found, after = gradients(model, x, mask)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert after < 0.4 * before
    assert list(model.state_dict()) == names


def test_what_a_block_keeps_is_what_its_formula_says(build):
    """A block keeps per token the inputs and outputs of both norms, q, k, v, attention's output and the MLP's two hidden layers."""
    width, heads, x = 24, 2, torch.randn(8, 3, 16, 32)
    kept = []
    for depth in (2, 5):
        model = build(size=(16, 32), encoder=VisionTransformer.Config(width=width, depth=depth, heads=heads))
        mask = model.draw_masks(x)
        kept.append(gradients(model, x, mask)[1])
    each = (2 + 3 + 1 + 2 + 4 + 4) * width + 2 * 2 + heads  # also mean and deviation of each norm, and a normaliser of each head
    tokens = len(x) * (1 + mask.visible.shape[1])
    assert kept[1] - kept[0] == 3 * 4 * tokens * each


def test_a_copy_computes_with_its_own_weights(build):
    model = build(encoder=ENCODER).eval()
    checkpoint_blocks(model)
    x, keys = torch.randn(2, 3, 12, 16), sample_keys(0, 0, torch.arange(2))
    mask = model.masker(keys, model.tokenizer.grid(x), step=0, steps=1)
    before = model(x, mask=mask).loss
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.5)
        assert torch.equal(model(x, mask=mask).loss, before)
    assert not torch.equal(other(x, mask=mask).loss, before)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match=r"train\.checkpoint_blocks"):
        checkpoint_blocks(nn.Linear(2, 2))


def test_what_is_kept_is_counted_once_and_without_weights():
    layer, x = nn.Linear(100, 100, bias=False), torch.randn(50, 100)
    with SavedTensors(layer) as kept:
        y = layer(x).exp()  # exp keeps its result
        _ = y * y
    assert kept.bytes == 2 * 50 * 100 * 4


def test_free_memory_is_that_of_a_process(monkeypatch):
    alone = free_memory()
    assert 0 < alone < 1 << 50
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory() < alone / 2


def full_cpu():
    torch.empty(1 << 50)


def full_numpy():
    np.empty(1 << 50)


def full_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def full_system():
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


@pytest.mark.parametrize("fill", [full_cpu, full_numpy, full_gpu, full_system])
def test_a_lack_of_memory_says_what_to_do(fill):
    words = r"out of memory: micro-batches of 48 .* set train\.micro_batch_size 24, .* or set train\.checkpoint_blocks true"
    with pytest.raises(ValueError, match=words), advise_on_memory(PLAN, checkpointed=False):
        fill()


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), OSError(errno.ENOSPC, "No space left on device")])
def test_other_errors_stay_what_they_are(error):
    assert not is_lack_of_memory(error)
    with pytest.raises(type(error)) as raised, advise_on_memory(PLAN, checkpointed=False):
        raise error
    assert raised.value is error


@pytest.mark.parametrize(
    ("micro", "unit", "checkpointed", "words"),
    [
        (96, 1, True, ["train.micro_batch_size 48"]),
        (6, 4, True, ["smaller model"]),
        (3, 1, True, ["train.micro_batch_size 1"]),
        (1, 1, False, ["train.checkpoint_blocks"]),
        (1, 1, True, ["smaller model"]),
    ],
)
def test_the_cure_is_one_that_divides(micro, unit, checkpointed, words):
    plan = make_plan(TrainConfig(batch_size=96, micro_batch_size=micro, learning_rate=0.1, steps=1), samples=96, processes=1)
    text = memory_advice(plan, MemoryError(), checkpointed=checkpointed, unit=unit)
    assert all(word in text for word in words), text
    assert ("train.checkpoint_blocks" in text) is not checkpointed
    assert "data.workers" in memory_advice(
        plan, MemoryError("Caught MemoryError in DataLoader worker process 0."), checkpointed=True
    )


def train_in_little_memory(argv: list[str]) -> None:
    """Runs a pretraining that may allocate at most 1 GB more than its process has already."""
    import resource

    recipe = load_recipe("image_mae")
    limit = psutil.Process().memory_info().vms + 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    main(recipe.pretrain.run, presets=recipe.PRESETS, doc="", argv=argv)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a limit on a process's memory")
def test_in_little_memory_a_run_says_what_to_do_or_does_it(tmp_path: Path):
    (tmp_path / "pictures").mkdir()
    for number, picture in enumerate(photographs(4)):
        (tmp_path / "pictures" / f"{number}.jpg").write_bytes(picture)
    flags = "--preset demo --train.steps 1 --train.batch_size 4096 --data.workers 0 --train.precision fp32 --evaluate"
    places = ["--data.source", str(tmp_path / "pictures"), "--data.eval_split", "none"]
    code, output = watch([sys.executable, __file__, str(tmp_path), *flags.split(), *places])
    assert code == 0, output
    codes, said = json.loads((tmp_path / "codes.json").read_text()), (tmp_path / "4096.log").read_text()
    assert codes == {"4096": 2, "none": 0}, said + (tmp_path / "none.log").read_text()
    assert said.splitlines()[-1].startswith("error: out of memory: micro-batches of 4096 samples a process do not fit; set")
    assert (tmp_path / "none" / "micro_batch.json").exists()


def try_both(folder: Path, flags: list[str]) -> dict[str, int]:
    """Returns the exit codes of two runs: with the whole batch as one micro-batch, and with a search for the micro-batch size."""
    codes = {}
    for micro in ("4096", "none"):
        argv = [*flags, "--folder", str(folder / micro), "--train.micro_batch_size", micro]
        [pid] = fork_ranks(1, partial(train_in_little_memory, argv), folder / f"{micro}.log")
        codes[micro] = ends([pid], 90).get(pid)
    return codes


if __name__ == "__main__":
    torch.set_num_threads(1)
    (Path(sys.argv[1]) / "codes.json").write_text(json.dumps(try_both(Path(sys.argv[1]), sys.argv[2:])))
