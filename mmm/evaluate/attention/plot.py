"""Attention and fusion weights of a decoder over many samples, as numbers, text and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmm.core.checks import CheckedConfig, Positive
from mmm.core.rng import sample_keys
from mmm.data import Clips, Images, Problem
from mmm.data.transforms.crop import normalise
from mmm.evaluate.attention.decoder_attention import READS, SETS, DecoderAttention
from mmm.evaluate.attention.fusion_weights import MapSizes, fusion_of, fusion_weights
from mmm.evaluate.batches import check_read, choose, read_batches
from mmm.evaluate.features.table import inference
from mmm.evaluate.plots.curves import COLOURS, FAINT, INK, new_figure, plain, save_figure
from mmm.model import MaskedModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {"prefix": "class token", "visible": "visible tokens", "itself": "the token itself", "other_hidden": "other hidden tokens"}
SHADES = {"prefix": "#b9c0cc", "visible": COLOURS[0], "itself": COLOURS[4], "other_hidden": COLOURS[1]}
WRITTEN = 16  # largest number of maps for which a heat map contains numbers


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(CheckedConfig):
    """Options of the samples over which attention is measured."""

    samples: Positive | None = 256
    """Samples, chosen by key. None: all."""

    mask_seed: int = 0
    """Random seed for the masks and the choice of samples."""


def measure_attention(
    model: MaskedModel, images: Images | Clips, config: AttentionConfig, *, dtype: torch.dtype | None = None, batch_size: int = 64
) -> dict[str, Any]:
    """Measures the attention of a model's decoder, with masks as in training.

    Args:
        model: on its device.
        images: the part of the data.
        dtype: type for autocast. None: fp32.

    Returns:
        `samples`; `attention`, see `DecoderAttention.result`; `fusion`, see `fusion_weights`, or None; `problems`, the inputs that
        cannot be read.

    Raises:
        ValueError: the model has no decoder with attention, or no sample can be read.
    """
    if model.decoder is None:
        raise ValueError("the model is an encoder without a decoder, so there is no attention to measure; give one with a decoder")
    part, device = choose(images, config.samples, config.mask_seed), next(model.parameters()).device
    data, looks, sizes, problems = part.config.input(), DecoderAttention(), MapSizes(), list[Problem]()
    for batch in read_batches(part, "attention", problems, batch_size=batch_size, alone=True):
        x = normalise(batch.pixels.to(device), data.mean, data.std)
        grid = model.tokenizer.grid(x)
        with inference(model, dtype):
            mask = model.draw_masks(x, sample_keys(config.mask_seed, 0, batch.index).to(device)).trimmed()
            features = model.encoder(model.tokenizer.split(x), grid, mask)
            looks.add(model.decoder, features, mask, grid)
            sizes.add(features)
    check_read(looks.samples > 0, images, problems)
    fusion = fusion_of(model.decoder)
    return {
        "samples": looks.samples,
        "attention": looks.result(),
        "fusion": None if fusion is None else fusion_weights(fusion, sizes),
        "problems": [problem._asdict() for problem in problems],
    }


def format_attention(found: dict[str, Any]) -> str:
    """Returns the means as lines of text."""
    lines = [f"Attention of the predicted tokens, mean over the decoder's layers and {found['samples']:,} samples:"]
    for reads, mean in found["attention"]["mean"].items():
        lines.append(f"  to {READS[reads]}:")
        for name in ("prefix", "visible", "hidden"):
            label, one = {"hidden": "hidden tokens"}.get(name) or NAMES[name], mean["to_one_token"].get(name)
            times = "" if one is None else f"   to one of them {one:.2f} x even attention"
            lines.append(f"    {mean['share'][name]:6.1%}  {label}{times}")
    return "\n".join(lines)


def draw_attention(found: dict[str, Any], path: Path, title: str) -> Path:
    """Draws a bar of shares for each decoder layer, with a mark at the share of visible tokens in even attention."""
    layers = found["attention"]["layers"]
    figure = new_figure(max(6.4, 2.4 + 0.42 * len(layers)), 4.2)
    axes = figure.add_subplot()
    _bars(axes, layers)
    _marks(axes, layers)
    plain(axes, "layer of the decoder", "share of the predicted tokens' attention")
    axes.set_xticks(range(len(layers)), _ticks(layers))
    axes.set_ylim(0, 1)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=INK, fontsize=8)
    figure.suptitle(title, x=0.02, ha="left", fontsize=11, color=INK)
    return save_figure(figure, path)


def _bars(axes: Axes, layers: Sequence[dict[str, Any]]) -> None:
    """Draws vertical bars, with parts in the order of `SETS`."""
    ends = [0.0] * len(layers)
    for name in SETS:
        values = [layer["share"][name] for layer in layers]
        if any(values):
            axes.bar(range(len(layers)), values, bottom=ends, width=0.82, color=SHADES[name], label=NAMES[name])
        ends = [end + value for end, value in zip(ends, values, strict=True)]


def _marks(axes: Axes, layers: Sequence[dict[str, Any]]) -> None:
    """Draws a dashed line across each bar, at the share that even attention would have."""
    for place, layer in enumerate(layers):
        even = layer["evenly"]["prefix"] + layer["evenly"]["visible"]
        if 0 < even < 1:
            label = "even attention: class and visible tokens" if place == 0 else None
            axes.plot([place - 0.41, place + 0.41], [even, even], color=INK, linewidth=1.2, linestyle=(0, (3, 2)), label=label)


def _ticks(layers: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the number of each layer's block, counted from 1, with a + for attention among predicted tokens only."""
    numbers = [next((int(word) + 1 for word in layer["layer"].split(".") if word.isdecimal()), 1) for layer in layers]
    return [f"{number}{'+' if layer['reads'] == 'predicted' else ''}" for number, layer in zip(numbers, layers, strict=True)]


