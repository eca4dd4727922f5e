"""Inspect one or two models: layers, attention, predictions, and numbers that test claims of published theory.

    mmm inspect runs/pretrain-1
    mmm inspect runs/pretrain-1 runs/pretrain-2 --samples 512
    mmm inspect runs/pretrain-1 runs/pretrain-1/config.yaml          # compared with random weights
    mmm inspect mae_pretrain_vit_base.pth --source /data/imagenet

Writes inspection.json, the plots, and inspection.html, a page with all of them. Measures that do not apply, for instance without a
decoder or with a hierarchical encoder, are left out and named.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmm.core.checks import Positive
from mmm.core.rng import sample_keys
from mmm.data import Clips, Images
from mmm.data.loading.loader import eval_batches
from mmm.data.transforms.crop import normalise
from mmm.evaluate.batches import choose, spread
from mmm.evaluate.features.table import inference
from mmm.evaluate.inside.claims import claims
from mmm.evaluate.inside.inspection import Inspection, attends
from mmm.evaluate.inside.maps import feature_colours, token_attention
from mmm.evaluate.inside.report import draw_inspection, write_page
from mmm.evaluate.inside.similarity import MinibatchCKA
from mmm.evaluate.loaded_model import LoadedModel, LoadedModelConfig, describe_data, load_model, open_shown
from mmm.evaluate.plots.image_grid import draw_grid
from mmm.model import MaskedModel
from mmm.system.files import write_json

logger = logging.getLogger(__name__)

POSITIONAL = "models"
FEWEST = 4  # smallest number of samples of a batch for unbiased CKA


@dataclass(frozen=True, kw_only=True)
class Config(LoadedModelConfig):
    """Inspect one or two models."""

    models: tuple[str, ...] = ()
    """One or two models: run folders, checkpoints or weights. The config.yaml of a run selects its model with random weights."""

    samples: Positive | None = 256
    """Samples, chosen by key. None: all."""

    batch_size: int = 32
    """Samples that the model processes at once; at least 4."""

    shown: Positive = 6
    """Samples whose features and attention are drawn."""

    token: tuple[int, ...] = ()
    """Position on the grid of the token whose attention is drawn, counted from 0: row and column, for clips preceded by the
    position in time. Empty: the middle token."""

    mask_seed: int = 0
    """Random seed for the masks and for the choice of samples."""

    out: str | None = None
    """Folder for the results. None: `inspection` in the run folder, or in the working directory."""


def run(config: Config) -> dict[str, Any]:
    """Measures the models, draws the plots, and writes the page.

    Raises:
        ValueError: no model or more than two are named, or a batch is too small.
    """
    names = config.models or ((config.model,) if config.model else ())
    if not 1 <= len(names) <= 2:
        raise ValueError(f"{len(names)} models are named; give one or two: mmm inspect runs/a runs/b")
    if config.batch_size < FEWEST:
        raise ValueError(f"--batch_size {config.batch_size} is too small to compare layers; give at least {FEWEST}")
    loaded_models = [load_model(replace(config, model=name)) for name in names]
    part = choose(open_shown(config, loaded_models[0].data), config.samples, config.mask_seed)
    logger.info("%s on %s", " and ".join(loaded.name for loaded in loaded_models), describe_data(part))
    models = [loaded.model for loaded in loaded_models]
    for model in models:
        _place(config.token, model.tokenizer.grid_of(part.config.size))  # raises an error if the position does not exist
    inspections = [Inspection(model, loaded.data.input()) for model, loaded in zip(models, loaded_models, strict=True)]
    across, problems = MinibatchCKA(), []
    for batch in eval_batches(part, part.config, batch_size=config.batch_size):
        problems += [problem._asdict() for problem in batch.problems]
        if len(batch) < FEWEST:
            continue  # the last batch may be too small for an unbiased comparison
        keys = sample_keys(config.mask_seed, 0, batch.index)
        layers: list[list[Tensor]] = []
        for loaded, inspection in zip(loaded_models, inspections, strict=True):
            x = normalise(batch.pixels.to(loaded.device), loaded.data.mean, loaded.data.std)
            with inference(loaded.model, config.dtype):
                layers.append(inspection.add(x, keys.to(loaded.device)))
        if len(layers) == 2:
            across.add(*layers)
    if not inspections[0].samples:
        raise ValueError(f"fewer than {FEWEST} samples of {part.title} can be read, so layers cannot be compared; give more")
    shown = _spread(part, config.shown)
    labels = _labels(loaded_models)
    found = {
        label: inspection.result() | {"data": describe_data(part), "tokens": _tokens(model, shown)}
        for label, inspection, model in zip(labels, inspections, models, strict=True)
    }
    between = across.result().tolist() if len(loaded_models) == 2 else None
    return _write(config, loaded_models, models, found, between, shown, problems)


def _spread(part: Images | Clips, count: int) -> Tensor:
    """Returns the pixels of one view, from 0 to 255, of samples that are evenly spread over a part, because adjacent samples often
    have the same class."""
    config = replace(part.config, workers=0)
    batches = [batch.pixels[:: config.views] for batch in eval_batches(spread(part, count), config, batch_size=config.views)]
    return torch.cat([pixels for pixels in batches if len(pixels)])


def _write(
    config: Config,
    loaded_models: list[LoadedModel],
    models: list[MaskedModel],
    found: dict[str, dict[str, Any]],
    between: list[list[float]] | None,
    shown: Tensor,
    problems: list[dict[str, Any]],
) -> dict[str, Any]:
    """Writes numbers, pictures and the page; prints the claims."""
    folder = Path(config.out) if config.out is not None else (loaded_models[0].run or Path()) / "inspection"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = draw_inspection(found, between, folder)
    for number, (label, model, loaded) in enumerate(zip(found, models, loaded_models, strict=True), start=1):
        path = folder / ("maps.png" if len(models) == 1 else f"maps_{number}.png")
        note = _maps_note(model, config.token, shown)
        _draw_maps(model, loaded, shown, f"{label}: features and attention", path, config.token, note)
        pictures.append((path, f"Features and attention: {label}", note))
    title = f"Inside {' and '.join(found)}"
    page = write_page(title, found, pictures, folder / "inspection.html")
    result = {"models": found, "between": between, "problems": problems, "page": str(page)}
    write_json(folder / "inspection.json", result)
    for label, one in found.items():
        print(f"{label}, {one['samples']:,} samples of {one['data']}:")
        for row in claims(one):
            outcome = {True: "holds", False: "does not hold", None: "not decided"}[row["holds"]]
            print(f"  {row['value']:8.3g}  {outcome:13}  {row['claim']}: {row['formula']} (expected {row['expected']})")
        for what, why in one["left_out"].items():
            print(f"  not measured: {what}; {why}")
    if problems:
        print(f"{len(problems)} inputs could not be read and were left out; the first: {problems[0]['reason']}")
    print(f"page: {page}")
    return result


MAPS = (
    "From left to right: the sample; the three largest principal components of its tokens as colours; the same after the mean over "
    "the samples at each position was subtracted."
)
LOOKS = "Then the attention of the token at {}, in the last block, and over all blocks (rollout)."


def _maps_note(model: MaskedModel, token: tuple[int, ...], x: Tensor) -> str:
    """Returns a sentence for each kind of map."""
    return f"{MAPS} {LOOKS.format(_place(token, model.tokenizer.grid(x)))}" if attends(model.encoder) else MAPS


def _place(token: tuple[int, ...], grid: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the position of the token whose attention is drawn, by default the middle one.

    Raises:
        ValueError: the grid has no such position.
    """
    place = token or tuple(count // 2 for count in grid)
    if len(place) != len(grid) or any(not 0 <= one < count for one, count in zip(place, grid, strict=True)):
        raise ValueError(f"--token {' '.join(map(str, token))} is not on the grid of {grid} tokens; positions count from 0")
    return place


@torch.no_grad()
def _draw_maps(
    model: MaskedModel, loaded: LoadedModel, pixels: Tensor, title: str, path: Path, token: tuple[int, ...], note: str
) -> None:
    """Draws components of features and the attention of one token, one row per sample. Pixels are from 0 to 255."""
    x = normalise(pixels.to(loaded.device), loaded.data.mean, loaded.data.std)
    with inference(model):
        tokens, grid = model.encode(x).tokens, model.tokenizer.grid(x)
        looks = token_attention(model, x, _flat(_place(token, grid), grid)) if attends(model.encoder) else ()
    columns = [("sample", pixels.float() / 255)]
    for name, centred in (("components", False), ("without the place", True)):
        columns.append((name, _as_picture(feature_colours(tokens, centre_places=centred), grid, model.tokenizer.size)))
    for name, weights in zip(("last block", "all blocks"), looks, strict=False):
        shade = (weights / weights.amax(1, keepdim=True)).cpu()[..., None].expand(-1, -1, 3)
        columns.append((name, _as_picture(shade, grid, model.tokenizer.size)))
    draw_grid(columns, path, title=title, notes=[note])


def _as_picture(values: Tensor, grid: tuple[int, ...], token: tuple[int, ...]) -> Tensor:
    """Returns values of tokens as pixels, (B, N, 3) -> (B, 3, s...)."""
    picture = values.unflatten(1, grid).movedim(-1, 1)
    for axis, size in enumerate(token, start=2):
        picture = picture.repeat_interleave(size, axis)
    return picture


def _flat(place: tuple[int, ...], grid: tuple[int, ...]) -> int:
    """Returns the number of a position in the grid's flat order."""
    number = 0
    for one, count in zip(place, grid, strict=True):
        number = number * count + one
    return number


def _tokens(model: MaskedModel, x: Tensor) -> int:
    """Returns the number of tokens of a complete sample in the encoder, including prefix tokens."""
    count = model.encoder.shape.prefix
    product = 1
    for length in model.tokenizer.grid(x):
        product *= length
    return count + product


def _labels(loaded_models: list[LoadedModel]) -> list[str]:
    """Returns a distinct name for each model."""
    names = [loaded.name for loaded in loaded_models]
    names = [f"{name}, random weights" if loaded.step == 0 else name for name, loaded in zip(names, loaded_models, strict=True)]
    return names if len(set(names)) == len(names) else [f"{name} ({number})" for number, name in enumerate(names, start=1)]
