"""Reads the tensors in untrusted files without executing code in them.

A `.pth` file is a pickle, which can contain code. torch's restricted unpickler (`weights_only=True`) builds only tensors and
plain values, and refuses the `argparse.Namespace` that official files contain in addition to weights. This protection is kept: the
few harmless classes in such files are read as `Inert`, which stores nothing and does nothing.
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

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")  # .tar: for names such as x.pth.tar, which are not tar archives
WRAPPINGS = ("model", "module", "state_dict", "model_state")  # keys under which training scripts store the weights, possibly nested
PREFIXES = ("module.", "_orig_mod.")  # prefixes of all names after DDP and torch.compile


class Inert:
    """Replaces an object in a file that is not needed."""

    __slots__ = ()

    def __init__(self, *arguments: object) -> None:
        """Ignores the arguments."""

    def __setstate__(self, state: object) -> None:
        """Ignores the state."""


# training scripts save their options, which contain paths in jobs of submitit (pathlib._local: the name in Python 3.13)
PATHS = [f"{module}.{kind}Path" for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")]
HARMLESS: list[Any] = [(Inert, name) for name in ("argparse.Namespace", *PATHS)]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Returns the weights in a file by name, on the CPU, without the other contents of training checkpoints.

    If a file contains several models, each name begins with that of its model: `teacher.blocks.0.norm1.weight`.

    Raises:
        ValueError: the file cannot be read, reading it would execute code, or it contains no weights.
    """
    if path.suffix == ".safetensors":
        found: object = _read_safetensors(path)
    elif path.suffix in PICKLES:
        found = _read_pickle(path)
    else:
        raise ValueError(f"{path} is not a checkpoint by its name; expected a run folder, .safetensors or {', '.join(PICKLES)}")
    for _ in WRAPPINGS:  # they may be nested, but a pickle may contain itself, so that the depth is limited
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
    """Returns whether a value is a dict of tensors."""
    return isinstance(value, dict) and bool(value) and all(isinstance(one, Tensor) for one in value.values())


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors, it may be cut off: {_line(error)}") from error


def _read_pickle(path: Path) -> object:
    try:
        # memory-mapped if the format allows it, so that unused tensors (the optimizer state) are not read
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle can raise any error
        message = _error_message(path, error)
    raise ValueError(message)  # without the error of torch, which suggests disabling the protection


def _error_message(path: Path, error: Exception) -> str:
    foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
    if foreign:
        return (
            f"{path} holds {foreign[1]}, which only running the file's own code could rebuild; refused. If you trust its writer, "
            "ask for the weights alone as .safetensors"
        )
    detail = "torch.save does not write such" if "weights_only" in str(error) else _line(error)
    return f"{path} cannot be read as a torch checkpoint, it may be damaged or cut off: {detail}"


def _line(error: Exception) -> str:
    """Returns the first sentence of an error, or its type if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0]


def _kind(value: object) -> str:
    if isinstance(value, Inert):
        return "an object that is not read"
    return f"a value of type {type(value).__name__}"
