"""Reads the tensors of a file that somebody else wrote, without running anything that it holds.

A `.pth` file is a pickle, and a pickle is a program. torch's restricted unpickler (`weights_only=True`) builds only tensors and
plain values, and refuses the `argparse.Namespace` that official files hold beside their weights. It is not turned off here:
the few classes that such files are known to hold are read as `Inert`, which keeps nothing and does nothing.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")  # .tar: of .pth.tar, which is no tar
WRAPPINGS = ("model", "module", "state_dict", "model_state")  # where training scripts put the weights, also one in another
PREFIXES = ("module.", "_orig_mod.")  # which DDP and torch.compile put before every name


class Inert:
    """Replaces an object in a file that nobody needs, and keeps nothing of it."""

    __slots__ = ()

    def __init__(self, *arguments: object) -> None:
        """Forgets its arguments."""

    def __setstate__(self, state: object) -> None:
        """Forgets its state."""


# training scripts save their options, in which submitit's jobs keep paths (pathlib._local: as Python 3.13 names them)
PATHS = [f"{module}.{kind}Path" for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")]
HARMLESS: list[Any] = [(Inert, name) for name in ("argparse.Namespace", *PATHS)]


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a file, by name, on the CPU, without what training scripts put around them.

    Where a file holds several models side by side, each name begins with that of its model: `teacher.blocks.0.norm1.weight`.

    Raises:
        ValueError: where the file cannot be read, would have to run code to be read, or holds no weights.
    """
    if path.suffix == ".safetensors":
        found: object = _read_safetensors(path)
    elif path.suffix in PICKLES:
        found = _read_pickle(path)
    else:
        raise ValueError(f"{path} is no checkpoint by its name; expected a run folder, .safetensors or {', '.join(PICKLES)}")
    for _ in WRAPPINGS:  # each may be around another; a pickle may also hold itself
        inner = [found[name] for name in WRAPPINGS if isinstance(found.get(name), dict)] if isinstance(found, dict) else []
        found = inner[0] if inner else found
    if isinstance(found, dict) and (models := {name: value for name, value in found.items() if _is_state_dict(value)}):
        found = {f"{model}.{name}": value for model, weights in models.items() for name, value in weights.items()}
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{path} holds no weights by name, but {_kind(found)}")
    if not found:
        raise ValueError(f"{path} holds no weights: it is empty")
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{path} holds {_kind(value)} under {name!r}, where weights have a tensor")
    while prefix := next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in found)), ""):
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def _is_state_dict(value: object) -> bool:
    """Whether a value holds tensors by name and nothing else."""
    return isinstance(value, dict) and bool(value) and all(isinstance(one, Tensor) for one in value.values())


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors, it may be cut off: {_line(error)}") from error


def _read_pickle(path: Path) -> object:
    try:
        # mapped where the format allows: what is not looked at (an optimizer's state, twice the weights) is not read
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle can fail in any way
        refusal = _refusal(path, error)
    raise ValueError(refusal)  # not from torch's error, which tells people to turn the protection off


def _refusal(path: Path, error: Exception) -> str:
    foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
    if foreign:
        return (
            f"{path} holds {foreign[1]}, which only running the file's own code could rebuild; refused. If you trust its writer, "
            "ask for the weights alone as .safetensors"
        )
    detail = "torch.save does not write such" if "weights_only" in str(error) else _line(error)
    return f"{path} cannot be read as a torch checkpoint, it may be damaged or cut off: {detail}"


def _line(error: Exception) -> str:
    """The first sentence of an error, or its kind where it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0]


def _kind(value: object) -> str:
    if isinstance(value, Inert):
        return "an object that is not read"
    return f"a value of type {type(value).__name__}"
