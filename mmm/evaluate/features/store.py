"""Storage of extracted features: shards while they are computed, then one .safetensors or .parquet file with a manifest.

    features.parquet          index, name, label, [view], and a column for each layer
    features.parquet.json     their `identity`, names, classes, problems: see `Store.finish`
    features.parquet.parts/   until the file is finished: identity.json and 00000.safetensors, ...

Every file is written under another name and then renamed, so that a file with its final name is complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmm.config.diff import differences, flatten
from mmm.data import Clips, Images, Problem
from mmm.evaluate.features.file_formats import READERS, ROWS, WRITERS, Rows
from mmm.evaluate.features.table import FeatureTable
from mmm.system.files import replacing, write_json

IDENTITY = "identity.json"


class Store:
    """Features of one model on one part of the data.

    Args:
        out: file to write. Its suffix determines the format.
        identity: plain values; features of another identity are refused.
        inputs: number of inputs of the part.
        shard: number of inputs per shard.

    Raises:
        ValueError: the suffix is not supported.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any], *, inputs: int, shard: int) -> None:
        if out.suffix not in WRITERS:
            raise ValueError(f"--out {out}: the name of a file of features ends in {' or '.join(WRITERS)}")
        self.out, self.inputs, self.shard = out, inputs, shard
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self.parts = out.with_name(f"{out.name}.parts")
        self.shards = -(-inputs // shard)

    def inputs_of(self, number: int) -> tuple[int, int]:
        """Returns the first input of a shard, and the first input after it."""
        return number * self.shard, min((number + 1) * self.shard, self.inputs)

    def missing(self) -> list[int]:
        """Returns the numbers of the shards that are not computed yet; an empty list if the file is finished.

        Raises:
            ValueError: other features exist at this path.
        """
        if self.out.exists():
            self._refuse_others(read_manifest(self.out)["identity"], self.out)
            shutil.rmtree(self.parts, ignore_errors=True)  # exists if the work was interrupted just before its end
            return []
        self.parts.mkdir(parents=True, exist_ok=True)
        known = self.parts / IDENTITY
        if known.exists():
            self._refuse_others(json.loads(known.read_text(encoding="utf-8")), self.parts)
        else:
            write_json(known, self.identity)
        return [number for number in range(self.shards) if not self._path(number).exists()]

    def write(self, number: int, tensors: Mapping[str, Tensor], problems: Sequence[Problem]) -> None:
        """Writes a shard: its rows in the order of the data, and the unreadable inputs."""
        said = {"problems": json.dumps([problem._asdict() for problem in problems])}
        whole = {name: value.contiguous() for name, value in tensors.items()}
        with replacing(self._path(number)) as temporary:
            save_file(whole, temporary, said)

    def finish(self, part: Images | Clips) -> dict[str, Any]:
        """Joins the shards into the file, and writes the manifest.

        Returns:
            The manifest: `identity`; `inputs` and `rows`, their numbers; `shapes`, the shape of a row of each layer; `classes`;
            `problems`, the unreadable inputs; `names`, the input of each row.

        Raises:
            ValueError: no input can be read.
        """
        if self.out.exists():
            return read_manifest(self.out)
        paths = [self._path(number) for number in range(self.shards)]
        problems = [problem for path in paths for problem in json.loads(_metadata(path)["problems"])]
        rows = Rows.of(paths, part.labels())
        if not rows.count:
            raise ValueError(f"not one of {part.title} can be read; the first: {problems[0]['reason']}")
        names = [part.name(index) for index in rows.index.tolist()]
        manifest = {
            "identity": self.identity,
            "inputs": self.inputs,
            "rows": rows.count,
            "shapes": {name: list(shape) for name, shape in rows.shapes.items() if name not in ROWS},
            "classes": None if part.classes is None else list(part.classes),
            "problems": problems,
            "names": names,
        }
        write_json(manifest_of(self.out), manifest)
        with replacing(self.out) as temporary:  # last, because a file that exists must be complete
            WRITERS[self.out.suffix](temporary, rows, names)
        shutil.rmtree(self.parts)
        return manifest

    def _path(self, number: int) -> Path:
        return self.parts / f"{number:05d}.safetensors"

    def _refuse_others(self, found: Mapping[str, Any], where: Path) -> None:
        changed = differences(flatten(found), flatten(self.identity))
        if changed:
            raise ValueError(f"{where} holds other features: {'; '.join(changed)}. Give another --out, or delete it")


@dataclass(frozen=True)
class StoredFeatures:
    """A file of features.

    Attributes:
        path: path of the file.
        tables: features by layer, averaged over the views of a sample.
        identity: model and data of the features, see `mmm.evaluate.features.extract.identity_of`.
        names: names of the inputs, in the tables' order.
    """

    path: Path
    tables: dict[str, FeatureTable]
    identity: dict[str, Any]
    names: list[str]

    @property
    def table(self) -> FeatureTable:
        """The table of the first layer. Labels and indices are the same for all layers."""
        return next(iter(self.tables.values()))


def read_features(path: str | Path) -> StoredFeatures:
    """Reads a file of pooled features.

    Raises:
        ValueError: the path is not a file of features, or the file contains all tokens.
    """
    path = Path(path).expanduser()
    if path.suffix not in READERS or not path.is_file():
        unfinished = "; it is unfinished, run mmm extract again" if path.with_name(f"{path.name}.parts").exists() else ""
        raise ValueError(f"{path} is not a file of features ({', '.join(READERS)}) as mmm extract writes it{unfinished}")
    manifest = read_manifest(path)
    shapes = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
    if any(len(shape) > 1 for shape in shapes.values()):
        raise ValueError(f"{path} holds all tokens; this needs one feature a sample: extract with --pooling mean or class")
    columns = READERS[path.suffix](path, shapes)
    views = int(columns["view"].max()) + 1 if "view" in columns else 1
    labels = columns["label"][::views] if "label" in columns else None
    values = {name: columns[name].unflatten(0, (-1, views)).mean(1) for name in shapes}  # (n V, D) -> (n, D)
    problems = [Problem(**problem) for problem in manifest["problems"]]
    tables = {name: FeatureTable(value, labels, columns["index"][::views], problems) for name, value in values.items()}
    return StoredFeatures(path, tables, manifest["identity"], manifest["names"][::views])


def refuse_others(one: Mapping[str, Any], other: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    """Refuses features whose identities differ in these parts.

    Raises:
        ValueError: the identities differ; the message names the differences.
    """
    first, second = ({name: identity[name] for name in names} for identity in (one, other))
    changed = differences(flatten(first), flatten(second))
    if changed:
        raise ValueError(f"{where} do not fit together: {'; '.join(changed)}")


def manifest_of(out: Path) -> Path:
    """Returns the path of the manifest of a file of features."""
    return out.with_name(f"{out.name}.json")


def read_manifest(out: Path) -> dict[str, Any]:
    """Reads the manifest of a file of features.

    Raises:
        ValueError: there is no manifest, or it cannot be read.
    """
    try:
        return dict(json.loads(manifest_of(out).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"{out} has no manifest beside it ({manifest_of(out).name}), as mmm extract writes it") from None
    except ValueError as error:
        raise ValueError(f"{manifest_of(out)} cannot be read: {error}") from error


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())
