"""What is evaluated: a model from a run folder or from published weights, and the images to evaluate it on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import torch
import yaml

from mmm.checkpoints.load import load
from mmm.checkpoints.run_folder import CONFIG, read_config, run_of
from mmm.config import from_dict
from mmm.data.config import ImagesConfig
from mmm.data.images import Images, find_source, open_images
from mmm.data.source import EVALUATION
from mmm.decoders import SelfAttentionDecoder
from mmm.model import MaskedModel, ModelConfig

PARTS = ("tokenizer", "masker", "encoder", "decoder", "target")


@dataclass(frozen=True, kw_only=True)
class SubjectConfig:
    """Which model, on which images, and how it is computed."""

    model: str | None = None
    """A run folder, a checkpoint or a file of weights in one, or published weights (.pth, .safetensors). A run's config.yaml
    stands for its model untrained."""

    source: str | None = None
    """Images to use, as --data.source of a recipe; none: those of the run."""

    test_split: str | None = None
    """Split of the source to evaluate on; none: the evaluation part, as in training."""

    holdout: float | None = None
    """Share of the images that is for evaluation, where the source has no split for it; none: the run's."""

    image_size: int | None = None
    """Side of the images that the model gets, in pixels; none: the run's, or that of the published weights."""

    image_column: str | None = None
    """The table's column of images; none: the run's, or found."""

    label_column: str | None = None
    """The table's column of labels; none: the run's, or found."""

    workers: int | None = None
    """Processes that read images; none: the run's."""

    device: str | None = None
    """Where to compute, for instance cpu or cuda:1; none: the accelerator that is there, else the CPU."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the model; what is computed from its features is always fp32."""

    batch_size: int = 256
    """Images that the model gets at once."""

    @property
    def dtype(self) -> torch.dtype | None:
        """For autocast."""
        return torch.bfloat16 if self.precision == "bf16" else None


@dataclass(frozen=True)
class Subject:
    """A model to evaluate.

    Attributes:
        trained: on its device; None where only its random initialisation was asked for.
        untrained: the same parts with the run's random initialisation, on the same device.
        data: the images.
        run: the folder that the model is from, or None.
        step: updates that its weights have seen, where a run says so.
    """

    trained: MaskedModel | None
    untrained: MaskedModel
    data: ImagesConfig
    run: Path | None
    step: int | None

    @property
    def name(self) -> str:
        """For titles."""
        step = "" if self.step is None else f", step {self.step:,}"
        return f"{self.run.name}{step}" if self.run else "published weights"


def open_subject(config: SubjectConfig, *, norm_pix: bool | None = None) -> Subject:
    """Loads the model and decides on the images.

    Args:
        norm_pix: see `mmm.load`.

    Raises:
        ValueError: where there is no model, or no images are named.
    """
    if config.model is None:
        raise ValueError("--model is not set; give a run folder (runs/pretrain-1), a checkpoint in one, or published weights")
    path, device = Path(config.model).expanduser(), _device(config.device)
    run, trained, step = run_of(path), None, None
    if path.name == CONFIG:
        parts, step, run = read_config(path)[0], 0, path.parent
    else:
        trained = load(path, norm_pix=norm_pix).to(device)
        parts, step = parts_of(trained), None if run is None else _step(path, run)
    data = _data(config, None if run is None else run / CONFIG, trained)
    untrained = MaskedModel.build(parts, data.input(), seed=_seed(run)).to(device)
    return Subject(trained, untrained, data, run, step)


def parts_of(model: MaskedModel) -> ModelConfig:
    """The choices that a model was built from; an encoder without a decoder gets the smallest."""
    parts: dict[str, Any] = {name: getattr(getattr(model, name), "config", None) for name in PARTS}
    return ModelConfig(**parts | {"decoder": parts["decoder"] or SelfAttentionDecoder.Config(width=32, depth=1, heads=1)})


def open_test(data: ImagesConfig, split: str | None = None) -> Images:
    """The images to score: a split of the source by its name, or the evaluation part."""
    return open_images(replace(data, cache=False), split or "eval")  # each is read once


def open_shown(config: SubjectConfig, data: ImagesConfig) -> Images:
    """The images to show: as `open_test`, but all of a source that the user named and that has no part for evaluation."""
    if config.source is None or config.test_split is not None or set(EVALUATION) & set(find_source(data).splits):
        return open_test(data, config.test_split)
    return open_images(replace(data, cache=False, holdout=0.0), "train")


def open_train(data: ImagesConfig) -> Images:
    """The images whose labels may be used: those that the model is trained on."""
    return open_images(replace(data, cache=False), "train")


def _data(config: SubjectConfig, saved: Path | None, model: MaskedModel | None) -> ImagesConfig:
    """The images of the run, or of the usual normalisation, but for what the user names."""
    if saved is not None:
        data = from_dict(ImagesConfig, yaml.safe_load(saved.read_text(encoding="utf-8"))["data"], "data.")
    else:
        assert model is not None
        encoder: Any = model.encoder
        home = tuple(tokens * token for tokens, token in zip(encoder.home, model.tokenizer.size, strict=True))
        data = ImagesConfig(image_size=(home[-2], home[-1]))
    names = ("source", "holdout", "image_size", "image_column", "label_column", "workers")
    data = replace(data, **{name: value for name in names if (value := getattr(config, name)) is not None})
    if config.source is not None and saved is not None:  # another source has its own names
        data = replace(data, split="train", eval_split=None, image_column=config.image_column, label_column=config.label_column)
    if not data.source:
        raise ValueError("--source is not set, and published weights do not say what to look at; give images")
    return data


def _seed(run: Path | None) -> int:
    """Of the run."""
    return 0 if run is None else int(yaml.safe_load((run / CONFIG).read_text(encoding="utf-8")).get("seed", 0))


def _step(path: Path, run: Path) -> int | None:
    """The step of the checkpoint that a path means."""
    from mmm.train.checkpoint import newest

    folder = path.parent if path.is_file() else path if path.name.startswith("step_") else newest(run / "checkpoints")
    return int(folder.name.removeprefix("step_")) if folder is not None and folder.name.startswith("step_") else None


def _device(name: str | None) -> torch.device:
    if name is None:
        found = torch.accelerator.current_accelerator(check_available=True)
        return found or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used here: {shorten(str(error), 100)}") from error
