"""Estimates the cost of a run before it starts: counts from the model, and memory from one real micro-step."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import Any

import psutil
import torch
from torch import nn

from mmm.train.loop import LossOf
from mmm.train.memory.batch_size_finder import Trial
from mmm.train.schedule import Plan
from mmm.train.state import Training

# on a CPU a whole micro-batch of a large model may take minutes and all of the memory: first a few samples are measured, and then
# more samples if these take less than this number of seconds
CPU_SAMPLES, CPU_SECONDS = 8, 1.0


@dataclass(frozen=True)
class MicroStep:
    """One forward and backward of a micro-batch.

    Attributes:
        samples: number of samples; smaller than planned if more did not fit, and possibly on a CPU.
        memory: peak in bytes: of torch's allocator on a GPU, or the growth of the process on a CPU.
        seconds: duration after a warm-up step.
    """

    samples: int
    memory: int
    seconds: float


def dry_run(
    training: Training,
    trial: Trial,
    *,
    plan: Plan,
    tokens: Mapping[str, int],
    notes: Mapping[str, str],
) -> str:
    """Counts and measures without training, and returns a table to print.

    Args:
        trial: makes real micro-batches and computes their loss.
        tokens: numbers of tokens of one sample: {"seen by the encoder": 49, ...}.
        notes: further rows.
    """
    forward, both = count_flops(training.unwrapped, trial.make_batch(1), trial.loss)
    total, trainable = count_parameters(training.unwrapped)
    step = measure_micro_step(training, trial, plan.micro_batch_size)
    rows = {
        "parameters": f"{total:,}" + ("" if total == trainable else f" ({trainable:,} trainable)"),
        **{f"tokens {name}": f"{number:,}" for name, number in tokens.items()},
        "FLOPs a sample, forward": f"{forward:.3e}",
        "FLOPs a sample, forward and backward": f"{both:.3e}",
        "steps": f"{plan.steps:,}",
        "batch": f"{plan.batch_size:,} samples = {plan.processes} x {plan.micro_batch_size} x {plan.accumulation} "
        "(processes x micro-batch x accumulated)",
        "epochs": f"{plan.epoch(plan.steps):.4g} of {plan.samples:,} samples",
        **notes,
        "FLOPs of the run": f"{both * plan.steps * plan.batch_size:.3e}",
        "peak learning rate": f"{plan.peak:.4g}",
        f"micro-step on this {training.accelerator.device.type}": _describe(step, plan),
        "time of the run": f"about {_duration(step.seconds / step.samples * plan.batch_size / plan.processes * plan.steps)} at the "
        "speed of this micro-step, without reading data and evaluations",
    }
    return table(rows)


def table(rows: Mapping[str, str]) -> str:
    """Formats two columns of text."""
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Returns the numbers of all parameters and of trained ones."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)


def count_flops(model: nn.Module, one: Any, loss_of: LossOf) -> tuple[int, int]:
    """Returns the FLOPs of one sample, forward, and forward with backward, by torch's counter: a multiply-add counts as two."""
    from torch.utils.flop_counter import FlopCounterMode  # imported here, because the import is slow

    with FlopCounterMode(display=False) as counter:
        loss = loss_of(model, one, 0)
        forward = counter.get_total_flops()
        loss.backward()
        both = counter.get_total_flops()
    model.zero_grad(set_to_none=True)
    return forward, both


def measure_micro_step(training: Training, trial: Trial, samples: int) -> MicroStep:
    """Runs a micro-step on the device. If memory does not suffice, runs one with half the samples, and so on.

    Raises:
        torch.OutOfMemoryError: not even one sample fits.
    """
    cpu = training.accelerator.device.type == "cpu"
    few = min(samples, CPU_SAMPLES) if cpu else samples
    tried = few
    while True:
        try:
            step = _measure(training, trial.make_batch(tried), trial.loss, tried)
            break
        except torch.OutOfMemoryError:
            if tried == 1:
                raise
            training.optimizer.zero_grad(set_to_none=True)
            tried //= 2
    more = min(samples, int(few * CPU_SECONDS / step.seconds))
    if not cpu or tried < few or more <= few or training.accelerator.num_processes > 1:  # processes would disagree about `more`
        return step
    return _measure(training, trial.make_batch(more), trial.loss, more)


def _measure(training: Training, batch: Any, loss_of: LossOf, samples: int) -> MicroStep:
    def run() -> None:
        loss = loss_of(training.model, batch, 0)
        training.accelerator.backward(loss)
        loss.item()  # wait for the device

    if training.accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        run()
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = _growth(run)
    began = perf_counter()
    run()
    seconds = perf_counter() - began
    training.optimizer.zero_grad(set_to_none=True)
    return MicroStep(samples, memory, seconds)


def _growth(run: Callable[[], None]) -> int:
    """Returns the largest growth of the process's memory in bytes, sampled every 2 ms."""
    _return_free_memory()
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return peak - before


def _return_free_memory() -> None:
    """Returns the free memory of the C library to the system. Otherwise a step that reuses it would seem to need no memory."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # musl has none
    if trim is not None:
        trim(0)


def _describe(step: MicroStep, plan: Plan) -> str:
    text = f"{step.samples} samples: {step.memory / 2**30:.2f} GiB, {step.seconds:.3g} s"
    if step.samples == plan.micro_batch_size:
        return text
    return f"{text}; not the {plan.micro_batch_size} that one micro-batch has: see train.micro_batch_size"


def _duration(seconds: float) -> str:
    """Formats a time in its two largest units."""
    units = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))
    for (name, size), (smaller, small) in pairwise(units):
        if seconds >= size:
            counts = divmod(round(seconds / small), size // small)
            return f"{counts[0]} {name}{'s' * (counts[0] != 1)} {counts[1]} {smaller}{'s' * (counts[1] != 1)}"
    return f"{seconds:.2g} seconds"
