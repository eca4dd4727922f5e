"""R17: tests hostile inputs with the calls that a user makes: no code in them runs, and no file outside their folder is opened.

Each is rejected in one line, or read as plain data. Planted code never creates its canary. Python's audit hook records no started
program, no connection, no class named by a pickle and no outside file; the kernel reports no access to the bait.
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.reliability import corpus_configs, corpus_data, corpus_weights
from benchmarks.reliability.corpus import CASES, Place
from benchmarks.reliability.harness import call
from benchmarks.reliability.runs import picture
from benchmarks.reliability.watch import Audit, Bait
from mmm.data.errors import Unreadable
from mmm.data.sources.builtin_videos import write_motion_video
from mmm.system.files import user_cache

COUNT, QUICK = 1, 1  # trials of each input
FEWEST = 30
LIMIT = 120.0  # seconds per input
CORPORA = (corpus_configs, corpus_data, corpus_weights)  # imported because they fill CASES


def run(work: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Tests all inputs, each in a separate process."""
    made = call(lambda: make_bait(work / "bait"), work / "bait.log")
    if any(made.wait()):
        raise RuntimeError(f"no bait: {made.said()}")
    told, wrong = dict[str, str](), list[str]()
    for name in CASES:
        outcome = work / f"{name}.outcome"
        codes = call(lambda name=name, outcome=outcome: _judge_into(outcome, name, work), work / f"{name}.log").wait(LIMIT)  # type: ignore[misc]
        told[name], *amiss = outcome.read_text().split("\n\n") if outcome.exists() else ("", f"{name} ended with {codes}")
        wrong += amiss
    return {"inputs": len(CASES), "outcomes": told, "wrong": wrong + ["too few inputs"] * (len(CASES) < FEWEST)}


def _judge_into(outcome: Path, name: str, work: Path) -> None:
    said, wrong = check_file(name, work / name, work / "bait")
    outcome.write_text("\n\n".join([said, *wrong]))


def make_bait(bait: Path) -> None:
    """Creates valid files that must not be opened."""
    bait.mkdir(parents=True)
    Image.fromarray(picture(0)).save(bait / "picture.png")
    (bait / "text.txt").write_text("bait")
    write_motion_video(bait / "film.mp4", "train", 0)


def check_file(name: str, folder: Path, bait: Path) -> tuple[str, list[str]]:
    """Returns the outcome of an input, and the errors found.

    Args:
        name: name of the case.
        folder: folder of the case.
        bait: the folder that `make_bait` filled.
    """
    root = folder / "root"
    root.mkdir(parents=True)
    place = Place(root, bait, folder / "canary")
    act = CASES[name](place)
    before = _files(folder)
    watched = Bait(bait)
    try:
        with Audit.installed().over(root, *_caches()) as seen, _offline(), _quiet(), _own_temporary(root / "temporary"):
            said = _outcome(act)
        wrong = [f"{name}: {one}" for one in seen]
        wrong += [f"{name}: the bait was opened"] * watched.touched()
    finally:
        watched.close()
    wrong += [f"{name}: its code ran"] * place.canary.exists()
    wrong += [f"{name}: {path} was written outside its folder" for path in _files(folder) - before if root not in path.parents]
    wrong += [f"{name}: {said}"] * said.startswith("failed")
    return said, wrong


def _caches() -> tuple[Path, Path]:
    """Returns the cache folders of mmm and of `datasets`."""
    import datasets.config

    return user_cache().parent, Path(datasets.config.HF_DATASETS_CACHE)


@contextlib.contextmanager
def _own_temporary(folder: Path) -> Any:
    folder.mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _outcome(act: Any) -> str:
    """Returns whether the input was rejected with a message or was read; any other result is a failure."""
    try:
        found = act()
    except (ValueError, Unreadable) as error:
        return f"refused: {' '.join(str(error).split())[:200]}"
    except SystemExit as error:
        return f"refused: exit {error.code}"
    except BaseException as error:
        return f"failed: {type(error).__name__}: {str(error)[:300]}"
    return f"read: {str(found)[:200]!r}" if found else "read"


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def _offline() -> Any:
    """Disables access to the hub, where a name that is not a path would be looked up."""
    import datasets.config
    import huggingface_hub.constants

    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def _quiet() -> Any:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
