"""Reconstruction gallery: a picture of a few samples (for clips also an animation), and the PSNR over many samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmm.core.checks import CheckedConfig, Positive
from mmm.core.rng import sample_keys
from mmm.data import Clips, Images, Problem
from mmm.data.transforms.crop import normalise
from mmm.evaluate.batches import choose, rank_and_world, read_batches
from mmm.evaluate.evaluator import Column, Context, Evaluator, EvaluatorConfig, evaluators
from mmm.evaluate.features.table import inference
from mmm.evaluate.loaded_model import describe_data
from mmm.evaluate.plots.image_grid import draw_grid
from mmm.evaluate.reconstruction.baselines import BASELINES
from mmm.evaluate.reconstruction.reconstruct import HiddenError, Reconstruction, reconstruct
from mmm.evaluate.reconstruction.video import Columns, animate, strip_of
from mmm.model import MaskedModel

GIVEN = (
    "Brightness and contrast of each predicted token were taken from the ORIGINAL:  "
    "the target is standardised, so a prediction holds neither."
)
OWN = "Every predicted pixel comes from the model; nothing was taken from the original."
SIDE_BY_SIDE = 6  # with this many samples or more, a picture shows two groups side by side


@dataclass(frozen=True, kw_only=True)
class GalleryConfig(CheckedConfig):
    """Options of the samples that are drawn and measured."""

    samples: Positive = 8
    """Samples in the picture, spread evenly over the split."""

    measured: Positive | None = 256
    """Samples, chosen by key, over which the PSNR is measured. None: all."""

    mask_seed: int = 0
    """Random seed for the masks and the choice of samples."""


@evaluators.register("reconstruction")
class ReconstructionGallery(Evaluator):
    """Reconstructions of hidden tokens: a picture of a few samples, and the PSNR over many. The main process does all the work."""

    @dataclass(frozen=True, kw_only=True)
    class Config(EvaluatorConfig, GalleryConfig):
        """Options of the samples that are drawn and measured, and of the interval between evaluations."""

    config: Config
    columns: ClassVar[Mapping[str, Column]] = {"psnr": Column("PSNR", "{:.2f} dB")}

    def why_not(self, model: MaskedModel, context: Context) -> str | None:
        """Rejects a model without a decoder, or with a target other than pixels."""
        return why_not(model)

    def run(self, model: MaskedModel, context: Context) -> dict[str, Any]:
        """Returns the result of `make_gallery`; in processes other than the main one, an empty dict."""
        if rank_and_world()[0] != 0:
            return {}
        masked = MaskedModel(model.tokenizer, context.masker, model.encoder, model.decoder, model.target)
        return make_gallery(
            masked,
            context.test,
            self.config,
            path=context.picture("reconstruction"),
            title=f"{context.heading}: hidden tokens, predicted",
            dtype=context.dtype,
        )

    def figures(self, found: Mapping[str, Any]) -> dict[str, float]:
        """Returns the PSNR of the model's own reconstruction, in dB."""
        return {"psnr": found["psnr"]["model"]} if found else {}

    def format(self, found: Mapping[str, Any]) -> str:
        """Returns a line for each way to fill hidden tokens."""
        return format_gallery(found) if found else ""


def why_not(model: MaskedModel) -> str | None:
    """Returns the reason why a model's predictions cannot be drawn. None: they can be drawn."""
    if model.decoder is None:
        return "the model is an encoder without a decoder, so there is no reconstruction to show; give a model with a decoder"
    if not model.target.shows_pixels:
        config: Any = model.target.config
        return f"target.name {config.name} does not predict pixels, so there is no reconstruction to show"
    return None


