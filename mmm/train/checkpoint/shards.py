"""Tensors in files, whole or in shards: each process of a sharded model writes its own rows.

Shapes: R rows of a tensor, divided into P parts in torch's way: each has ceil(R / P) rows, the last parts have fewer or none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")


def rows_of(rows: int, part: int, parts: int) -> tuple[int, int]:
    """Returns the first row of a part, and the row after its last one."""
    each = -(-rows // parts)
    return min(rows, part * each), min(rows, (part + 1) * each)


def file_name(name: str, part: int, parts: int) -> str:
    """Returns the name of the file of one process: model.safetensors, or model-00001-of-00002.safetensors."""
    return f"{name}.safetensors" if parts == 1 else f"{name}-{part + 1:05d}-of-{parts:05d}.safetensors"


def stem_of(path: Path) -> str:
    """Returns the name of the values in a file: "model" for both forms."""
    shard = SHARD.fullmatch(path.stem)
    return path.stem if shard is None else shard[1]


def open_tensors(paths: Sequence[Path], shards: Mapping[str, Any]) -> dict[str, Mapping[str, Tensor]]:
    """Opens the tensors of a checkpoint's files, by stem and name. Files are memory-mapped.

    Args:
        paths: the files, in the order of their parts.
        shards: the rows of each part from state.json: {"model": {"encoder.norm.weight": [384, 384], ...}, ...}.
    """
    files: dict[str, list[dict[str, Tensor]]] = {}
    for path in paths:
        files.setdefault(stem_of(path), []).append(load_file(path))
    return {stem: Joined(parts, shards.get(stem, {})) if stem in shards else parts[0] for stem, parts in files.items()}


class Joined(Mapping[str, Tensor]):
    """Tensors whose rows are in several files, in order. Each tensor is joined when it is accessed."""

    def __init__(self, parts: Sequence[Mapping[str, Tensor]], shards: Mapping[str, Sequence[int]]) -> None:
        self.parts, self.shards = parts, shards
        self.names = list(dict.fromkeys(name for part in parts for name in part))

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shards:
            return self.parts[0][name]
        pieces = [part[name] for part, rows in zip(self.parts, self.shards[name], strict=True) if rows]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
