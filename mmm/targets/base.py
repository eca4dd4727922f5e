"""The interface of targets.

Shapes: B samples, N tokens, P values a token, mB masks, kmB rows of Q predicted tokens, K values predicted a token.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from mmm.core.mask import Mask
from mmm.core.registry import PartConfig, Registry
from mmm.core.tokens import Grid, take
from mmm.core.types import Alone, Collective, Features

targets: Registry[Target] = Registry("target")

TargetValues = Tensor | tuple[Any, ...]  # several: of several targets, or of the class token too
Samples = Callable[[int], Iterator[Tensor]]  # so many samples of a training, normalised, in batches (B, C, s...)


@dataclass(frozen=True, kw_only=True)
class TargetConfig(PartConfig):
    """Base of every target's `Config`."""

    kind: ClassVar[str] = "target"


@dataclass(frozen=True)
class TokenTargets:
    """Targets of every token of a batch, from which those of a mask are picked.

    Attributes:
        tokens: of every token, (B, N, ...) for the default `pick`.
        loss: () of the target's own parameters, which is added to that of the predictions; None: the target learns nothing here.
    """

    tokens: Any
    loss: Tensor | None = None


class Target(nn.Module):
    """Computes what is predicted, and the loss.

    Built with the `token`'s size, `data` and the `encoder`, of which a teacher may keep a copy.

    Attributes:
        config: the user's choices.
        width: K, values predicted a token.
        collective: what the processes of a training tell each other. Used in training mode only: in an evaluation processes may
            compute different numbers of batches.
    """

    config: TargetConfig
    width: int
    collective: Collective = Alone()

    @property
    def across_batch(self) -> bool:
        """True if the target of a sample depends on the other samples of its batch."""
        return False

    @property
    def may_collapse(self) -> bool:
        """True if the training also learns the targets, so that all may become equal (collapse); the run then monitors it."""
        return False

    @property
    def widths(self) -> tuple[int, ...]:
        """The values of each of the targets that this one is made of; here one."""
        return (self.width,)

    @abstractmethod
    def teach(self, x: Tensor, patches: Tensor, grid: Grid) -> TokenTargets:
        """Returns the targets of every token, computed once for all masks.

        Args:
            x: the model's input, (B, C, H, W) or (B, C, T, H, W).
            patches: its tokens' raw values, (B, N, P).
            grid: the arrangement of the N tokens.
        """

    def pick(self, token_targets: TokenTargets, mask: Mask) -> TargetValues:
        """Returns the targets of the tokens in `mask.predict`, without a gradient: fp32 (kmB, Q, K), or classes, int64 (kmB, Q)."""
        return take(token_targets.tokens, mask.predict)

    @abstractmethod
    def loss(self, prediction: Tensor, target: TargetValues, mask: Mask, features: Features) -> Tensor:
        """Returns the loss of predictions (kmB, Q, K), (); the features are for the target of a class token."""

    def scores(self, x: Tensor, patches: Tensor, grid: Grid) -> Tensor:
        """Returns how much a teacher looks at each token, (B, N), at least 0; for a masker that `needs_scores`.

        Raises:
            ValueError: the target has no teacher.
        """
        raise ValueError(f"target.name {self.config.name} has no teacher whose attention masker.name attention could follow")

    def begin(self, model: nn.Module, load: Callable[[str], nn.Module], samples: Samples | None) -> None:
        """Called when a training begins, before its weights are sharded or a checkpoint is restored; a teacher is made here.

        What the processes make of it is made equal to the first one's.

        Args:
            model: the unwrapped model, with its initial weights.
            load: reads a model from a path, as `mmm.load` does.
            samples: reads so many training samples, the same each time, on the device of the training. None: what checkpoints hold
                of the target was copied from other weights, and stays.
        """

    def unsaved(self) -> dict[str, Tensor]:
        """Weights that the loss depends on and no checkpoint holds; a resume compares a hash of them."""
        return {}

    @property
    def has_update(self) -> bool:
        """True if `update` is implemented, so that a training has to call it."""
        return type(self).update is not Target.update

    def update(self, model: nn.Module, step: int, steps: int, made: Tensor) -> None:
        """Called after each update of a training, the first being step 1 of `steps`; a teacher follows the encoder here.

        Args:
            model: the unwrapped model.
            made: whether the update was made, a bool () on the device; one that was left out must change nothing here either.
        """

    @property
    def uses_original(self) -> bool:
        """True if `show` uses values of the original that a prediction does not contain."""
        return False

    def show(self, prediction: Tensor, patches: Tensor, mask: Mask) -> Tensor | None:
        """Predictions as normalised pixels, (kmB, Q, P), where they can be looked at; else None."""
        return None