def make_gallery(
    model: MaskedModel,
    images: Images | Clips,
    config: GalleryConfig,
    *,
    path: Path | None,
    title: str = "Hidden tokens, predicted",
    dtype: torch.dtype | None = None,
    batch_size: int = 64,
) -> dict[str, Any]:
    """Reconstructs samples (the first view of each video). Each process that calls it does all the work.

    Args:
        model: on its device.
        images: the part of the data.
        path: path of the PNG file. None: no picture, as in processes other than the main one.
        dtype: type for autocast. None: fp32.

    Returns:
        `data`, source and split; `samples`, the number of measured samples; `hidden`, the fraction of hidden tokens;
        `uses_original`; `psnr` by name of the reconstruction, in dB; `problems`, the inputs that could not be read; `picture`, its
        path or None; for clips `animation` and `video` too.

    Raises:
        ValueError: the target's predictions are not pixels, or no sample can be read.
    """
    if reason := why_not(model):
        raise ValueError(reason)
    part = choose(images, config.measured, config.mask_seed)
    count = min(config.samples, len(part))
    chosen = (torch.arange(count) * len(part) // count).tolist()
    error = HiddenError()
    kept: list[Reconstruction] = []
    problems: list[Problem] = []
    for index, batch in _reconstructions(model, part, config.mask_seed, dtype, batch_size, problems):
        error.add([batch])
        kept += [batch.take(row) for row, place in enumerate(index.tolist()) if place in chosen]
    if not kept:
        raise ValueError(f"none of {images.title} that should be shown can be read; first: {problems[0].reason}")
    found = {
        "data": describe_data(images),
        "samples": error.samples,
        "hidden": kept[0].hidden,
        "uses_original": model.target.uses_original,
        "psnr": error.psnr(),
        "problems": [problem._asdict() for problem in problems],
        "picture": None if path is None else str(path),
    }
    if path is not None:
        shown = Reconstruction.cat(kept)
        draw_gallery(shown, found, path, title)
        if shown.original.dim() == 5:
            moving, video = animate(shown.columns, path, title=title, groups=_groups(shown))
            found |= {"animation": str(moving), "video": str(video)}
    return found


def draw_gallery(shown: Reconstruction, found: dict[str, Any], path: Path, title: str) -> Path:
    """Draws the picture, with the results of `make_gallery` below it."""
    columns: Columns = shown.columns
    captions: Sequence[Sequence[str]] = ()
    groups = _groups(shown)
    if shown.original.dim() == 5:
        columns, captions = strip_of(columns)
        groups = groups if len(shown.original) % groups == 0 else 1  # the rows of a clip stay together
    return draw_grid(
        columns,
        path,
        title=title,
        notes=[
            f"Data: {found['data']}.",
            GIVEN if found["uses_original"] else OWN,
            f"PSNR of the hidden tokens of {found['samples']:,} samples:",
        ],
        figures=[(f"{found['psnr'][name]:.1f} dB", words) for name, words in _words(found).items()],
        groups=groups,
        captions=captions,
    )


def _groups(shown: Reconstruction) -> int:
    return 2 if len(shown.original) >= SIDE_BY_SIDE else 1


def format_gallery(found: Mapping[str, Any]) -> str:
    """Returns the results as lines of text."""
    lines = [f"PSNR of the hidden tokens ({found['hidden']:.0%}) of {found['samples']:,} samples, pixels in [0, 1]:"]
    lines += [f"  {found['psnr'][name]:6.2f} dB  {words}" for name, words in _words(found).items()]
    if found["picture"]:
        pictures = [found[name] for name in ("picture", "animation", "video") if name in found]
        lines += [f"{'picture' if len(pictures) == 1 else 'pictures'}: {', '.join(pictures)}"]
        lines += [GIVEN if found["uses_original"] else OWN]
    return "\n".join(lines)


def _words(found: Mapping[str, Any]) -> dict[str, str]:
    """Returns the description of each result."""
    words = {name: text for name, text in BASELINES.items() if name in found["psnr"]}
    return words if found["uses_original"] else words | {"model": "the model"}


def _reconstructions(
    model: MaskedModel, part: Images | Clips, seed: int, dtype: torch.dtype | None, batch_size: int, problems: list[Problem]
) -> Iterator[tuple[Tensor, Reconstruction]]:
    """Yields indices in the part and reconstructions, batch by batch. Appends unreadable inputs to `problems`."""
    device, data, views = next(model.parameters()).device, part.config.input(), part.config.views
    for batch in read_batches(part, "reconstructions", problems, batch_size=batch_size, alone=True):
        x = normalise(batch.pixels[::views].to(device), data.mean, data.std)
        index = batch.index[::views]
        with inference(model, dtype):
            yield index, reconstruct(model, x, data, sample_keys(seed, 0, index).to(device))