def draw_fusion(fusion: dict[str, Any], path: Path, title: str) -> Path:
    """Draws two heat maps of decoder blocks and encoder blocks: the weights, and the contribution of each map."""
    rows, columns = len(fusion["weights"]), len(fusion["maps"])
    figure = new_figure(max(7.6, 1.6 + (0.84 if columns <= WRITTEN else 0.5) * columns), max(3.2, 1.7 + 0.34 * rows))
    left, right = figure.subplots(1, 2)
    largest = max(abs(value) for row in fusion["weights"] for value in row) or 1.0
    _heat(left, fusion, "weights", "weights, hundredths", {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest})
    _heat(right, fusion, "shares", "share of each map (|weight| x its size), %", {"cmap": "Blues", "vmin": 0.0})
    figure.suptitle(title, x=0.02, ha="left", fontsize=11, color=INK)
    return save_figure(figure, path)


def _heat(axes: Axes, fusion: dict[str, Any], name: str, title: str, style: dict[str, Any]) -> None:
    """Draws a heat map, with numbers in hundredths if they fit."""
    values = torch.tensor(fusion[name])
    axes.imshow(values.numpy(), aspect="auto", **style)
    plain(axes, "encoder block (in: the input of the first)" if fusion["maps"][0] == 0 else "encoder block", "decoder block")
    axes.grid(visible=False)
    axes.set_xticks(range(values.shape[1]), ["in" if number == 0 else str(number) for number in fusion["maps"]])
    axes.set_yticks(range(len(values)), [str(row + 1) for row in range(len(values))])
    axes.set_title(title, fontsize=9, color=FAINT, loc="left")
    if values.shape[1] <= WRITTEN:
        dark = values.abs() > 0.6 * values.abs().max()
        for row, column in ((r, c) for r in range(len(values)) for c in range(values.shape[1])):
            ink = "white" if dark[row, column] else INK
            axes.text(column, row, f"{100 * values[row, column]:.0f}", ha="center", va="center", fontsize=7, color=ink)
