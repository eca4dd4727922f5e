"""Find the nearest images or videos of queries by the features of a model: a PNG grid with labels and similarities, and JSON.

mmm retrieve runs/pretrain-1
mmm retrieve runs/pretrain-1 --source my_photographs --queries my_queries --k 8 --out found.png
mmm retrieve runs/pretrain-1 --source /data/imagenet --features imagenet.safetensors --layer 6

Without --queries, some of the searched samples are the queries. Clips are shown by their middle frames.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mmm.core.checks import Positive
from mmm.data import Clips, Images
from mmm.evaluate.batches import choose, choose_rows
from mmm.evaluate.features.extract import ExtractConfig, identity_of, layer_name, layered
from mmm.evaluate.features.retrieval import FeatureIndex, draw_neighbours, format_neighbours, retrieve
from mmm.evaluate.features.store import read_features, refuse_others
from mmm.evaluate.features.table import FeatureTable, extract_features
from mmm.evaluate.loaded_model import LoadedModel, LoadedModelConfig, load_model, open_shown
from mmm.system.files import write_json

logger = logging.getLogger(__name__)

POSITIONAL = "model"
Pooling = Literal["mean", "class"]


@dataclass(frozen=True, kw_only=True)
class Config(LoadedModelConfig):
    """Retrieve samples."""

    queries: str | None = None
    """Source of the queries, in the form of --source. None: some of the searched samples."""

    samples: Positive = 8
    """Number of queries, chosen by key."""

    k: Positive = 6
    """Number of nearest samples per query."""

    pooling: Pooling | None = None
    """Feature of a sample: the mean of its tokens, or the class token. None: that of the file of features, or the mean."""

    layer: str = "last"
    """Layer whose features are compared: last, or the number of a block."""

    features: str | None = None
    """File of features of the searched samples from mmm extract. None: the features are computed."""

    query_seed: int = 0
    """Random seed for the choice of queries."""

    out: str | None = None
    """PNG file to write, with a JSON file of the same name. None: a file in `pictures` of the run folder, or in the working
    directory for weights without a run."""


def run(config: Config) -> dict[str, Any]:
    """Finds the neighbours, prints and draws them, and writes the results."""
    loaded = load_model(config)
    part = open_shown(config, loaded.data)
    logger.info("%s on %s (%s)", loaded.name, loaded.data.source, part.where)
    bank, pooling = search_in(config, loaded, part)
    own = None if config.queries is not None else choose_rows(len(bank.table.index), config.samples, config.query_seed)
    queries = query_index(config, loaded, pooling) if own is None else bank.take(own)
    found = retrieve(queries, bank, config.k, own=own)
    changes = config.changes | ({} if config.queries is None else {"queries": config.queries})
    path = Path(config.out) if config.out is not None else loaded.output("retrieval", changes)
    draw_neighbours(found, queries, bank, path, f"{loaded.name}: nearest by {layer_name(config.layer)}")
    found |= {"model": config.model, "source": loaded.data.source, "layer": config.layer, "pooling": pooling, "picture": str(path)}
    write_json(path.with_suffix(".json"), found)
    print(f"{format_neighbours(found)}\npicture: {path}, with {path.with_suffix('.json')}")
    return found


def search_in(config: Config, loaded: LoadedModel, part: Images | Clips) -> tuple[FeatureIndex, Pooling]:
    """Returns the samples to search, with computed or stored features, and the pooling of their tokens.

    Raises:
        ValueError: the features in the file come from another model or other samples.
    """
    if config.features is None:
        pooling = config.pooling or "mean"
        return FeatureIndex(part, features_of(config, loaded, part, pooling)), pooling
    file = read_features(config.features)
    own = identity_of(loaded.model, part)
    refuse_others(file.identity, own, ("model", "data", "pixels"), f"{config.features} and this model and source")
    name, pooling = layer_name(config.layer), file.identity["features"]["pooling"]
    if name not in file.tables:
        raise ValueError(f"--layer {config.layer}: {config.features} holds {', '.join(file.tables)}")
    if config.pooling not in (None, pooling):
        raise ValueError(f"--pooling {config.pooling}: {config.features} was extracted with {pooling}; leave it out")
    return FeatureIndex(part, file.tables[name]), pooling


def query_index(config: Config, loaded: LoadedModel, pooling: Pooling) -> FeatureIndex:
    """Returns the queries from another source."""
    names: dict[str, Any] = dict.fromkeys(("eval_split", "eval_source", "root"))
    names |= {"source": config.queries, "split": "train", "label_column": config.label_column}
    names[loaded.data.medium.flag.removeprefix("data.")] = config.column
    every = open_shown(replace(config, source=config.queries, test_split=None), replace(loaded.data, **names))
    part = choose(every, config.samples, config.query_seed)
    return FeatureIndex(part, features_of(config, loaded, part, pooling))


def features_of(config: Config, loaded: LoadedModel, part: Images | Clips, pooling: Pooling) -> FeatureTable:
    """Computes the features of one layer."""
    model = loaded.model
    make, name = layered(model, ExtractConfig(layers=(config.layer,), pooling=pooling), config.dtype), layer_name(config.layer)
    device = next(model.parameters()).device
    return extract_features(part, {name: lambda x: make(x)[name]}, device=device, batch_size=config.batch_size)[name]
