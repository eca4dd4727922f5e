"""Finds the tars that `data.source` names: a file, a folder, a glob, a range in braces, or http addresses."""

from __future__ import annotations

import glob
import re
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit

from mmm.data.config import DataConfig
from mmm.data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from mmm.data.sources.addresses import PROTOCOLS
from mmm.data.sources.folder import files_below
from mmm.data.sources.webdataset.local import LocalFiles
from mmm.data.sources.webdataset.remote import SCHEMES, HttpFiles
from mmm.data.sources.webdataset.source import Tars

# including compressed tars, because their error message says what to do
ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
MAX_NAMES = 10_000_000  # largest number of names that braces may be expanded to


def tars_at(name: str, config: DataConfig) -> Tars | None:
    """Opens the tars that a name refers to; returns None if it names no tars.

    Raises:
        ValueError: a tar does not exist, or the address is of another kind.
    """
    if "://" in name or name.startswith(("pipe:", "file:")):
        return Tars(HttpFiles(_addresses(name)), config, name)
    path = Path(name).expanduser()
    if path.is_dir():
        files = _in_folder(path)
    elif path.exists() or not (BRACES.search(name) or glob.has_magic(name)):
        files = [path]
    else:
        patterns = expand(str(path))
        found = [sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else [pattern] for pattern in patterns]
        files = [Path(file) for group in found for file in group]
    if not files or not all(str(file).endswith(ENDINGS) for file in files):
        return None
    if absent := [file for file in files if not file.is_file()]:
        others = f", nor are {len(absent) - 1} others" if len(absent) > 1 else ""
        raise ValueError(f"data.source {name}: {absent[0]} is not a file here{others}")
    return Tars(LocalFiles(files), config, name)


def expand(name: str) -> list[str]:
    """Expands braces to names: {000..146} counts with this number of digits, and {a,b} lists alternatives.

    Raises:
        ValueError: a range is empty, or there are too many names.
    """
    parts = BRACES.split(name)  # texts, alternating with the contents of braces
    choices = [_choices(part) if place % 2 else [part] for place, part in enumerate(parts)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if not 0 < count <= MAX_NAMES:
        raise ValueError(f"data.source {name} stands for {count:,} names; give from 1 to {MAX_NAMES:,}")
    return ["".join(words) for words in product(*choices)]


def _choices(inside: str) -> list[str]:
    counted = RANGE.fullmatch(inside)
    if counted is None:
        return inside.split(",")
    first, last = counted.groups()
    if int(last) - int(first) > MAX_NAMES:
        raise ValueError(f"data.source {{{inside}}} stands for {int(last) - int(first) + 1:,} names; give at most {MAX_NAMES:,}")
    width = len(first) if first.startswith("0") else 0
    return [str(number).zfill(width) for number in range(int(first), int(last) + 1)]


def _addresses(name: str) -> list[str]:
    """Returns addresses of tars, at http and https only: WebDataset's `pipe:` would run a program, and its `file:` would read any
    file."""
    addresses = expand(name)
    for address in addresses:
        if urlsplit(address).scheme not in SCHEMES:
            known = ", ".join(sorted(PROTOCOLS - {"memory"}))
            raise ValueError(f"data.source {name}: addresses must begin with http, https, {known}; give a path without `file:`")
        if not urlsplit(address).path.endswith(ENDINGS):
            raise ValueError(f"data.source {name}: http addresses must be those of tars, which end in .tar")
    return addresses


def _in_folder(root: Path) -> list[Path]:
    """Lists the tars below a folder. Returns none if it also contains images or videos as files, which are then the samples."""
    tars = []
    for path in files_below(root):
        if Path(path).suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
            return []
        if path.endswith(ENDINGS):
            tars.append(path)
    plain = [path for path in tars if path.endswith(".tar")]
    return [root / path for path in sorted(plain or tars)]
