"""Write the features of images or videos to a file: any layers of a model, pooled or all tokens.

mmm extract runs/pretrain-1 --source my_photographs --out features.parquet
mmm extract runs/pretrain-1 --test_split train --layers last 6 12 --pooling class --out train.safetensors
mmm extract videomae.pth --source clips.csv --eval_clips 5 --eval_crops 3 --views all --out clips.parquet
mmm extract videomae.pth --source films --every 2.0 --out windows.parquet      # a clip every two seconds
torchrun --nproc_per_node 8 -m tasks extract runs/pretrain-1 --source /data/imagenet --out imagenet.safetensors

After an interruption, the same command continues. NAME.json beside the file contains the names of the inputs, the unreadable
inputs, and the model and layers of the features. A .safetensors file contains index, label and a tensor for each layer (last,
block_6); a .parquet file contains them as columns.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmm.data import Clips, Images
from mmm.data.datasets.windows import Windows, open_windows
from mmm.evaluate.features.extract import ExtractConfig, extract, identity_of
from mmm.evaluate.features.store import Store, manifest_of
from mmm.evaluate.loaded_model import LoadedModelConfig, describe_data, load_model, open_shown
from mmm.train.config import TrainConfig
from mmm.train.distributed.setup import start

logger = logging.getLogger(__name__)

POSITIONAL = "model"
# seconds that a process waits for the others, which may compute a shard for hours; torchrun ends all processes if one fails
TIMEOUT = 7 * 24 * 3600.0
COVERED = 0.1  # if the clips of evaluation cover a smaller share of the videos, this is reported


@dataclass(frozen=True, kw_only=True)
class Config(ExtractConfig, LoadedModelConfig):
    """Extract features."""

    test_split: str | None = None
    """Samples to read: train or eval (as in training), or the name of a split. None: the evaluation split, or all samples of a
    --source without a split for evaluation."""

    out: str = "features.safetensors"
    """File to write: .safetensors or .parquet."""


def run(config: Config) -> dict[str, Any]:
    """Extracts the missing features, writes the file, and returns the manifest without the names."""
    options: dict[str, Any] = {"batch_size": config.batch_size, "precision": config.precision, "timeout": TIMEOUT}
    accelerator = start(TrainConfig(epochs=1, learning_rate=1.0, **options))
    loaded = load_model(replace(config, device=config.device or str(accelerator.device)))
    part = open_shown(config, loaded.data)
    if config.every is not None:
        if not isinstance(part, Clips):
            raise ValueError(f"--every {config.every} is for videos, and this is a model of images; leave it out")
        part = open_windows(part, config.every)
    model = loaded.model
    features: dict[str, Any] = {
        "layers": list(config.layers),
        "pooling": config.pooling,
        "views": config.views,
        "precision": config.precision,
    }
    features |= {} if config.every is None else {"every": config.every}
    identity = identity_of(model, part) | {"features": features, "shard": config.shard}
    store = Store(Path(config.out), identity, inputs=len(part), shard=config.shard)
    logger.info("%s on %s (%s), %s inputs", loaded.name, loaded.data.source, part.where, f"{len(part):,}")
    found = extract(model, part, config, store, accelerator=accelerator, dtype=config.dtype, batch_size=config.batch_size)
    if accelerator.is_main_process:
        print(describe(found, store.out, part))
    return {name: value for name, value in found.items() if name != "names"} | {"out": config.out}


def describe(found: dict[str, Any], out: Path, part: Images | Clips) -> str:
    """Returns a summary of the file."""
    layers = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in found["shapes"].items())
    lines = [f"{found['rows']:,} rows of {found['inputs']:,} inputs of {describe_data(part)}: {layers}"]
    if others := len(part.table.column) - len(part.rows.unique()):
        other = "train" if part.where.endswith("(held out)") else "eval"
        lines.append(f"only this part was read: {others:,} inputs of the split are in the other one, --test_split {other}")
    if isinstance(part, Clips) and not isinstance(part, Windows) and part.lengths is not None:
        videos, _, read, length = part.lengths.sums.tolist()
        if videos and read < COVERED * length:
            share = f"the clips cover {read / length:.1%} of the videos, which last {length / videos:.0f} s on average"
            lines.append(f"{share}; --every 2.0 reads a clip every two seconds")
    if found["problems"]:
        first = found["problems"][0]
        lines.append(f"{len(found['problems'])} inputs could not be read and were left out ({first['name']}: {first['reason']})")
    return "\n".join([*lines, f"features: {out}", f"manifest: {manifest_of(out)}"])
