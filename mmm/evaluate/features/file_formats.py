"""Joins shards of features into one file, with one tensor of one shard in memory at a time.

Shapes: n rows of all shards, s... a row's values of one layer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

ROWS = ("index", "view", "time")  # tensors of a shard that are not layers; time is in seconds
KINDS = {torch.int64: "I64", torch.float32: "F32"}  # names of types in safetensors


@dataclass(frozen=True)
class Rows:
    """The rows of all shards.

    Attributes:
        paths: paths of the shards that have rows, in order.
        counts: number of rows of each shard.
        shapes: shape of a row of each tensor, by name.
        index: input of each row, int64 (n,).
        labels: label of each row, int64 (n,), or None.
    """

    paths: list[Path]
    counts: list[int]
    shapes: dict[str, tuple[int, ...]]
    index: Tensor
    labels: Tensor | None

    @classmethod
    def of(cls, paths: Sequence[Path], labels: Tensor | None) -> Rows:
        """Reads the shapes and indices of shards. The labels (N,) are those of all inputs."""
        kept, indices = [], [torch.empty(0, dtype=torch.int64)]
        shapes: dict[str, tuple[int, ...]] = {}
        for path in paths:
            with safe_open(path, "pt") as file:
                if "index" in file.keys():  # noqa: SIM118 (the file is not a mapping); a shard without `index` has no readable input
                    kept.append(path)
                    indices.append(file.get_tensor("index"))
                    shapes = {name: tuple(file.get_slice(name).get_shape()[1:]) for name in file.keys()}  # noqa: SIM118
        index = torch.cat(indices)
        return cls(kept, [len(one) for one in indices[1:]], shapes, index, None if labels is None else labels[index])

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.index)

    @property
    def layers(self) -> list[str]:
        """The names of the layers."""
        return [name for name in self.shapes if name not in ROWS]

    def columns(self) -> dict[str, tuple[torch.dtype, Iterator[Tensor]]]:
        """Returns the type of each column, and an iterator over its rows, shard by shard."""
        found: dict[str, tuple[torch.dtype, Iterator[Tensor]]] = {"index": (torch.int64, iter([self.index]))}
        if self.labels is not None:
            found["label"] = (torch.int64, iter([self.labels]))
        if "view" in self.shapes:
            found["view"] = (torch.int64, self._read("view"))
        if "time" in self.shapes:
            found["time"] = (torch.float32, self._read("time"))
        return found | {name: (torch.float32, self._read(name)) for name in self.layers}

    def _read(self, name: str) -> Iterator[Tensor]:
        for path in self.paths:
            with safe_open(path, "pt") as file:
                yield file.get_tensor(name)


def write_safetensors(path: Path, rows: Rows, names: Sequence[str]) -> None:
    """Writes one tensor per column. Names are only in the manifest, because the format cannot store text.

    The file consists of the length of the header (8 bytes, little endian), the header as JSON, and the bytes of the tensors.
    """
    header: dict[str, Any] = {}
    start = 0
    columns = rows.columns()
    for name, (dtype, _) in columns.items():
        shape = [rows.count, *rows.shapes.get(name, ())]
        end = start + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": KINDS[dtype], "shape": shape, "data_offsets": [start, end]}
        start = end
    said = json.dumps(header).encode()
    said += b" " * (-len(said) % 8)
    with path.open("wb") as file:
        file.write(len(said).to_bytes(8, "little") + said)
        for _, tensors in columns.values():
            for tensor in tensors:
                file.write(np.ascontiguousarray(tensor.numpy()).tobytes())


def write_parquet(path: Path, rows: Rows, names: Sequence[str]) -> None:
    """Writes one row per input (or view), the layers as lists of fixed length, one row group per shard."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = rows.columns()
    whole = {name: next(columns.pop(name)[1]) for name in ("index", "label") if name in columns}
    fields = (
        [("index", pa.int64()), ("name", pa.string())]
        + [(name, pa.int64()) for name in ("label", "view")]
        + [("time", pa.float32())]
    )
    fields = [field for field in fields if field[0] in {"index", "name", *whole, *columns}]
    fields += [(name, pa.list_(pa.float32(), math.prod(rows.shapes[name]))) for name in rows.layers]
    schema, start = pa.schema(fields), 0
    with parquet.ParquetWriter(path, schema) as file:
        for count in rows.counts:
            here = slice(start, start := start + count)
            table: dict[str, Any] = {name: value[here].numpy() for name, value in whole.items()} | {"name": list(names[here])}
            for name, (_, tensors) in columns.items():
                value = next(tensors).numpy()
                table[name] = value if name in ROWS else pa.FixedSizeListArray.from_arrays(value.reshape(-1), value[0].size)
            file.write_table(pa.table({name: table[name] for name in schema.names}, schema=schema))


def read_parquet(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Reads all columns except the names, the layers in their shapes."""
    from pyarrow import parquet

    table = parquet.read_table(path)
    found = {}
    for name in table.column_names:
        if name != "name":
            column = table[name].combine_chunks()
            values = np.array(column.flatten() if name in shapes else column)
            found[name] = torch.from_numpy(values).view(table.num_rows, *shapes.get(name, ()))
    return found


WRITERS: dict[str, Callable[[Path, Rows, Sequence[str]], None]] = {".safetensors": write_safetensors, ".parquet": write_parquet}
READERS: dict[str, Callable[[Path, dict[str, tuple[int, ...]]], dict[str, Tensor]]] = {
    ".safetensors": lambda path, shapes: load_file(path),
    ".parquet": read_parquet,
}
