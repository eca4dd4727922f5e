"""R3: tests that every damage to every file of a checkpoint is detected, and that the run continues from the previous checkpoint,
with a message that names the file.

The damages are a flipped bit, a truncated file, zeros, a missing file, a longer file, the file of another step and that of another
run. If all checkpoints are damaged, the start is refused; a run never starts again from the beginning by itself.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.reliability.harness import start
from benchmarks.reliability.runs import SAVE_EVERY, STEPS, Variant, finish_and_compare, make_config, make_data, run_undisturbed
from mmm.train.checkpoint import writer as checkpoint

COUNT, QUICK = 100, 5
MAX_RUNS = 20  # number of runs that continue after a damage


def run(work: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Tests `count` seeds of each damage to each file; after some of them a run continues."""
    make_data(work)
    variant = Variant("image", make_config(work), 1)
    expected = run_undisturbed(variant, work / "undisturbed")
    run_undisturbed(Variant("other", make_config(work, learning_rate=2e-3), 1), work / "other")
    result = _detect(work, count, rng)
    kinds = rng.choices(sorted(result["kinds"]), k=min(MAX_RUNS, count))
    runs = [_continue(work, variant, expected, kind, rng) for kind in kinds]
    failures = result.pop("failures") + [line for errors in runs for line in errors] + _refuse_if_all_are_damaged(work, variant)
    return {**result, "continued runs": len(runs), "bit-identical": sum(not errors for errors in runs), "failures": failures}


def _detect(work: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Tests whether the hashes detect each damage."""
    folder = work / "undisturbed" / "checkpoints"
    before, last = (folder / f"step_{step:08d}" for step in (STEPS - SAVE_EVERY, STEPS))
    kinds, failures = Counter[str](), list[str]()
    for file in sorted(last.iterdir()):
        content = file.read_bytes()
        others = [(folder / file.name).read_bytes() for folder in (before, work / "other" / "checkpoints" / last.name)]
        for _ in range(count):
            for kind, damaged in damaged_versions(content, others, rng).items():
                replace_file(file, damaged)
                kinds[kind] += 1
                if (checkpoint.damage(last) is None) != (damaged is not None and _is_harmless(file.name, damaged, content)):
                    failures.append(f"{kind} of {file.name}")
                file.write_bytes(content)
    return {"damages": kinds.total(), "kinds": kinds, "undetected or wrongly reported": len(failures), "failures": failures}


def _is_harmless(name: str, damaged: bytes, content: bytes) -> bool:
    """Returns whether nothing changed, or only white space in the manifest."""
    with suppress(ValueError):
        return damaged == content or (name == checkpoint.MANIFEST and json.loads(damaged) == json.loads(content))
    return False


def damaged_versions(content: bytes, others: list[bytes], rng: random.Random) -> dict[str, bytes | None]:
    """Returns a file's content with each kind of damage. None: the file is deleted.

    Args:
        others: the content of the same file in another step, and in another run.
    """
    position, size = rng.randrange(len(content)), len(content)
    flipped = bytearray(content)
    flipped[position] ^= 1 << rng.randrange(8)
    return {
        "flip": bytes(flipped),
        "cut": content[:position],
        "zeros": content[:position] + bytes(size - position),
        "missing": None,
        "longer": content + content[:1],
        "of another step": others[0],
        "of another run": others[1],
    }


def replace_file(file: Path, content: bytes | None) -> None:
    """Writes new content into a file, or deletes it."""
    file.unlink() if content is None else file.write_bytes(content)


def _continue(work: Path, variant: Variant, expected: dict[str, Any], kind: str, rng: random.Random) -> list[str]:
    """Damages the newest checkpoint of a finished run; the same command must continue from the previous one."""
    folder = work / "damaged"
    shutil.copytree(work / "undisturbed", folder)
    file = rng.choice(sorted((folder / "checkpoints" / f"step_{STEPS:08d}").iterdir()))
    steps = (STEPS - SAVE_EVERY, STEPS)
    others = [(work / "other" / "checkpoints" / f"step_{step:08d}" / file.name).read_bytes() for step in steps]
    content = file.read_bytes()
    damaged = damaged_versions(content, others, rng)[kind]
    harmless = damaged is not None and _is_harmless(file.name, damaged, content)
    replace_file(file, damaged)
    log = folder.with_name("damaged.log")
    log.unlink(missing_ok=True)
    failures = finish_and_compare(variant, folder, expected)
    messages = [line for line in log.read_text().splitlines() if "damaged" in line and file.name in line]
    if not harmless and len(messages) != 1:
        failures.append(f"{kind} of {file.name}: {len(messages)} messages name it")
    shutil.rmtree(folder)
    return failures


def _refuse_if_all_are_damaged(work: Path, variant: Variant) -> list[str]:
    folder = work / "all_damaged"
    shutil.copytree(work / "undisturbed", folder)
    for tensors in folder.glob("checkpoints/*/model*.safetensors"):
        tensors.write_bytes(bytes(100))
    started = start(variant.config, folder)
    codes = started.wait()
    refused = codes == [2] and "every checkpoint" in started.output(2000)
    return [] if refused else [f"all checkpoints damaged, and the start ended with {codes}: {started.output()}"]
