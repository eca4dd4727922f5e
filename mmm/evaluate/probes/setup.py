"""Setup of a probe: a frozen model, and labelled samples for training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmm.classifier import HeadConfig
from mmm.core.checks import AboveZero, Rate
from mmm.core.registry import PartConfig
from mmm.data import Batch, DataConfig, ImagesConfig
from mmm.data.datasets.labelled import LabelledSplits, open_labelled_splits
from mmm.data.loading.loader import prepare
from mmm.evaluate.features.table import inference
from mmm.evaluate.loaded_model import LoadedModel, LoadedModelConfig, load_model
from mmm.evaluate.probes.heads import Optimizer
from mmm.model import MaskedModel
from mmm.pools import MeanPool
from mmm.train.config import RunConfig, TrainConfig
from mmm.train.distributed.setup import precision_of

if TYPE_CHECKING:
    from accelerate import Accelerator

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(RunConfig):
    """Options of a frozen model, and of the training of heads on it."""

    model: str | None = None
    """The pretrained model: a run folder, a checkpoint or a file of weights in one, or published weights. The config.yaml of a run
    selects its model with random weights."""
    data: DataConfig = field(default_factory=ImagesConfig)
    """Options of the samples. If `source` is None, the source, splits and columns are those of the model's run."""
    pool: PartConfig = MeanPool.Config()
    head: HeadConfig = HeadConfig()
    train: TrainConfig = TrainConfig(epochs=10, batch_size=256, learning_rate=0.1)
    """Training of the heads. micro_batch_size is the number of samples that the encoder processes at once."""
    optimizer: Optimizer = "lars"
    """Optimizer: lars, with the trust ratio on matrices only, or adamw."""
    momentum: Rate = 0.9
    """Momentum of LARS."""
    rates: tuple[AboveZero, ...] = (1.0,)
    """Learning rates that are tried at once, as multiples of train.learning_rate. The accuracy on held-back samples chooses one.
    The logged loss is the sum of the losses of all rates."""
    held_back: Rate = 0.0
    """Share of the training samples that is held back to choose the learning rate. Needed if there are several rates."""
    test_split: str | None = None
    """Split of the source to score. None: the evaluation split, as in training."""

    def validate(self) -> None:
        if not self.rates:
            raise ValueError("--rates is empty: give one multiple of train.learning_rate, or several")
        if len(self.rates) > 1 and self.held_back == 0:
            raise ValueError(f"{len(self.rates)} rates need held-back samples to choose one; give --held_back 0.05 (a share)")
        if len(self.rates) > 1 and self.train.clip_norm is not None:
            raise ValueError("train.clip_norm clips the gradients of all rates together; leave it out, or give one rate")


@dataclass(frozen=True)
class ProbeSetup:
    """A frozen model and its samples, all with labels.

    Attributes:
        model: the model, on the accelerator's device.
        loaded: the source of the model.
        data: options of reading the samples.
        splits: samples to train on, to choose the learning rate, and to score.
        dtype: type for the encoder's autocast. None: fp32.
    """

    accelerator: Accelerator
    model: MaskedModel
    loaded: LoadedModel
    data: DataConfig
    splits: LabelledSplits
    dtype: torch.dtype | None

    def tokens(self, x: Tensor) -> Tensor:
        """Encodes normalised pixels: (B, C, ..., h, w) -> (B, R + N, D), without a gradient."""
        with inference(self.model, self.dtype):
            return self.model.encode(self.model.tokenizer.lift(x)).last

    def encode(self, batch: Batch, *, train: bool) -> tuple[Tensor, Tensor]:
        """Returns tokens and labels of a batch, on the device. Training samples are flipped, and their lighting is changed,
        according to their keys."""
        batch = batch.to(self.accelerator.device)
        assert batch.labels is not None
        return self.tokens(prepare(batch, self.data, train=train)), batch.labels


def open_probe_setup(config: ProbeConfig, accelerator: Accelerator) -> ProbeSetup:
    """Loads the model and opens its samples. If the config names no source, it is that of the model's run.

    Raises:
        ValueError: there is no model, no data or no label, or the normalisation differs from that of the model's run.
    """
    device = accelerator.device
    frozen = LoadedModelConfig(model=config.model, source=config.data.source, device=str(device))
    loaded = load_model(frozen, source_flag="--data.source")
    data = with_run_source(config.data, loaded) if config.data.source is None else config.data
    loaded.check_pixels(data.input())
    splits = open_labelled_splits(data, test_split=config.test_split, held_back=config.held_back, seed=config.seed)
    model = loaded.model.requires_grad_(False)
    return ProbeSetup(accelerator, model, loaded, data, splits, DTYPES[precision_of(accelerator)])


def with_run_source(data: DataConfig, loaded: LoadedModel) -> DataConfig:
    """Returns the data with the source of the model's run, and with the splits and columns of the run where `data` has the
    defaults.

    Raises:
        ValueError: the run was trained on the other kind of data.
    """
    if type(data) is not type(loaded.data):
        nouns = loaded.data.medium.noun, data.medium.noun
        raise ValueError(f"--data.source is not set, and {loaded.path} was trained on {nouns[0]}; give {nouns[1]}")
    defaults = type(data)().source_options()
    unset = [name for name, value in data.source_options().items() if value == defaults[name]]
    return replace(data, **{name: getattr(loaded.data, name) for name in unset})
