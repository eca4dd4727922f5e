"""Retrieval of the nearest samples of queries by the cosine between their features, and a picture of them.

Shapes: q queries, n samples to search, k neighbours, D values a feature, C channels, s... a sample's axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmm.data import Clips, Images
from mmm.evaluate.features.table import FeatureTable
from mmm.evaluate.loaded_model import describe_data
from mmm.evaluate.plots.image_grid import draw_grid


@dataclass(frozen=True)
class FeatureIndex:
    """Samples and their features.

    Attributes:
        part: the samples.
        table: features of the readable samples. Its `index` holds positions in the part.
    """

    part: Images | Clips
    table: FeatureTable

    def take(self, rows: Tensor) -> FeatureIndex:
        """Returns the index with only these rows, int64 (q,)."""
        table = self.table
        labels = None if table.labels is None else table.labels[rows]
        return FeatureIndex(self.part, FeatureTable(table.values[rows], labels, table.index[rows], table.problems))

    def describe(self, row: int) -> dict[str, Any]:
        """Returns the index, name and label of the sample in a row."""
        index = int(self.table.index[row])
        label = None if self.table.labels is None else int(self.table.labels[row])
        classes = self.part.classes
        called = label if label is None or label < 0 or classes is None else classes[label]
        return {"index": index, "name": self.part.name(index), "label": None if label == -1 else called}


def nearest(queries: Tensor, bank: Tensor, k: int, *, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns the rows of the k nearest samples of each query, int64 (q, k), nearest first, and their cosines, (q, k).

    Args:
        queries: (q, D).
        bank: (n, D).
        k: neighbours per query; fewer if the bank is smaller.
        own: row of each query in the bank, which is excluded from its neighbours, (q,).
    """
    cosines = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T  # (q, n)
    if own is not None:
        cosines = cosines.scatter(1, own[:, None].to(cosines.device), -torch.inf)
    found = cosines.topk(min(k, len(bank) - (own is not None)), dim=1)
    return found.indices.cpu(), found.values.cpu()


def retrieve(queries: FeatureIndex, bank: FeatureIndex, k: int, *, own: Tensor | None = None) -> dict[str, Any]:
    """Finds the nearest samples of each query.

    Args:
        own: row of each query in the bank, int64 (q,), if the queries are part of the bank.

    Returns:
        `queries`: index, name, label and `neighbours` of each query; each neighbour has its `row` in the bank and its `similarity`.
        `same_class`: the share of neighbours with the label of their query, if both have labels of the same classes.

    Raises:
        ValueError: the bank is too small.
    """
    if len(bank.table.index) <= (own is not None):
        raise ValueError(
            f"{bank.part.title} are too few to search: {len(bank.table.index)}; try --test_split train, or --holdout 0.2"
        )
    rows, cosines = nearest(queries.table.values, bank.table.values, k, own=own)
    found = []
    for query in range(len(rows)):
        pairs = zip(rows[query].tolist(), cosines[query].tolist(), strict=True)
        neighbours = [{"row": row, "similarity": cosine, **bank.describe(row)} for row, cosine in pairs]
        found.append({**queries.describe(query), "neighbours": neighbours})
    labels, others = queries.table.labels, bank.table.labels
    same = None
    if labels is not None and others is not None and queries.part.classes == bank.part.classes and (labels >= 0).any():
        same = (others[rows] == labels[:, None])[labels >= 0].cpu().double().mean().item()
    return {"queries": found, "same_class": same}


def draw_neighbours(found: dict[str, Any], queries: FeatureIndex, bank: FeatureIndex, path: Path, title: str) -> Path:
    """Draws a row per query: the query and its neighbours, with labels and similarities. For clips it shows the middle frames."""
    count = len(found["queries"][0]["neighbours"])
    columns = [("query", samples(queries.part, [query["index"] for query in found["queries"]]))]
    captions = [[_words(query) for query in found["queries"]]]
    for place in range(count):
        column = [query["neighbours"][place] for query in found["queries"]]
        columns.append((f"{place + 1}", samples(bank.part, [neighbour["index"] for neighbour in column])))
        captions.append([f"{neighbour['similarity']:.2f} {_words(neighbour)}" for neighbour in column])
    notes = [
        f"Data: {describe_data(bank.part)}. Below each sample: the cosine between its features and the query's, and its label."
    ]
    return draw_grid(columns, path, title=title, notes=notes, captions=captions)


def samples(part: Images | Clips, index: Sequence[int]) -> Tensor:
    """Returns the first view of each sample, as the model gets it but in [0, 1]: (q, C, s...)."""
    pixels, _ = part.eval_views(torch.tensor(index, dtype=torch.int64))
    return pixels[:: part.config.views].float() / 255


def _words(sample: dict[str, Any]) -> str:
    """Returns the label, or the end of the name if there is no label."""
    return Path(sample["name"]).name if sample["label"] is None else str(sample["label"])


def format_neighbours(found: dict[str, Any]) -> str:
    """Returns the neighbours as lines of text."""
    lines = []
    for query in found["queries"]:
        lines.append(f"{query['name']} ({_words(query)})")
        lines += [f"  {near['similarity']:6.3f}  {near['name']} ({_words(near)})" for near in query["neighbours"]]
    if found["same_class"] is not None:
        lines.append(f"{found['same_class']:.1%} of these neighbours have the class of their query")
    return "\n".join(lines)
