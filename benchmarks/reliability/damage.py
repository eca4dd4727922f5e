"""R3: tests that every damage to every file of a checkpoint is found, and that the run continues from the checkpoint before, with a
line that names the file.

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
from benchmarks.reliability.runs import EVERY, STEPS, Variant, config_of, finish, make_data, quicker, whole
from mmm.train.checkpoint import writer as checkpoint

COUNT, QUICK = 100, 5
FEWEST = 20  # minimum number of damages tested on a whole run


def run(work: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Tests `count` seeds of each damage to each file; for some of them a run then continues."""
    make_data(work)
    variant = Variant("image", config_of(work), 1)
    expected = whole(variant, work / "whole")
    other = Variant("other", quicker(config_of(work), learning_rate=2e-3), 1)
    whole(other, work / "other")
    found = _found(work, count, draw)
    runs = [_goes_on(work, variant, expected, kind, draw) for kind in draw.choices(sorted(found["kinds"]), k=min(FEWEST, count))]
    refused = _all_damaged(work, variant)
    wrong = found.pop("wrong") + [line for one in runs for line in one] + refused
    return {**found, "runs that went on": len(runs), "bit-identical": sum(not one for one in runs), "wrong": wrong}


def _found(work: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Tests whether the hashes detect each damage."""
    folder = work / "whole" / "checkpoints"
    before, last = (folder / f"step_{step:08d}" for step in (STEPS - EVERY, STEPS))
    kinds, wrong = Counter[str](), list[str]()
    for file in sorted(last.iterdir()):
        content = file.read_bytes()
        strangers = [(place / file.name).read_bytes() for place in (before, work / "other" / "checkpoints" / last.name)]
        for _ in range(count):
            for kind, harmed in harms(content, strangers, draw).items():
                file.unlink() if harmed is None else file.write_bytes(harmed)
                kinds[kind] += 1
                if (checkpoint.damage(last) is None) != (harmed is not None and _reads_the_same(file.name, harmed, content)):
                    wrong.append(f"{kind} of {file.name}")
                file.write_bytes(content)
    return {"damages": kinds.total(), "kinds": kinds, "undetected or wrongly reported": len(wrong), "wrong": wrong}


def _reads_the_same(name: str, harmed: bytes, content: bytes) -> bool:
    """Returns whether a change is harmless: no change, or only white space in the manifest."""
    with suppress(ValueError):
        return harmed == content or (name == checkpoint.MANIFEST and json.loads(harmed) == json.loads(content))
    return False


def harms(content: bytes, strangers: list[bytes], draw: random.Random) -> dict[str, bytes | None]:
    """Returns a file's content with each kind of damage. None: the file is deleted."""
    place, size = draw.randrange(len(content)), len(content)
    flipped = bytearray(content)
    flipped[place] ^= 1 << draw.randrange(8)
    return {
        "flip": bytes(flipped),
        "cut": content[:place],
        "zeros": content[:place] + bytes(size - place),
        "missing": None,
        "longer": content + content[:1],
        "of another step": strangers[0],
        "of another run": strangers[1],
    }


def _goes_on(work: Path, variant: Variant, expected: dict[str, Any], kind: str, draw: random.Random) -> list[str]:
    """Damages the newest checkpoint of a finished run; the same command must continue from the previous one."""
    folder = work / "damaged"
    shutil.copytree(work / "whole", folder)
    last = folder / "checkpoints" / f"step_{STEPS:08d}"
    file = draw.choice(sorted(last.iterdir()))
    strangers = [(work / "other" / "checkpoints" / f"step_{step:08d}" / file.name).read_bytes() for step in (STEPS - EVERY, STEPS)]
    harmed = harms(file.read_bytes(), strangers, draw)[kind]
    same = harmed is not None and _reads_the_same(file.name, harmed, file.read_bytes())
    file.unlink() if harmed is None else file.write_bytes(harmed)
    log = folder.with_name("damaged.log")
    log.unlink(missing_ok=True)
    wrong = finish(variant, folder, expected)
    named = [line for line in log.read_text().splitlines() if "damaged" in line and file.name in line]
    if not same and len(named) != 1:
        wrong.append(f"{kind} of {file.name}: {len(named)} lines name it")
    shutil.rmtree(folder)
    return wrong


def _all_damaged(work: Path, variant: Variant) -> list[str]:
    folder = work / "hopeless"
    shutil.copytree(work / "whole", folder)
    for tensors in folder.glob("checkpoints/*/model*.safetensors"):
        tensors.write_bytes(bytes(100))
    started = start(variant.config, folder)
    codes = started.wait()
    refused = codes == [2] and "every checkpoint" in started.said(2000)
    return [] if refused else [f"all checkpoints damaged, and the start ended with {codes}: {started.said()}"]
