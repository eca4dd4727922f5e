"""Types that data, parts and training exchange.

Shapes: B rows, R prefix tokens (class token), M encoded tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from types import NoneType
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

T = TypeVar("T")
BlockOutput = Literal["block", "mlp"]  # the kept output of a block: its whole output, or that of its MLP


def pytree(kind: type[T]) -> type[T]:
    """Registers a dataclass with torch's pytrees, so that torch.export, torch.func and FSDP find the tensors in it.

    Integers, strings and None in it are not leaves. It is rebuilt without its checks.
    """
    names = [one.name for one in fields(kind)]  # type: ignore[arg-type]

    def flatten(value: Any) -> tuple[list[Any], dict[str, Any]]:
        context = {name: getattr(value, name) for name in names if isinstance(getattr(value, name), (int, str, NoneType))}
        return [getattr(value, name) for name in names if name not in context], context

    def unflatten(leaves: Any, context: dict[str, Any]) -> Any:
        made = object.__new__(kind)
        vars(made).update(zip((name for name in names if name not in context), leaves, strict=True), **context)
        return made

    register_pytree_node(kind, flatten, unflatten, serialized_type_name=f"{kind.__module__}.{kind.__qualname__}")
    return kind


@dataclass(frozen=True, kw_only=True)
class Input:
    """Properties of the data that the parts are built for.

    Attributes:
        size: size of a sample in pixels, (H, W) or (T, H, W); later samples may have other sizes.
        channels: number of channels.
        mean: mean of each channel, with which samples are normalised, in units of [0, 1].
        std: standard deviation of each channel, in the same units.
        repeats: number of consecutive samples of the same input in a training batch.
        stride: distance of the frames of a clip in a video, as in the data's config. None: unknown.
        fps: frames per second of a clip, as in the data's config. None: unknown, or not set there.
        sampling: the way in which the frames of a clip were chosen, as in the data's config. None: unknown.

    Raises:
        ValueError: mean or std does not have one value per channel.
    """

    size: tuple[int, ...]
    channels: int = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    repeats: int = 1
    stride: int | None = None
    fps: float | None = None
    sampling: str | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels:
                raise ValueError(f"data.{name} has {len(values)} values for {self.channels} channels; give one per channel")
        if min(self.std) <= 0:
            raise ValueError(f"data.std {self.std} must be above 0 in every channel, because pixels are divided by it")

    def check_trained_with(self, own: Input, where: str) -> None:
        """Raises ValueError if channels or normalisation differ from those with which a model was trained. The message contains the
        flags for all of them.

        Args:
            own: the data that the model was trained with.
            where: the model, for the message.
        """
        other = [name for name in ("channels", "mean", "std") if getattr(self, name) != getattr(own, name)]
        if other:
            values = {name: getattr(own, name) for name in other}
            texts = {name: " ".join(map(str, value)) if isinstance(value, tuple) else value for name, value in values.items()}
            flags = " ".join(f"--data.{name} {text}" for name, text in texts.items())
            raise ValueError(f"data.{other[0]} {getattr(self, other[0])} is not what {where} was trained with; give {flags}")


@pytree
@dataclass(frozen=True)
class Features:
    """The output of an encoder.

    Attributes:
        last: (B, R + M, D), after the final norm, if there is one.
        prefix: R, the number of leading tokens without a position on the grid: class tokens, then registers.
        where: int64 (B, M) or, without a mask, (1, M): the index of each token on the grid.
        blocks: outputs of the requested blocks, (B, R + M, D) each; 0 is the input of the first block.
            The outputs of a hierarchical encoder are (B, M, a b ... D'): see `Stage`.
        registers: how many of the prefix tokens, the last of them, are registers.
        valid: bool (B, R + M), False for padding. None: all tokens are valid.
    """

    last: Tensor
    prefix: int
    where: Tensor
    blocks: dict[int, Tensor] = field(default_factory=dict)
    registers: int = 0
    valid: Tensor | None = None

    @property
    def tokens(self) -> Tensor:
        """The tokens of the grid without prefix tokens, (B, M, D)."""
        return self.last[:, self.prefix :]

    @property
    def class_token(self) -> Tensor:
        """The class token, (B, D), or the mean of several (Pixio).

        Raises:
            ValueError: the encoder has no class token.
        """
        if self.prefix == self.registers:
            raise ValueError("this encoder has no class token; use the mean of the tokens")
        return self.last[:, : self.prefix - self.registers].mean(1)

    def pooled(self, how: Literal["mean", "class", "both"] = "mean") -> Tensor:
        """Returns one vector per sample: the mean of the tokens, the class token, or the class token followed by the mean.

        Returns:
            (B, D), or (B, 2 D) for both; fp32.

        Raises:
            ValueError: the class token is requested, and the encoder has none, or `how` is none of the three.
        """
        if how not in ("mean", "class", "both"):
            raise ValueError(f"there is no pooling {how!r}; choose mean, class or both")
        tokens = self.tokens.float()
        if self.valid is None:
            mean = tokens.mean(1)
        else:
            counted = self.valid[:, self.prefix :, None].float()  # (B, M, 1)
            mean = (tokens * counted).sum(1) / counted.sum(1)
        if how == "mean":
            return mean
        first = self.class_token.float()
        return first if how == "class" else torch.cat([first, mean], dim=1)


@dataclass(frozen=True)
class Stage:
    """A stage of a hierarchical encoder: consecutive blocks whose tokens have the same size and width.

    `Features.blocks` contains, for each token of the output, the smaller tokens that it covers: (B, M, a b ... D'), with the last
    axis of the grid and then the channel varying fastest.

    Attributes:
        block: its last block, counted from 1.
        width: width of its tokens, D'.
        inner: number of its tokens that one token of the output covers, along each axis of the grid.
    """

    block: int
    width: int
    inner: tuple[int, ...]


@dataclass(frozen=True)
class Shape:
    """The shape of an encoder, from which a decoder is built.

    Attributes:
        width: D.
        depth: the number of blocks.
        prefix: R.
        registers: how many of the prefix tokens, the last of them, are registers.
        stages: stages of a hierarchical encoder. Empty: all blocks have tokens of the output's size and width.
        whole: whether the encoder needs a whole grid, so that masks must replace hidden tokens by blanks instead of dropping them.
        unit: side of the squares of tokens that masks must hide or show as a whole.
    """

    width: int
    depth: int
    prefix: int
    registers: int = 0
    stages: tuple[Stage, ...] = ()
    whole: bool = False
    unit: int = 1

    @property
    def class_tokens(self) -> int:
        """The number of class tokens, which come first among the prefix tokens."""
        return self.prefix - self.registers


@dataclass(frozen=True)
class RequiredFeatures:
    """The features that a decoder requires of an encoder; no others are kept or built.

    Attributes:
        last: whether the output of the final norm is required.
        blocks: the blocks whose outputs are required; 0 is the input of the first block.
        hidden: whether features of hidden tokens are required, so that masks must replace them by blanks instead of dropping them.
    """

    last: bool = True
    blocks: tuple[int, ...] = ()
    hidden: bool = False


@dataclass(frozen=True)
class UpdateScale:
    """Factors of the learning rate and the weight decay of a module's parameters, in the attribute `update_scale` of any module.

    The factors of nested modules are multiplied.

    Attributes:
        rate: factor of the learning rate.
        decay: factor of the weight decay.
    """

    rate: float = 1.0
    decay: float = 1.0


class Collective(Protocol):
    """Reductions over the processes of a training, for parts that depend on the whole batch."""

    def sum(self, value: Tensor) -> Tensor:
        """Returns the sum over all processes, on every process. The value may be overwritten."""
        ...

    def max(self, value: Tensor) -> Tensor:
        """Returns the elementwise maximum over all processes, on every process. The value may be overwritten."""
        ...


class Alone:
    """The collective of a single process, which exchanges nothing."""

    def sum(self, value: Tensor) -> Tensor:
        """Returns the value unchanged."""
        return value

    def max(self, value: Tensor) -> Tensor:
        """Returns the value unchanged."""
        return value
