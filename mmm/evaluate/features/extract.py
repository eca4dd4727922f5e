"""Features of a data set in a file: any layers of an encoder, pooled or all tokens. Finished shards are kept if the work is
interrupted.

The inputs and batches of a shard depend only on its number, so that its bits do not depend on the process that computes it.

Shapes: b inputs, V views of each, C channels, R prefix tokens, N tokens, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mmm.config.serialize import to_dict
from mmm.core.checks import AboveZero, CheckedConfig, Positive
from mmm.data import Clips, Images, Problem, eval_batches
from mmm.data.datasets.windows import Windows
from mmm.data.transforms.crop import normalise
from mmm.evaluate.features.store import Store
from mmm.evaluate.features.table import inference
from mmm.evaluate.protocol import sampling_of, weights_fingerprint
from mmm.model import MaskedModel
from mmm.train.distributed.processes import on_main

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

Layered = Callable[[Tensor], dict[str, Tensor]]  # normalised (B, C, s...) -> by layer (B, ...)
LAST = "last"


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(CheckedConfig):
    """The features to extract, and the size of a shard."""

    layers: tuple[str, ...] = (LAST,)
    """Layers: last (after the final norm, if there is one), or numbers of blocks; 0 is the input of the first block."""

    pooling: Literal["mean", "class", "tokens"] = "mean"
    """Feature of a sample: the mean of its tokens, the class token, or all tokens, the class token first."""

    views: Literal["mean", "all"] = "mean"
    """Features of a video: the mean over its clips and crops, or a row for each of them."""

    every: AboveZero | None = None
    """Seconds between the starts of sliding windows over whole videos; each window is a row with its time. None: the clips of
    evaluation (eval_clips)."""

    shard: Positive = 4096
    """Inputs per shard. An interruption loses at most one unfinished shard per process."""

    def validate(self) -> None:
        wrong = [layer for layer in self.layers if layer != LAST and not layer.isdecimal()]
        if wrong or not self.layers:
            raise ValueError(f"layers {' '.join(wrong) or 'is empty'}: give {LAST}, or numbers of blocks, for instance {LAST} 6 12")


def layer_name(layer: str) -> str:
    """Returns the name of a layer in a file: last, block_6."""
    return layer if layer == LAST else f"block_{int(layer)}"


def layered(model: MaskedModel, config: ExtractConfig, dtype: torch.dtype | None = None) -> Layered:
    """Returns a function that computes the features of each layer, by its name in the file: fp32 (B, D), or (B, R + N, D) with all
    tokens.

    Raises:
        ValueError: the encoder has no such layer, or no class token.
    """
    depth, prefix = model.encoder.shape.depth, model.encoder.shape.prefix
    first = model.encoder.shape.class_tokens
    blocks = tuple(sorted({int(layer) for layer in config.layers if layer != LAST}))
    if blocks and blocks[-1] > depth:
        raise ValueError(f"layers {blocks[-1]}: the encoder has {depth} blocks; give {LAST}, or numbers from 0 to {depth}")
    if config.pooling == "class" and not first:
        raise ValueError("pooling class needs a class token, and this encoder has none; use mean")

    def extract(x: Tensor) -> dict[str, Tensor]:
        tokenizer = model.tokenizer
        with inference(model, dtype):
            features = model.encoder(tokenizer.split(x), tokenizer.grid(x), None, blocks=blocks)
        found = {f"block_{number}": features.blocks[number].float() for number in blocks}  # (B, R + N, D)
        found |= {LAST: features.last.float()} if LAST in config.layers else {}
        if config.pooling == "tokens":
            return found
        return {
            name: value[:, slice(first) if config.pooling == "class" else slice(prefix, None)].mean(1)
            for name, value in found.items()
        }

    return extract


def identity_of(model: MaskedModel, part: Images | Clips) -> dict[str, Any]:
    """Returns plain values that identify features: they depend on the model, the data, and the way in which samples are cropped."""
    data = part.config
    clips = {"eval_clips": getattr(data, "eval_clips", 1), "eval_crops": getattr(data, "eval_crops", 1)}
    names = ("frames", "stride", "fps", "sampling")
    clips |= {name: value for name, value in sampling_of(data).items() if name in names}
    pixels = {"size": list(data.size), "channels": data.channels, "mean": list(data.mean), "std": list(data.std)}
    encoder = {"weights": weights_fingerprint(model.encoder), **to_dict(model.encoder.config)}
    return {
        "model": {"tokenizer": to_dict(model.tokenizer.config), "encoder": encoder},
        "data": {"fingerprint": part.fingerprint, "where": part.where, "samples": len(part)},
        "pixels": pixels | clips,
    }


def extract(
    model: MaskedModel,
    part: Images | Clips,
    config: ExtractConfig,
    store: Store,
    *,
    accelerator: Accelerator,
    dtype: torch.dtype | None = None,
    batch_size: int = 256,
) -> dict[str, Any]:
    """Computes the missing shards, a share of them in each process. The main process then joins all shards into one file.

    Args:
        model: on its device.
        part: the samples. Each input is read once; unreadable inputs are left out.
        store: the file to write, for this model and this data.
        dtype: type for autocast. None: fp32.
        batch_size: number of views per process and batch.

    Returns:
        The manifest, see `mmm.evaluate.features.store`.

    Raises:
        ValueError: the store contains other features, or no input can be read.
    """
    make = layered(model, config, dtype)
    device = next(model.parameters()).device
    missing = on_main(accelerator, store.missing)
    logger.info("%d of %d shards are missing", len(missing), store.shards)
    for number in missing[accelerator.process_index :: accelerator.num_processes]:
        first, end = store.inputs_of(number)
        tensors, problems = _features(part, first, end, make, config, device, batch_size)
        store.write(number, tensors, problems)
        logger.info("shard %d of %d: inputs %d to %d", number + 1, store.shards, first, end - 1)
    accelerator.wait_for_everyone()
    return on_main(accelerator, lambda: store.finish(part))


def _features(
    part: Images | Clips, first: int, end: int, make: Layered, config: ExtractConfig, device: torch.device, batch_size: int
) -> tuple[dict[str, Tensor], list[Problem]]:
    """Computes the rows of a shard (`index`, `view` if there are several, `time` of windows, the layers). Also returns unreadable
    inputs."""
    data, views = part.config, part.config.views
    found: dict[str, list[Tensor]] = {}
    problems: list[Problem] = []
    for batch in eval_batches(part.subset(torch.arange(first, end)), data, batch_size=batch_size):
        problems += [problem._replace(index=problem.index + first) for problem in batch.problems]
        if not len(batch):
            continue
        layers = make(normalise(batch.pixels.to(device, non_blocking=True), data.mean, data.std))
        if config.views == "mean":
            layers = {name: value.unflatten(0, (-1, views)).mean(1) for name, value in layers.items()}  # (b V, ...) -> (b, ...)
            rows = {"index": batch.index[::views] + first}
        else:
            rows = {"index": batch.index + first, "view": torch.arange(views).repeat(len(batch) // views)}
        if isinstance(part, Windows):
            rows["time"] = part.times[rows["index"]].float()
        for name, value in (rows | layers).items():
            found.setdefault(name, []).append(value.cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}, problems
