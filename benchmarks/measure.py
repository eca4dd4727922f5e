"""Common functions of the benchmarks: timing of alternating steps in one process, their memory, and a description of the machine.

Memory is the memory that torch allocates, not that of the whole process: on a CPU the sum of the allocations and releases in the
profiler's record, on a GPU the allocator's own count. It is the same in every run.
"""

from __future__ import annotations

import gc
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], None]
REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"


def interleaved(steps: Mapping[str, Step], *, repeats: int, warmup: int, device: torch.device) -> dict[str, list[float]]:
    """Returns the seconds of each step. Every round runs all steps, so that a slow phase of the machine affects all of them.

    Args:
        steps: the steps by name.
        repeats: number of timed rounds.
        warmup: number of rounds before them, which are not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(warmup + repeats):
        for name, step in steps.items():
            gc.collect()  # so that no step's time includes a garbage collection
            wait(device)
            start = time.perf_counter()
            step()
            wait(device)
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def wait(device: torch.device) -> None:
    """Waits until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(step: Step, device: torch.device) -> int:
    """Returns the peak memory of a step, relative to the memory before it."""
    gc.collect()
    if device.type == "cuda":
        wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    return max(_running(seen), default=0)


def _running(seen: profile) -> Iterator[int]:
    """Returns the allocated memory after each allocation and release."""
    events = seen.profiler.kineto_results.events()
    held = 0
    for event in sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns()):
        held += event.nbytes()
        yield held


def spread(seconds: list[float]) -> dict[str, float]:
    """Returns the median and the quartiles."""
    low, _, high = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return {"median": median(seconds), "lower_quartile": low, "upper_quartile": high}


def machine(device: torch.device) -> dict[str, Any]:
    """Returns the type of machine, versions, commit and date, but no host or user names."""
    import timm

    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "device": kind,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "date": date.today().isoformat(),
        "command": " ".join(["python", _script(), *_without_paths(sys.argv[1:])]),
    }


def save(out: Path, name: str, text: str, numbers: Mapping[str, Any]) -> None:
    """Writes a table and all numbers to files that are named with the date and `name`."""
    out.mkdir(parents=True, exist_ok=True)
    name = f"{numbers['machine']['date']}-{name}"
    (out / f"{name}.md").write_text(text, encoding="utf-8")
    (out / f"{name}.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def _script() -> str:
    """Returns the command of this process: `benchmarks/x.py` or `-m benchmarks.x`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"benchmarks/{Path(sys.argv[0]).name}" if spec is None else f"-m {spec.name}"


def _without_paths(words: list[str]) -> list[str]:
    """Returns the flags of a command without --out, and with all other paths shortened to their last part."""
    kept = [word for word, before in zip(words, ["", *words], strict=False) if "--out" not in (word, before)]
    return [Path(word).name if Path(word).is_absolute() else word for word in kept]


def processor() -> str:
    """Returns the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine() or "CPU")


def commit() -> str | None:
    """Returns the commit of this tree, with "+changes" if a tracked file was edited. None: the tree is not under git."""
    try:
        return _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def table(head: list[str], rows: list[list[str]]) -> str:
    """Formats a Markdown table whose first column is aligned left."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
