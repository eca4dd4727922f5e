"""The interface of targets.

Shapes: B samples, N tokens, P values per token, mB masks, kmB rows of Q predicted tokens, K predicted values per token.
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

TargetValues = Tensor | tuple[Any, ...]  # a tuple for several targets, or if the class token also has a target
Samples = Callable[[int], Iterator[Tensor]]  # yields this number of training samples, normalised, in batches (B, C, s...)


@dataclass(frozen=True, kw_only=True)
class TargetConfig(PartConfig):
    """Base of every target's `Config`."""

    kind: ClassVar[str] = "target"


@dataclass(frozen=True)
class TokenTargets:
    """The targets of every token of a batch, from which those for a mask are selected.

    Attributes:
        tokens: the targets of every token, (B, N, ...) for the default `pick`.
        loss: loss of the target's own parameters, (), which is added to that of the predictions. None: no such loss.
    """

    tokens: Any
    loss: Tensor | None = None


class Target(nn.Module):
    """Computes the values to predict, and the loss.

    It is built with the size of a `token`, the `data` and the `encoder`, which a teacher may copy.

    Attributes:
        config: options of the target.
        width: number of predicted values per token, K.
        collective: communication between the processes of a training. Used only in training mode, because processes may have
            different numbers of batches in an evaluation.

    With `train.compile`, the methods of the forward may be called on a shallow copy. What they pass to `update` must be in a tensor
    or a list that is changed in place.
    """

    config: TargetConfig
    width: int
    collective: Collective = Alone()

    @property
    def across_batch(self) -> bool:
        """True if the target of a sample depends on the other samples of its batch."""
        return False

    @property
    def compares_repeats(self) -> bool:
        """True if the target of a sample depends on the other samples of the same input (data.repeats)."""
        return False

    @property
    def may_collapse(self) -> bool:
        """True if the training also learns the targets, so that they may all become equal (collapse); the run then monitors it."""
        return False

    @property
    def widths(self) -> tuple[int, ...]:
        """The numbers of values of joined targets; one number for a single target."""
        return (self.width,)

    @abstractmethod
    def teach(self, x: Tensor, patches: Tensor, grid: Grid) -> TokenTargets:
        """Returns the targets of every token, computed once for all masks.

        Args:
            x: input of the model, (B, C, H, W) or (B, C, T, H, W).
            patches: raw values of its tokens, (B, N, P).
            grid: grid of the N tokens.
        """

    def pick(self, token_targets: TokenTargets, mask: Mask) -> TargetValues:
        """Returns the targets of the tokens in `mask.predict`, without a gradient: fp32 (kmB, Q, K), or classes, int64 (kmB, Q)."""
        return take(token_targets.tokens, mask.predict)

    @abstractmethod
    def loss(self, prediction: Tensor, target: TargetValues, mask: Mask, features: Features) -> Tensor:
        """Returns the loss of predictions (kmB, Q, K), (); the features are for a target of the class token."""

    def scores(self, x: Tensor, patches: Tensor, grid: Grid) -> Tensor:
        """Returns a teacher's attention to each token, (B, N), at least 0, for a masker that `needs_scores`.

        Raises:
            ValueError: the target has no teacher.
        """
        raise ValueError(f"target.name {self.config.name} has no teacher whose attention masker.name attention could follow")

    def begin(self, model: nn.Module, load: Callable[[str], nn.Module], samples: Samples | None) -> None:
        """Prepares a training, before its weights are sharded or a checkpoint is restored; teachers are created here.

        The result on the first process is then copied to all others.

        Args:
            model: the unwrapped model, with its initial weights.
            load: reads a model from a path, as `mmm.load` does.
            samples: reads a number of training samples, the same in each call, onto the device of the training. None: the saved
                state of the target was copied from other weights, and must not change.
        """

    def unsaved(self) -> dict[str, Tensor]:
        """Returns weights that the loss depends on and that checkpoints do not contain; a resume compares their hash."""
        return {}

    @property
    def has_update(self) -> bool:
        """True if `update` is implemented, so that a training has to call it."""
        return type(self).update is not Target.update

    def update(self, model: nn.Module, step: int, steps: int, made: Tensor) -> None:
        """Updates the target after each update of a training; the first has step 1. Averages of the encoder are updated here.

        Args:
            model: the unwrapped model.
            made: whether the update was made, a bool () on the device. If it was skipped, the target must not change.
        """

    @property
    def uses_original(self) -> bool:
        """True if `show` uses values of the original that a prediction does not contain."""
        return False

    @property
    def shows_pixels(self) -> bool:
        """True if `show` returns pixels. By default it does if it is implemented."""
        return type(self).show is not Target.show

    def show(self, prediction: Tensor, patches: Tensor, mask: Mask) -> Tensor | None:
        """Returns predictions as normalised pixels, (kmB, Q, P), or None if they are not pixels; `shows_pixels` is then False."""
        return None
