"""R5: tests that a run that continues with another number of processes, in the middle of an epoch, reads the same samples.

The run starts on a processes, continues on b, and then on a again, for a and b of 1, 2 and 4. Sample ids, masks and pixels are
identical for every sample, and the losses agree within 1e-3. With train.strict the losses and the weights are bit-identical.
"""

from __future__ import annotations

import random
import shutil
import signal
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.reliability.harness import run_jobs, start
from benchmarks.reliability.progress import logged_lines, wait_for_update
from benchmarks.reliability.recorders import read_samples, record_samples
from benchmarks.reliability.runs import Variant, make_config, make_data, read_result, run_undisturbed

COUNT, QUICK = 9, 2  # pairs of numbers of processes
STEPS = 200
MAX_DRIFT = 1e-3  # relative difference of losses
STRICT = {"default": False, "strict": True}  # train.strict by mode


def run(work: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Tests `count` of the nine pairs in each mode."""
    make_data(work)
    pairs = rng.sample(list(product((1, 2, 4), repeat=2)), min(count, 9))
    _, failures = run_jobs(work, {f"{mode}_undisturbed": partial(_run_undisturbed, work, mode) for mode in STRICT})
    jobs = {
        f"{mode}_{a}_{b}": partial(_change_processes, work, mode, a, b, rng.getrandbits(32)) for mode in STRICT for a, b in pairs
    }
    results, more = run_jobs(work, jobs, parallel=1)  # because four processes are enough for two cores
    return {"pairs": len(pairs), "steps": STEPS, "runs": results, "failures": failures + more}


def _variant(work: Path, mode: str, processes: int) -> Variant:
    config = make_config(work, steps=STEPS, save_every=50, log_every=1, strict=STRICT[mode])
    return Variant(mode, config, processes)


def _run_undisturbed(work: Path, mode: str) -> dict[str, Any]:
    """Runs the undisturbed training on one process, and records its samples."""
    run_undisturbed(_variant(work, mode, 1), work / f"{mode}_one", record_samples(work / f"{mode}_one_records"))
    return {}


def _change_processes(work: Path, mode: str, a: int, b: int, seed: int) -> dict[str, Any]:
    """Runs the training in three parts; a signal ends the first and the second at a random step."""
    rng, name, failures = random.Random(seed), f"{mode}_{a}_{b}", list[str]()
    folder, records = work / f"{name}_run", work / f"{name}_records"
    for part, processes in enumerate((a, b, a)):
        started = start(_variant(work, mode, processes).config, folder, processes, record_samples(records / str(part)))
        if part < 2 and wait_for_update(started, folder):
            lines = logged_lines(folder) + rng.randint(5, STEPS // 4)
            started.wait_until(lambda lines=lines: logged_lines(folder) >= lines)
            started.kill(rng.choice(started.pids), number=signal.SIGTERM)
        codes = started.wait()
        failures += [f"{name}, part {part}: {codes}: {started.output()}"] * (codes not in ([0] * processes, [143] * processes))
    differences, drift = _compare(work, mode, records, folder)
    shutil.rmtree(folder, ignore_errors=True)
    return {"relative drift of losses": drift, "failures": failures + [f"{name}: {line}" for line in differences]}


def _compare(work: Path, mode: str, records: Path, folder: Path) -> tuple[list[str], float | None]:
    """Returns the differences from the undisturbed run, and the relative difference of the losses."""
    expected, read = read_samples(work / f"{mode}_one_records"), dict[int, Any]()
    for part in sorted(records.iterdir()):
        read |= read_samples(part)  # a step that a signal interrupted is replaced by its later repetition
    differences = [f"step {step}: other samples, masks or pixels" for step in expected if read.get(step) != expected[step]][:3]
    undisturbed, changed = (read_result(path, STEPS) for path in (work / f"{mode}_one", folder))
    losses = [[line["loss"] for line in result["metrics"] if "loss" in line] for result in (undisturbed, changed)]
    if len(losses[0]) != len(losses[1]):
        return [*differences, f"{len(losses[1])} losses instead of {len(losses[0])}"], None
    drift = max(abs(x - y) / abs(x) for x, y in zip(*losses, strict=True))
    if drift > MAX_DRIFT:
        differences.append(f"losses drift by {drift:.1e}")
    if STRICT[mode]:
        differences += [f"{name} differs" for name in undisturbed if undisturbed[name] != changed.get(name)]
    return differences, drift
