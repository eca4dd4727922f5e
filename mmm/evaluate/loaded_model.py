"""A model from a run folder or from published weights, and the images or clips to evaluate it on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import torch

from mmm.config.serialize import read_yaml
from mmm.core.checks import CheckedConfig, Count, Positive, Rate
from mmm.core.types import Input
from mmm.data import Clips, ClipsConfig, DataConfig, Images, ImagesConfig, open_data
from mmm.data.sources.base import EVALUATION
from mmm.data.sources.resolve import find_source
from mmm.decoders import SelfAttentionDecoder
from mmm.evaluate.evaluator import Context
from mmm.evaluate.run_results import output_name, record
from mmm.model import MaskedModel, ModelConfig
from mmm.system.redact import redact
from mmm.train.checkpoint.reader import step_at
from mmm.weights.formats.run import CONFIG, is_average, read_config, read_data, run_of
from mmm.weights.load import compare_pixels, load_masked, masker_without_tokens

PARTS = ("tokenizer", "masker", "encoder", "decoder", "target")
# options that change the data; a result with one of them is not a result of the run itself
OTHER_DATA = ("source", "test_split", "holdout", "image_size", "column", "eval_clips", "eval_crops")


@dataclass(frozen=True, kw_only=True)
class LoadedModelConfig(CheckedConfig):
    """The model, its data, and the device and precision of the computation."""

    model: str | None = None
    """A run folder, a checkpoint or a file of weights in one, or published weights (.pth, .safetensors). The config.yaml of a run
    selects its model with random weights."""

    source: str | None = None
    """Images or videos to use, in the form of --data.source of a recipe. None: those of the run."""

    root: str | None = None
    """Folder from which relative paths in a list file start. None: the folder of the list file, or that of the run."""

    list_columns: tuple[str, ...] = ()
    """Meaning of the columns of a list file, in the form of data.list_columns of a recipe."""

    test_split: str | None = None
    """Split of the source to evaluate on. None: the evaluation split, as in training."""

    holdout: Rate | None = None
    """Share of the data that is held out for evaluation if the source has no split for it. None: that of the run."""

    image_size: Positive | None = None
    """Side of the model's input images or frames in pixels. None: that of the run or of the published weights."""

    column: str | None = None
    """Column of images or videos in a table. None: that of the run, or found by type."""

    label_column: str | None = None
    """Column of labels in a table. None: that of the run, or found by name or type."""

    workers: Count | None = None
    """Number of processes that read the data. None: that of the run."""

    eval_clips: Positive | None = None
    """Number of clips of a video that are averaged. None: that of the run."""

    eval_crops: Positive | None = None
    """Number of crops of a clip that are averaged. None: that of the run."""

    device: str | None = None
    """Device, for instance cpu or cuda:1. None: the accelerator of this machine, else the CPU."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the model. Everything that is computed from its features is always fp32."""

    batch_size: Positive = 256
    """Samples that the model processes at once."""

    @property
    def dtype(self) -> torch.dtype | None:
        """The type for autocast; None: fp32."""
        return torch.bfloat16 if self.precision == "bf16" else None

    @property
    def changes(self) -> dict[str, Any]:
        """Options in which the data differs from that of the model's run, by name."""
        return {name: value for name in OTHER_DATA if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class LoadedModel:
    """A model to evaluate.

    Attributes:
        trained: the trained model, on its device. None: a config.yaml was given, which contains no weights.
        untrained: the same model with the random initialisation of the run, on the same device.
        data: the images or clips.
        path: path of the model, as it was given.
        run: folder of the run that the model is from, or None.
        step: number of updates of its weights. None: not known.
    """

    trained: MaskedModel | None
    untrained: MaskedModel
    data: DataConfig
    path: Path
    run: Path | None
    step: int | None

    @property
    def model(self) -> MaskedModel:
        """The trained model, or the untrained one if a config.yaml was given."""
        return self.trained or self.untrained

    @property
    def device(self) -> torch.device:
        """Device of the models."""
        return next(self.untrained.parameters()).device

    @property
    def title(self) -> str:
        """Name of the run, or of the file of weights."""
        return self.run.name if self.run else self.path.name

    @property
    def name(self) -> str:
        """The title with the step."""
        return self.title if self.step is None else f"{self.title}, step {self.step:,}"

    def check_pixels(self, data: Input) -> None:
        """Compares the pixels of other data with those of the model's training. Published weights with another normalisation get a
        warning.

        Raises:
            ValueError: the model's run had another normalisation, or the model another number of channels.
        """
        if self.run is not None:
            data.check_trained_with(self.data.input(), "the model")
        compare_pixels(self.model, data, str(self.path))

    def context(self, config: LoadedModelConfig) -> Context:
        """Returns the context for evaluations of this model. Pictures are written to the run folder, or to the working
        directory."""
        untrained = self.untrained
        return Context(
            data=_uncached(self.data),
            masker=self.model.masker,
            device=self.device,
            title=self.title,
            untrained=lambda: untrained,
            pictures=self.run / "pictures" if self.run else Path(),
            changes=config.changes,
            step=self.step,
            batch_size=config.batch_size,
            dtype=config.dtype,
            test_split=config.test_split,
        )

    def output(self, kind: str, changes: Mapping[str, Any], suffix: str = ".png") -> Path:
        """Returns the path of a result: in the pictures of the run, or in the working directory for weights without a run.

        The name contains the changed options: reconstruction_00000500.png shows the data of the run,
        reconstruction_00000500_source-my_images_ratio-0.9.png shows other data with another ratio.
        """
        kind = kind if self.run else f"{kind}_{self.path.stem}"
        return (self.run / "pictures" if self.run else Path()) / f"{output_name(kind, self.step, changes)}{suffix}"

    def record(self, kind: str, found: Mapping[str, Any], changes: Mapping[str, Any]) -> Path | None:
        """Appends a result to the evaluations of the run, and returns the file. None: the weights do not come from a run."""
        if self.run is None or self.trained is None or self.step is None:
            return None
        return record(self.run, kind, self.step, found, changes, averaged=is_average(self.path))


def load_model(config: LoadedModelConfig, *, norm_pix: bool | None = None, source_flag: str = "--source") -> LoadedModel:
    """Loads the model, and determines its data.

    Args:
        norm_pix: see `mmm.load`.
        source_flag: the flag of the task that names the source, for messages.

    Raises:
        ValueError: there is no model, or no data is given.
    """
    if config.model is None:
        raise ValueError("--model is not set; give a run folder (runs/pretrain-1), a checkpoint in one, or published weights")
    path, device = Path(config.model).expanduser(), choose_device(config.device)
    run, trained, step = run_of(path), None, None
    if path.name == CONFIG:
        parts, step, run = read_config(path)[0], 0, path.parent
    else:
        trained = load_masked(path, norm_pix=norm_pix).to(device)
        parts, step = model_config(trained), None if run is None else step_at(path, run)
    data = _data(config, None if run is None else run / CONFIG, trained, source_flag)
    seed = 0 if run is None else int(read_yaml((run / CONFIG).read_text(encoding="utf-8")).get("seed", 0))
    untrained = MaskedModel.build(parts, data.input(), seed=seed).to(device)
    return LoadedModel(trained, untrained, data, path, run, step)


def model_config(model: MaskedModel) -> ModelConfig:
    """Returns the config of a model. An encoder without a decoder gets the config of a very small decoder, and another masker if
    the encoder has no mask token, which some backbones cannot have."""
    parts: dict[str, Any] = {name: getattr(getattr(model, name), "config", None) for name in PARTS}
    if model.decoder is None and model.encoder.mask_token is None:
        parts["masker"] = masker_without_tokens(model.encoder)
    return ModelConfig(**parts | {"decoder": parts["decoder"] or SelfAttentionDecoder.Config(width=32, depth=1, heads=1)})


def open_test(data: DataConfig, split: str | None = None) -> Images | Clips:
    """Opens the samples to score: the named split of the source, or the evaluation split."""
    return open_data(_uncached(data), split or "eval")


def open_shown(config: LoadedModelConfig, data: DataConfig) -> Images | Clips:
    """Opens the samples to show: those of `open_test`, or all samples if the user gave a source without an evaluation split."""
    if config.source is None or config.test_split is not None or set(EVALUATION) & set(find_source(data).splits):
        return open_test(data, config.test_split)
    return open_data(replace(_uncached(data), holdout=0.0), "train")


def describe_data(part: Images | Clips) -> str:
    """Returns the names of source and split, for pictures."""
    return redact(f"{part.config.source}, {part.where}")


def open_train(data: DataConfig) -> Images | Clips:
    """Opens the training samples, whose labels may be used."""
    return open_data(_uncached(data), "train")


def _uncached(data: DataConfig) -> DataConfig:
    """Returns the same data without a cache, because each sample is read once."""
    return replace(data, cache=False) if isinstance(data, ImagesConfig) else data


def _data(config: LoadedModelConfig, saved: Path | None, model: MaskedModel | None, source_flag: str) -> DataConfig:
    """Returns the data of the run or of the weights, with the options of the user."""
    data = data_of_weights(model) if saved is None else read_data(saved)
    names = ["source", "root", "holdout", "image_size", "label_column", "workers"]
    names += ["eval_clips", "eval_crops"] if isinstance(data, ClipsConfig) else []
    values = {name: value for name in names if (value := getattr(config, name)) is not None}
    column = data.medium.flag.removeprefix("data.")
    if config.column is not None:
        values[column] = config.column
    if config.source is not None and saved is not None:  # another source has its own splits and columns
        values |= {"eval_split": None, "eval_source": None, "root": config.root, "list_columns": ()}
        values |= {"split": "train", column: config.column, "label_column": config.label_column}
    if config.list_columns:
        values["list_columns"] = config.list_columns
    for name in ("eval_clips", "eval_crops"):
        if getattr(config, name) is not None and name not in values:
            raise ValueError(f"--{name} is for videos, and this is a model of images")
    data = replace(data, **values)
    if not data.source:
        raise ValueError(f"{source_flag} is not set, and published weights do not state a source; give {data.medium.noun}")
    return data


def data_of_weights(model: MaskedModel | None) -> DataConfig:
    """Returns the size and normalisation of the samples that published weights were trained on, and how their clips were chosen."""
    assert model is not None
    assert model.data is not None
    data = model.data
    *frames, height, width = data.size
    pixels: Any = {"image_size": (height, width), "channels": data.channels, "mean": data.mean, "std": data.std}
    if not frames:
        return ImagesConfig(**pixels)
    sampling = {name: value for name in ("stride", "fps", "sampling") if (value := getattr(data, name)) is not None}
    return ClipsConfig(**pixels, frames=frames[0], **sampling)


def choose_device(name: str | None) -> torch.device:
    """Returns the device of this name. None: the accelerator of this machine, else the CPU."""
    if name is None:
        found = torch.accelerator.current_accelerator(check_available=True)
        return found or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used here: {shorten(str(error), 100)}") from error
