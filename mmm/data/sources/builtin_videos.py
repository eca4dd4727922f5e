"""`builtin:motion`: the films of `mmm.data.sources.films`, encoded once into a folder of the user's cache.

From there on they are a folder of videos like any other. They are written aside, and the folder gets its name when it is whole; its
name holds a hash of all that the films follow from. A list of their sizes lies beside them: a folder that does not agree with it
is made anew. The cache is XDG_CACHE_HOME, or ~/.cache.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

from mmm.data.loading.scan import EachOnce, each_once
from mmm.data.sources import films
from mmm.system.files import digest, user_cache

logger = logging.getLogger(__name__)

VERSION = 1  # to be raised where films.py draws or looks otherwise
COUNTS = {"train": 1600, "validation": 400, "test": 800}  # films of each split
SIZES = "sizes.json"


def film_folder(cache: Path | None = None, counts: Mapping[str, int] | None = None) -> Path:
    """The folder of the films, which are made where they are missing: about 15 s on two cores, 20 MB.

    Args:
        cache: the folder to keep it in; none: the user's.
        counts: films of each split; none: COUNTS.

    Returns:
        a folder of `SPLIT/DIRECTION/NUMBER.mp4`.
    """
    cache, counts = user_cache() if cache is None else cache, COUNTS if counts is None else counts
    folder = cache / f"motion-{_hash(counts)}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{folder.name}.lock"):  # another process may be at it, and then this one waits
        if not _whole(folder):
            _make(folder, counts)
    return folder


def _hash(counts: Mapping[str, int]) -> str:
    looks = (films.SIDE, films.FRAMES, films.RATE, films.SPEED, films.BRIGHTNESS, films.CONTRAST, films.FLOOR)
    return digest([VERSION, dict(counts), films.PARTS, films.DIRECTIONS, looks, films.ENCODING])


def _whole(folder: Path) -> bool:
    """Whether all files are there, each with the size that it had."""
    try:
        sizes: dict[str, int] = json.loads((folder / SIZES).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (FileNotFoundError, ValueError):
        return False


def _make(folder: Path, counts: Mapping[str, int]) -> None:
    """Encodes all films aside, and puts the folder in its place."""
    aside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed: this one holds the lock
    names = [(split, index) for split, count in counts.items() for index in range(count)]
    logger.info("making %d short films in %s, once", len(names), folder)
    classes = list(films.DIRECTIONS)
    paths = [aside / split / classes[index % len(classes)] / f"{index:05d}.mp4" for split, index in names]

    def work(number: int) -> dict[str, int]:
        films.write_film(paths[number], *names[number])
        return {}

    for finding in each_once(EachOnce(lambda number: str(paths[number]), work), len(paths), workers=_cores(), title="films"):
        assert finding.reason is None
    sizes = {path.relative_to(aside).as_posix(): path.stat().st_size for path in paths}
    (aside / SIZES).write_text(json.dumps(sizes), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    aside.replace(folder)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
