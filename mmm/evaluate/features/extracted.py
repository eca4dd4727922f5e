"""Features from a file that `mmm extract` wrote, and how well they classify.

Shapes: n inputs, V views of each, D values a feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmm.config.diff import differences, flatten
from mmm.data import Problem
from mmm.data.datasets.labelled import check_classes
from mmm.evaluate.features.file_formats import READERS
from mmm.evaluate.features.frozen_eval import RepresentationConfig
from mmm.evaluate.features.knn import nearest_neighbours
from mmm.evaluate.features.logistic_regression import few_label_accuracy
from mmm.evaluate.features.store import read_manifest
from mmm.evaluate.features.table import FeatureTable


@dataclass(frozen=True)
class Extracted:
    """A file of features.

    Attributes:
        path: of the file.
        tables: by layer; of several views the mean.
        identity: what they are of, see `mmm.evaluate.features.extract.identity_of`.
        names: of the inputs, in the tables' order.
    """

    path: Path
    tables: dict[str, FeatureTable]
    identity: dict[str, Any]
    names: list[str]

    @property
    def first(self) -> FeatureTable:
        """Of any layer."""
        return next(iter(self.tables.values()))


def read_features(path: str | Path) -> Extracted:
    """Reads a file of pooled features.

    Raises:
        ValueError: where it is none, or holds all tokens.
    """
    path = Path(path).expanduser()
    if path.suffix not in READERS or not path.is_file():
        unfinished = "; it is unfinished, run mmm extract again" if path.with_name(f"{path.name}.parts").exists() else ""
        raise ValueError(f"{path} is no file of features ({', '.join(READERS)}) as mmm extract writes it{unfinished}")
    manifest = read_manifest(path)
    shapes = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
    if any(len(shape) > 1 for shape in shapes.values()):
        raise ValueError(f"{path} holds all tokens; this needs one feature a sample: extract with --pool mean or class")
    columns = READERS[path.suffix](path, shapes)
    views = int(columns["view"].max()) + 1 if "view" in columns else 1
    labels = columns["label"][::views] if "label" in columns else None
    values = {name: columns[name].unflatten(0, (-1, views)).mean(1) for name in shapes}  # (n V, D) -> (n, D)
    problems = [Problem(**problem) for problem in manifest["problems"]]
    tables = {name: FeatureTable(value, labels, columns["index"][::views], problems) for name, value in values.items()}
    return Extracted(path, tables, manifest["identity"], manifest["names"][::views])


def refuse_others(one: Mapping[str, Any], other: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    """Refuses features that differ in these parts of their identities.

    Raises:
        ValueError: naming what differs.
    """
    first, second = ({name: identity[name] for name in names} for identity in (one, other))
    changed = differences(flatten(first), flatten(second))
    if changed:
        raise ValueError(f"{where} do not fit together: {'; '.join(changed)}")


def judge_extracted(known: Extracted, asked: Extracted, config: RepresentationConfig) -> dict[str, Any]:
    """Judges the layers of two files of one model, as `judge_representation` does models, on the CPU.

    Args:
        known: features whose labels may be used.
        asked: features to score.

    Raises:
        ValueError: where they are of different models, of the same samples, without labels, or without a class in common.
    """
    where = f"{known.path} and {asked.path}"
    refuse_others(known.identity, asked.identity, ("model", "pixels", "features"), where)
    if known.identity["data"]["fingerprint"] == asked.identity["data"]["fingerprint"]:
        raise ValueError(f"{where} are of the same samples, each of which would be its own neighbour; extract another split")
    for one in (known, asked):
        if one.first.labels is None or not (one.first.labels >= 0).any():
            raise ValueError(f"{one.path} holds no labels to judge features by; extract with --label_column")
    check_classes(known.first.labelled("cpu")[1], asked.first.labelled("cpu")[1], str(asked.path))
    tables = {name: (*known.tables[name].labelled("cpu"), *asked.tables[name].labelled("cpu")) for name in known.tables}
    labels = asked.first.labelled("cpu")[1]
    return {
        "train": len(known.first.labelled("cpu")[1]),
        "test": len(labels),
        "classes": len(labels.unique()),
        "largest_class": labels.bincount().max().item() / len(labels),
        "k": config.k,
        "labels_per_class": config.labels_per_class,
        "pool": known.identity["features"]["pool"],
        "neighbours": {name: nearest_neighbours(*table, config.k) for name, table in tables.items()},
        "linear": {name: few_label_accuracy(*table, config.labels_per_class, config.label_seed) for name, table in tables.items()},
        "problems": [problem._asdict() for problem in known.first.problems + asked.first.problems],
    }
