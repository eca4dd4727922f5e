"""Codes of a frozen tokenizer as the target (Bao et al., "BEiT", ICLR 2022; Peng et al., "BEiT v2", 2022).

Shapes: B samples, N tokens, kmB rows of Q predicted tokens, K codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mmm.core.checks import Positive
from mmm.core.mask import Mask
from mmm.core.tokens import Grid
from mmm.core.types import Features, Input
from mmm.targets.base import Samples, Target, TargetConfig, TargetValues, TokenTargets, targets
from mmm.targets.losses import mean_loss
from mmm.targets.vocabularies import PATCHES, DalleVocabulary, KMeansVocabulary, Vocabulary, VqkdVocabulary


@targets.register("codes")
class CodeTarget(Target):
    """The code of each token, one of K in a fixed vocabulary. Predictions are logits."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TargetConfig):
        vocabulary: Literal["kmeans", "dalle", "vqkd"] = "kmeans"
        """Vocabulary. kmeans: directions that k-means computes from training samples before the training. dalle: DALL-E's
        tokenizer (BEiT). vqkd: the tokenizer of BEiT v2."""

        codes: Positive = 8192
        """Number of codes."""

        source: str = PATCHES
        """Values that kmeans clusters. patches: patches, each minus its mean. A run folder, a file or a name: features of its
        frozen encoder, see target.teacher of latent. For dalle and vqkd: folder or file of the tokenizer."""

        source_width: Positive | None = None
        """Width of the features for kmeans. None: the encoder's width."""

        block: Positive | None = None
        """The block, counted from 1, whose output is clustered. None: the last output, after the final norm."""

        samples: Positive = 10000
        """Number of training samples for k-means; it uses at most 64 of their tokens per code."""

        iterations: Positive = 10
        """Number of iterations of k-means."""

        def validate(self) -> None:
            if self.vocabulary != "kmeans" and self.source == PATCHES:
                raise ValueError(f"target.vocabulary {self.vocabulary} needs target.source, the path or name of its weights")
            if self.vocabulary != "kmeans" and self.codes != 8192:
                raise ValueError(f"target.codes {self.codes}: the vocabulary {self.vocabulary} has 8192")

    config: Config

    def __init__(self, config: Config, *, token: tuple[int, ...], data: Input, encoder: Any) -> None:
        """Builds the target; the encoder only determines the default width of the features."""
        super().__init__()
        self.config, self.width = config, config.codes
        self.vocabulary: Vocabulary
        if config.vocabulary == "kmeans":
            values = data.channels * math.prod(token) if config.source == PATCHES else config.source_width or encoder.shape.width
            self.vocabulary = KMeansVocabulary(
                config.codes,
                source=config.source,
                width=values,
                block=config.block,
                samples=config.samples,
                iterations=config.iterations,
                own=data,
                token=token,
            )
        else:
            published = DalleVocabulary if config.vocabulary == "dalle" else VqkdVocabulary
            self.vocabulary = published(config.source, data, token)

    def begin(self, model: Any, load: Callable[[str], Any], samples: Samples | None) -> None:
        """Reads or computes the vocabulary."""
        self.vocabulary.begin(model, load, samples)

    def unsaved(self) -> dict[str, Tensor]:
        """Returns the weights of a network that the vocabulary has read."""
        return {} if self.vocabulary.frozen is None else self.vocabulary.frozen.state_dict()

    @torch.no_grad()
    def teach(self, x: Tensor, patches: Tensor, grid: Grid) -> TokenTargets:
        """Returns the codes of every token, int64 (B, N)."""
        return TokenTargets(self.vocabulary(x, patches, grid))

    def loss(self, prediction: Tensor, target: TargetValues, mask: Mask, features: Features) -> Tensor:
        """Returns the mean cross-entropy per predicted token, ()."""
        return mean_loss("cross_entropy", prediction, target, mask.weight)
