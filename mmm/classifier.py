"""A classifier on a pretrained encoder: tokenizer -> encoder, without a mask -> pool -> norm -> dropout -> linear.

Shapes: B samples, R prefix tokens, N tokens of the grid, D the encoder's width, D' the pool's width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from mmm.core.checks import AboveZero, CheckedConfig, Rate
from mmm.core.modes import evaluating
from mmm.core.pretrained import Pretrained, checked_labels, class_names
from mmm.core.registry import PartConfig
from mmm.core.types import Input
from mmm.encoders import Encoder
from mmm.layers.batch_norm import BatchNorm
from mmm.model import MaskedModel
from mmm.pools import MeanPool, Pool, pools
from mmm.tokenizers import GridTokenizer

Norm = Literal["none", "layer", "batch"]


@dataclass(frozen=True, kw_only=True)
class HeadConfig(CheckedConfig):
    """The layers between pooled tokens and class scores."""

    norm: Norm = "none"
    """Norm of the pooled tokens. layer: layer norm with weights (MAE's `fc_norm`). batch: batch norm without weights (MAE's linear
    probe)."""
    dropout: Rate = 0.0
    """Rate of dropout before the linear layer."""
    std: AboveZero = 0.02
    """Standard deviation of the initial weights of the linear layer, a normal distribution truncated at 2."""
    epsilon: AboveZero = 1e-6
    """Epsilon of a layer norm (MAE, timm: 1e-6; transformers' VideoMAE: 1e-5)."""

    flag = "head"


class Head(nn.Module):
    """norm -> dropout -> linear, on pooled tokens."""

    def __init__(self, config: HeadConfig, *, width: int, classes: int) -> None:
        """Builds the head for pooled tokens of this width."""
        super().__init__()
        self.config, self.classes = config, classes
        self.fc_norm = _norm(config, width)
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.linear.weight, std=config.std)
        nn.init.zeros_(self.linear.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, D') -> logits (B, K)."""
        return self.linear(self.dropout(self.fc_norm(pooled)))


def _norm(config: HeadConfig, width: int) -> nn.Module:
    if config.norm == "layer":
        return nn.LayerNorm(width, eps=config.epsilon)
    return BatchNorm(width) if config.norm == "batch" else nn.Identity()


class Classifier(Pretrained, nn.Module):
    """Classifies images or clips. The names of the weights of the encoder stay the same: `encoder.blocks.0.attn.qkv.weight`.

    Example:
        classifier = Classifier.of(mmm.load("runs/pretrain-1"), classes=10, pool=MeanPool.Config(), head=HeadConfig(norm="layer"))
        logits = classifier(x)                                  # x: normalised (B, C, H, W) or (B, C, T, H, W)
        logits = classifier.classify(classifier.encode(x))      # the same; the encoded tokens can be stored
    """

    __call__: Callable[..., Tensor]
    labels: tuple[str, ...] | None

    def __init__(
        self,
        tokenizer: GridTokenizer,
        encoder: Encoder,
        pool: Pool,
        head: Head,
        *,
        frozen: bool = False,
        data: Input | None = None,
        labels: tuple[str, ...] | None = None,
    ) -> None:
        """Combines parts that fit each other, as `build` and `of` make them.

        Args:
            frozen: the encoder stays in evaluation mode and gets no gradient.
            data: properties of the data; needed to save the model.
            labels: names of the K classes, in order. None: no names.
        """
        super().__init__()
        self.tokenizer, self.encoder, self.pool, self.head, self.frozen = tokenizer, encoder, pool, head, frozen
        self.data, self.labels = data, checked_labels(labels, head.classes)
        if frozen:
            encoder.requires_grad_(False).eval()

    @classmethod
    def build(
        cls,
        tokenizer: GridTokenizer,
        encoder: Encoder,
        *,
        classes: int,
        pool: PartConfig | None = None,
        head: HeadConfig | None = None,
        frozen: bool = False,
        seed: int | None = None,
        data: Input | None = None,
        labels: tuple[str, ...] | None = None,
    ) -> Self:
        """Builds pool and head for an encoder, which is used unchanged.

        Args:
            classes: K.
            pool: None: the mean of the tokens.
            head: None: `HeadConfig()`.
            frozen: see `__init__`.
            seed: random seed of the new weights. With a seed, torch's generator is not changed.
            data: see `__init__`.
            labels: see `__init__`.
        """
        with nullcontext() if seed is None else torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            pooling = pools.build(pool or MeanPool.Config(), encoder=encoder.shape)
            last = Head(head or HeadConfig(), width=pooling.width, classes=classes)
        return cls(tokenizer, encoder, pooling, last, frozen=frozen, data=data, labels=labels)

    @classmethod
    def of(
        cls,
        model: MaskedModel,
        *,
        classes: int,
        pool: PartConfig | None = None,
        head: HeadConfig | None = None,
        frozen: bool = False,
        seed: int | None = None,
        labels: tuple[str, ...] | None = None,
    ) -> Self:
        """Builds pool and head for the tokenizer and the encoder of a masked model, which are shared, not copied."""
        return cls.build(
            model.tokenizer,
            model.encoder,
            classes=classes,
            pool=pool,
            head=head,
            frozen=frozen,
            seed=seed,
            data=model.data,
            labels=labels,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits (B, K) of normalised pixels (B, C, H, W) or (B, C, T, H, W)."""
        return self.classify(self._tokens(x))

    def encode(self, x: Any) -> Tensor:
        """Returns all tokens, prefix first, (B, R + N, D). With a frozen encoder they can be stored instead of the pixels.

        `classify` turns them into logits, and `pool` into one vector per sample, (B, D').

        Args:
            x: normalised (B, C, H, W) or (B, C, T, H, W), or images or clips in any form that `transform` takes.

        Raises:
            ValueError: a sample has a form that the model does not accept.
        """
        return self._tokens(self.prepared(x))

    def _tokens(self, x: Tensor) -> Tensor:
        with torch.no_grad() if self.frozen else nullcontext():
            return self.encoder(self.tokenizer.split(x), self.tokenizer.grid(x), None).last

    @torch.no_grad()
    def predict(self, x: Any, *, top: int = 5) -> list[dict[str, float]]:
        """Predicts the classes of samples.

        Args:
            x: normalised (B, C, H, W) or (B, C, T, H, W), or images or clips in any form that `transform` takes.
            top: number of classes to return, at least 1; more than there are returns all.

        Returns:
            The most probable classes of each sample with their probabilities, in falling order. Classes without names are numbers.

        Raises:
            ValueError: a sample has a form that the model does not accept, or `top` is below 1.
        """
        with evaluating(self):
            return self.named(self(self.prepared(x)).float().softmax(1), top=top)

    def named(self, probabilities: Tensor, *, top: int = 5) -> list[dict[str, float]]:
        """Returns the `top` most probable classes of each row of probabilities (B, K), by name, in falling order."""
        if top < 1:
            raise ValueError(f"top {top}: give the number of classes to return, 1 or more")
        values, classes = probabilities.topk(min(top, self.head.classes), dim=1)  # (B, top) each
        rows, names = zip(classes.tolist(), values.tolist(), strict=True), self.names
        return [{names[number]: value for number, value in zip(*row, strict=True)} for row in rows]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the K classes, in order. Classes without names are numbers."""
        return class_names(self.labels, self.head.classes)

    def classify(self, tokens: Tensor) -> Tensor:
        """Returns the logits (B, K) of tokens (B, R + N, D)."""
        return self.head(self.pool(tokens))

    def train(self, mode: bool = True) -> Self:
        """Sets the training mode. A frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self
