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
Samples = Callable[[int], Iterator[Tensor]]  # returns that many training samples, normalised, in batches (B, C, s...)


@dataclass(frozen=True, kw_only=True)
class TargetConfig(PartConfig):
    """Base of every target's `Config`."""

    kind: ClassVar[str] = "target"


@dataclass(frozen=True)
class TokenTargets:
    """Targets of every token of a batch, from which those of a mask are picked.

    Attributes:
        tokens: the targets of every token, (B, N, ...) for the default `pick`.
        loss: loss of the target's own parameters, (), which is added to that of the predictions. None: there is none.
    """

    tokens: Any
    loss: Tensor | None = None


class Target(nn.Module):
    """Computes the values to predict, and the loss.

    Built with the `token`'s size, `data` and the `encoder`, of which a teacher may keep a copy.

    Attributes:
        config: options of the target.
        width: number of predicted values per token, K.
        collective: communication between the processes of a training. Used only in training mode, because in an evaluation
            processes may compute different numbers of batches.
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
        """The numbers of values of each of several joined targets; here of one."""
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
        """Returns the attention of a teacher to each token, (B, N), at least 0; for a masker that `needs_scores`.

        Raises:
            ValueError: the target has no teacher.
        """
        raise ValueError(f"target.name {self.config.name} has no teacher whose attention masker.name attention could follow")

    def begin(self, model: nn.Module, load: Callable[[str], nn.Module], samples: Samples | None) -> None:
        """Prepares a training, before its weights are sharded or a checkpoint is restored; teachers are made here.

        The result of the first process is then copied to all others.

        Args:
            model: the unwrapped model, with its initial weights.
            load: reads a model from a path, as `mmm.load` does.
            samples: reads a number of training samples, the same each time, on the device of the training. None: the saved state of
                the target was copied from other weights, and must not change.
        """

    def unsaved(self) -> dict[str, Tensor]:
        """Returns weights that the loss depends on and that checkpoints do not contain; a resume compares their hash."""
        return {}

    @property
    def has_update(self) -> bool:
        """True if `update` is implemented, so that a training has to call it."""
        return type(self).update is not Target.update

    def update(self, model: nn.Module, step: int, steps: int, made: Tensor) -> None:
        """Updates the target after each update of a training, of which the first is step 1; teachers follow the encoder here.

        Args:
            model: the unwrapped model.
            made: whether the update was made, a bool () on the device. If it was skipped, the target must not change.
        """

    @property
    def uses_original(self) -> bool:
        """True if `show` uses values of the original that a prediction does not contain."""
        return False

    def show(self, prediction: Tensor, patches: Tensor, mask: Mask) -> Tensor | None:
        """Returns predictions as normalised pixels, (kmB, Q, P); None if they are not pixels."""
        return None
