"""R17: tests hostile inputs with the calls that a user makes: no code in them runs, and no file outside their folder is opened.

Each is refused with one line, or read as plain data. Code in an input never creates its marker file. Python's audit hook records no
started program, no connection, no class named by a pickle and no outside file; the kernel reports no access to the canary files.
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.reliability import corpus_configs, corpus_data, corpus_weights
from benchmarks.reliability.audit import Audit, CanaryWatch
from benchmarks.reliability.corpus import CASES, Action, Workspace
from benchmarks.reliability.harness import start_function
from benchmarks.reliability.runs import make_image
from mmm.data.errors import Unreadable
from mmm.data.sources.builtin_videos import write_motion_video
from mmm.system.files import user_cache

COUNT, QUICK = 1, 1  # trials of each input
MIN_INPUTS = 30
TIMEOUT = 120.0  # seconds per input
CORPORA = (corpus_configs, corpus_data, corpus_weights)  # importing them fills CASES


def run(work: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Tests all inputs, each in a separate process."""
    writing = start_function(lambda: write_canaries(work / "canaries"), work / "canaries.log")
    if any(writing.wait()):
        raise RuntimeError(f"the canary files could not be written: {writing.output()}")
    outcomes, failures = dict[str, str](), list[str]()
    for name in CASES:
        path = work / f"{name}.outcome"
        codes = start_function(partial(_write_outcome, path, name, work), work / f"{name}.log").wait(TIMEOUT)
        outcomes[name], *errors = path.read_text().split("\n\n") if path.exists() else ("", f"{name} ended with {codes}")
        failures += errors
    return {"inputs": len(CASES), "outcomes": outcomes, "failures": failures + ["too few inputs"] * (len(CASES) < MIN_INPUTS)}


def _write_outcome(path: Path, name: str, work: Path) -> None:
    outcome, failures = check_input(name, work / name, work / "canaries")
    path.write_text("\n\n".join([outcome, *failures]))


def write_canaries(canaries: Path) -> None:
    """Writes valid files that must not be opened."""
    canaries.mkdir(parents=True)
    Image.fromarray(make_image(0)).save(canaries / "image.png")
    (canaries / "text.txt").write_text("canary")
    write_motion_video(canaries / "video.mp4", "train", 0)


def check_input(name: str, folder: Path, canaries: Path) -> tuple[str, list[str]]:
    """Returns the outcome of an input, and the failures.

    Args:
        name: name in CASES.
        folder: a new folder for the input.
        canaries: the folder that `write_canaries` filled.
    """
    root = folder / "root"
    root.mkdir(parents=True)
    workspace = Workspace(root, canaries, folder / "marker")
    action = CASES[name](workspace)
    before = _files(folder)
    watch = CanaryWatch(canaries)
    try:
        with Audit.installed().record(root, *_caches()) as recorded, _offline(), _quiet(), _temporary_folder(root / "temporary"):
            outcome = _outcome(action)
        failures = [f"{name}: {line}" for line in recorded]
        failures += [f"{name}: a canary file was opened"] * watch.opened()
    finally:
        watch.close()
    failures += [f"{name}: its code ran"] * workspace.marker.exists()
    failures += [f"{name}: {path} was written outside its folder" for path in _files(folder) - before if root not in path.parents]
    failures += [f"{name}: {outcome}"] * outcome.startswith("failed")
    return outcome, failures


def _caches() -> tuple[Path, Path]:
    """Returns the cache folders of mmm and of `datasets`."""
    import datasets.config

    return user_cache().parent, Path(datasets.config.HF_DATASETS_CACHE)


@contextlib.contextmanager
def _temporary_folder(folder: Path) -> Any:
    """Lets `tempfile` use a folder inside the input's folder."""
    folder.mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _outcome(action: Action) -> str:
    """Returns a description that starts with "refused", "read", or, on an unexpected exception, "failed"."""
    try:
        result = action()
    except (ValueError, Unreadable) as error:
        return f"refused: {' '.join(str(error).split())[:200]}"
    except SystemExit as error:
        return f"refused: exit {error.code}"
    except BaseException as error:
        return f"failed: {type(error).__name__}: {str(error)[:300]}"
    return f"read: {str(result)[:200]!r}" if result else "read"


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
