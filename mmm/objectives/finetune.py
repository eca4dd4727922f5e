"""Fine-tuning: its choices, a classifier that starts from pretrained weights, and forward including loss."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mmm.classifier import Classifier, HeadConfig
from mmm.core.registry import PartConfig
from mmm.core.types import RequiredFeatures
from mmm.data import Batch, DataConfig, ImagesConfig
from mmm.data.loading.loader import prepare
from mmm.data.transforms.augment import erase
from mmm.encoders import EncoderConfig, VisionTransformer, encoders
from mmm.model import MaskedModel
from mmm.objectives.adapt_encoder import adapt_encoder, train_positions
from mmm.pools import MeanPool
from mmm.tokenizers import Patches, tokenizers
from mmm.train.config import RunConfig, TrainConfig
from mmm.train.mixup import SoftConfig, SoftTargets, soft_cross_entropy

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=RunConfig)


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig(RunConfig):
    """A classifier, the samples that it learns, and how."""

    model: str | None = None
    """Weights to start from: a run folder, a checkpoint or a file of weights in one, or published weights. Tokenizer and encoder
    are then the model's, and of `encoder` only drop_path counts. none: from scratch."""
    data: DataConfig = field(default_factory=ImagesConfig)
    tokenizer: PartConfig = Patches.Config()
    encoder: EncoderConfig = VisionTransformer.Config()
    pool: PartConfig = MeanPool.Config()
    head: HeadConfig = HeadConfig(norm="layer")
    soft: SoftConfig = SoftConfig()
    layer_decay: float = 1.0
    """Each layer's learning rate over that of the layer after it: the head learns at the full rate, the embedding slowest."""
    train_positions: bool = False
    """Train fixed positions too; learned ones are trained in any case."""
    train: TrainConfig = TrainConfig(epochs=10, batch_size=64, learning_rate=1e-3)
    """How it is trained."""
    held_back: float = 0.0
    """Share of the training samples that is not trained on, and chooses the weights that are scored in the end: those of the
    evaluation that did best on them. 0: the last weights are scored."""
    test_split: str | None = None
    """Split of the source to score; none: the evaluation part, as in pretraining."""

    def __post_init__(self) -> None:
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay {self.layer_decay} must be above 0 and at most 1 (all layers alike)")
        if not 0 <= self.held_back < 1:
            raise ValueError(f"held_back {self.held_back} is a share of the training samples: give 0 or more, and less than 1")


def build_classifier(config: FineTuneConfig, pretrained: MaskedModel | None, classes: int) -> Classifier:
    """The classifier of a config, its new weights drawn from the seed.

    As in MAE's fine-tuning, a layer norm in the head replaces the encoder's last one where tokens are pooled; a class token keeps
    the encoder's own, which pretraining trained, and the head builds none.
    """
    data, head = config.data.input(), config.head
    last_norm = head.norm != "layer" or config.pool.name == "class"
    if config.pool.name == "class" and head.norm == "layer":
        head = replace(head, norm="none")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        if pretrained is None:
            tokenizer = tokenizers.build(config.tokenizer, channels=data.channels)
            grid = tokenizer.grid_of(data.size)
            context: Any = {
                "token": tokenizer.size,
                "channels": data.channels,
                "grid": grid,
                "required": RequiredFeatures(last=last_norm),
            }
            encoder = encoders.build(config.encoder, **context)
        else:
            tokenizer = pretrained.tokenizer
            encoder = adapt_encoder(pretrained, data, drop_path=_drop_path(config.encoder), last_norm=last_norm)
        if config.train_positions:
            train_positions(encoder)
        return Classifier.build(tokenizer, encoder, classes=classes, pool=config.pool, head=head, data=data)


def with_pretrained(config: C, model: MaskedModel) -> C:
    """The config with the tokenizer and the encoder that the weights are of, so that it says what is trained."""
    own: Any = model.encoder.config
    tokenizer: Any = model.tokenizer
    choices: Any = config
    chosen: EncoderConfig = choices.encoder
    if (own.shape.width, own.shape.depth) != (chosen.shape.width, chosen.shape.depth):
        logger.warning(
            "the weights are %d wide and %d deep, this preset's encoder %d and %d: its drop path, layer decay and learning rate "
            "may be meant for the other size",
            *(own.shape.width, own.shape.depth, chosen.shape.width, chosen.shape.depth),
        )
    changed: C = replace(choices, tokenizer=tokenizer.config, encoder=replace(own, drop_path=_drop_path(chosen)))
    return changed


class FineTuneObjective:
    """The cross-entropy of a classifier; all that is drawn for a micro-batch follows from its samples' keys.

    Args:
        data: how samples are read.
        soft: how labels are softened, and samples mixed.
        classes: K.
        device: to compute on.
    """

    def __init__(self, data: DataConfig, soft: SoftConfig, classes: int, device: torch.device) -> None:
        self.data, self.soft, self.device = data, soft, device
        self.targets = SoftTargets(soft, classes)

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """The mean loss of a micro-batch, ()."""
        keys, batch = batch.keys, batch.to(self.device)  # the keys also stay on the CPU, where seeds are read from them
        assert batch.labels is not None
        x = prepare(batch, self.data, train=True)  # (B, C, ..., h, w)
        x, target = self.targets(erase(x, keys, self.soft.erase), batch.labels, keys[0])
        return soft_cross_entropy(model(x), target)


def _drop_path(config: EncoderConfig) -> float:
    return float(getattr(config, "drop_path", 0.0))
