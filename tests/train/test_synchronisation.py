"""The host never waits for the GPU between two lines of metrics, as counted on a simulated device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load_recipe, reset_accelerate
from other_device import DEVICE, Elsewhere, on_accelerate
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode

from mmm.config.cli import main

# operations whose result the host reads, or whose shape depends on values
READS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "bincount")
EVERY, STEPS = 4, 12  # updates between two lines of metrics, and in the run


class Synchronisations(TorchDispatchMode):
    """Counts the operations for which CUDA's host waits for the device, by name.

    The host waits in copies to the CPU, and in copies from the CPU that are not asynchronous.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        there = any(isinstance(value, Elsewhere) for value in args)
        by_truth = name == "index" and any(getattr(one, "dtype", None) == torch.bool for one in args[1])
        if there and (name in READS or by_truth):
            self.found[name] += 1
        elif name == "_to_copy" and "device" in kwargs and there != (kwargs["device"].type == DEVICE.type):
            self.found["copy to the CPU"] += there
            self.found["copy to the device"] += not there and not kwargs.get("non_blocking")
        elif name == "copy_" and isinstance(args[0], Elsewhere) != isinstance(args[1], Elsewhere):
            asynchronous = kwargs.get("non_blocking", len(args) > 2 and args[2])
            self.found["copy_"] += isinstance(args[1], Elsewhere) or not asynchronous
        return func(*args, **kwargs)


@pytest.fixture
def device() -> Iterator[torch.device]:
    reset_accelerate()
    with on_accelerate() as device:
        yield device
    reset_accelerate()


def note(mode: Synchronisations, counted: list[Counter[str]], optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Records the counts after each step of the optimizer, which must be fused: it reads on the device whether to make the step."""
    assert optimizer.defaults["fused"]
    counted.append(Counter(mode.found))


@pytest.mark.parametrize(
    "flags", ["", "--train.ema 0.9 --train.clip_norm 1 --target.name latent --data.lighting 0.2"], ids=["plain", "more"]
)
def test_the_host_waits_at_log_lines_only(tmp_path: Path, device: torch.device, flags: str) -> None:
    recipe, counted = load_recipe("image_mae"), []
    argv = f"--preset demo --train.steps {STEPS} --train.log_every {EVERY} --train.save_every 1000 --folder {tmp_path / 'run'}"
    argv += " --train.batch_size 8 --train.micro_batch_size 4 --encoder.width 24 --encoder.heads 2 --encoder.depth 1 --evaluate"
    with Synchronisations() as mode:
        hook = register_optimizer_step_post_hook(partial(note, mode, counted))
        try:
            main(recipe.pretrain.run, presets=recipe.PRESETS, doc="", argv=[*argv.split(), *flags.split()])
        finally:
            hook.remove()
    between = [after - before for before, after in pairwise(counted)]
    assert len(between) == STEPS - 1
    lines = [update for update in range(1, STEPS) if update % EVERY == 0]  # the line is written before the next update
    assert all(between[update - 1] for update in lines)
    assert {update: found for update, found in enumerate(between, start=1) if found and update not in lines} == {}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_nothing_is_compiled_again_after_the_second_update(tmp_path: Path) -> None:
    counters = torch._dynamo.utils.counters
    graphs: list[int] = []
    recipe = load_recipe("image_mae")
    argv = f"--preset demo --train.steps 8 --train.log_every 2 --train.compile true --folder {tmp_path / 'run'} --evaluate"
    reset_accelerate()
    torch._dynamo.reset()
    counters.clear()
    hook = register_optimizer_step_post_hook(lambda *_: graphs.append(counters["stats"]["unique_graphs"]))
    try:
        main(recipe.pretrain.run, presets=recipe.PRESETS, doc="", argv=argv.split())
    finally:
        hook.remove()
        reset_accelerate()
    assert graphs[0] > 0  # something was compiled
    assert graphs[1:] == graphs[1:2] * 7
