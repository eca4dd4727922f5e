"""Features of a teacher as the target: of the encoder's moving average, which sees what the encoder does not, or of a frozen model.

I-JEPA (Assran et al., CVPR 2023) and V-JEPA (Bardes et al., 2024) want the normed output of the average; data2vec 2.0 (Baevski et
al., ICML 2023) the mean of its last blocks; SdAE (Chen et al., ECCV 2022) its features of the hidden tokens alone; SALT (Li et
al., 2025) and feature distillation the output of a frozen model.

Shapes: B samples, R prefix tokens, N tokens of the grid, mB masks, kmB rows of Q predicted tokens, K values of a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.core.checks import NonNegative, Positive
from mmm.core.mask import Mask
from mmm.core.tokens import Grid, repeat_rows, take
from mmm.core.types import Features, Input
from mmm.layers.attention_map import last_attention
from mmm.targets.average import Average, AverageConfig
from mmm.targets.base import Target, TargetValues, TokenTargets, targets
from mmm.targets.losses import ValueLoss, mean_loss

EMA = "ema"


@targets.register("latent")
class LatentTarget(Target):
    """Features that a teacher has of the predicted tokens."""

    @dataclass(frozen=True, kw_only=True)
    class Config(AverageConfig):
        teacher: str = EMA
        """ema: the moving average of the encoder. Else the frozen encoder of this run folder, file or name on the hub."""

        teacher_width: Positive | None = None
        """Width of a frozen teacher's features; none: the encoder's."""

        blocks: tuple[Positive, ...] | None = None
        """The teacher's blocks, counted from 1, whose outputs are the target (data2vec 2.0: the last ten of twelve); none: its last
        output, after the final norm."""

        join: bool = False
        """Want the blocks' outputs one beside the other (V-JEPA 2.1) rather than their mean (data2vec 2.0)."""

        block_norm: Literal["none", "layer", "instance"] = "none"
        """Norm of each block's output, without weights: over each token's values (V-JEPA 2.1), or over the tokens, value by value
        (data2vec 2.0)."""

        norm: Literal["none", "layer"] = "layer"
        """Norm of the target, over each token's values, without weights."""

        view: Literal["all", "hidden"] = "all"
        """Show the teacher the whole sample, or the predicted tokens alone (SdAE)."""

        loss: ValueLoss = "smooth_l1"
        """How far a prediction is off."""

        class_weight: NonNegative = 0.0
        """Weight of the loss between the encoder's class token and the mean target of all tokens (data2vec 2.0)."""

        def validate(self) -> None:
            if self.join and self.blocks is None:
                raise ValueError("target.join needs target.blocks, the blocks whose outputs are joined")
            if self.blocks == ():
                raise ValueError("target.blocks names no block; none: the last output")
            if self.class_weight and self.view == "hidden":
                raise ValueError(f"target.class_weight {self.class_weight} needs target.view all: the mean is of all tokens")
            if self.teacher == EMA and self.teacher_width is not None:
                raise ValueError("target.teacher_width is for a frozen teacher; the average is as wide as the encoder")

    config: Config
    teacher: Average | Frozen | None

    def __init__(self, config: Config, *, token: tuple[int, ...], data: Input, encoder: Any) -> None:
        """Builds it with a copy of the encoder or, where the teacher is frozen, without one: `begin` reads it."""
        super().__init__()
        self.config, self.data, shape = config, data, encoder.shape
        self.grid = tuple(size // side for size, side in zip(data.size, token[-len(data.size) :], strict=True))
        if config.class_weight and not shape.class_tokens:
            raise ValueError("target.class_weight needs a class token; give the encoder one, or set target.class_weight 0")
        if config.class_weight and (config.join or config.teacher_width is not None):
            raise ValueError(
                "target.class_weight needs a target as wide as the encoder, because it compares the class token with it"
            )
        width = config.teacher_width or shape.width
        self.width = width * (len(config.blocks) if config.join and config.blocks else 1)
        if config.teacher == EMA:
            self._refuse_missing_blocks(shape.depth)
        self.teacher = Average(encoder) if config.teacher == EMA else None
        # a frozen teacher is read again by each training, and not kept in its checkpoints
        self.register_state_dict_post_hook(_leave_frozen_out)
        self.register_load_state_dict_post_hook(_miss_no_frozen)

    def begin(self, model: Any, load: Callable[[str], Any]) -> None:
        """Makes the teacher equal to the encoder, or reads it.

        Raises:
            ValueError: it cannot be read, or does not fit.
        """
        if isinstance(self.teacher, Average):
            self.teacher.restart(model.encoder)
            return
        name, found = self.config.teacher, load(self.config.teacher)
        width, grid = found.encoder.shape.width, found.tokenizer.grid_of(self.data.size)
        if width != (self.config.teacher_width or model.encoder.shape.width):
            raise ValueError(f"target.teacher {name} has features of width {width}; set target.teacher_width {width}")
        if grid != self.grid:
            raise ValueError(
                f"target.teacher {name} makes {grid} tokens of a sample of {self.data.size}, and the model {self.grid}"
            )
        self._refuse_missing_blocks(found.encoder.shape.depth)
        self.teacher = Frozen(found.tokenizer, found.encoder, self.data, found.data or self.data)
        self.teacher.to(next(model.parameters()).device)

    def unsaved(self) -> dict[str, Tensor]:
        """A frozen teacher's weights."""
        return self.teacher.state_dict() if isinstance(self.teacher, Frozen) else {}

    @torch.no_grad()
    def teach(self, x: Tensor, patches: Tensor, grid: Grid) -> TokenTargets:
        """Returns the values of every token, (B, N, K). If the teacher sees the predicted tokens alone, the patches."""
        if self.teacher is None:
            raise ValueError(f"target.teacher {self.config.teacher} was not read, so there is no loss; a training reads it")
        patches = self.teacher.split(x) if isinstance(self.teacher, Frozen) else patches
        return TokenTargets((patches, grid) if self.config.view == "hidden" else self._encode(patches, grid, None))

    @torch.no_grad()
    def scores(self, x: Tensor, patches: Tensor, grid: Grid) -> Tensor:
        """Returns the attention of the teacher's last block to each token, (B, N)."""
        if self.teacher is None:
            raise ValueError(f"target.teacher {self.config.teacher} was not read, so there is no attention; a training reads it")
        patches = self.teacher.split(x) if isinstance(self.teacher, Frozen) else patches
        with last_attention(self.teacher) as look:
            prefix = self.teacher(patches, grid, None).prefix
        return look(prefix)

    @torch.no_grad()
    def pick(self, token_targets: TokenTargets, mask: Mask) -> TargetValues:
        """Returns the predicted tokens' values, (kmB, Q, K), with `class_weight` also those of each class token, (mB, K)."""
        if self.config.view == "hidden":
            patches, grid = token_targets.tokens
            return self._encode(patches, grid, Mask(mask.predict, mask.predict))
        target = take(token_targets.tokens, mask.predict)
        return (target, repeat_rows(token_targets.tokens.mean(1), len(mask.visible))) if self.config.class_weight else target

    def loss(self, prediction: Tensor, target: TargetValues, mask: Mask, features: Features) -> Tensor:
        """The mean loss of a predicted token, and the class token's."""
        tokens, pooled = target if isinstance(target, tuple) else (target, None)
        loss = mean_loss(self.config.loss, prediction, tokens, mask.weight)
        if pooled is None:
            return loss
        return loss + self.config.class_weight * mean_loss(self.config.loss, features.last[:, :1], pooled[:, None], None)

    def update(self, model: Any, step: int, steps: int, made: Tensor) -> None:
        """Moves the average towards the encoder."""
        if isinstance(self.teacher, Average):
            self.teacher.follow(model.encoder, self.config.decay_at(step, steps), made)

    def _encode(self, patches: Tensor, grid: Grid, mask: Mask | None) -> Tensor:
        """Returns the values of the tokens that the teacher sees, (B, M, K), in fp32 or better."""
        assert self.teacher is not None
        features: Features = self.teacher(patches, grid, mask, self.config.blocks or ())
        chosen = [features.last] if self.config.blocks is None else [features.blocks[block] for block in self.config.blocks]
        maps = [self._normed(one[:, features.prefix :]) for one in chosen]
        target = torch.cat(maps, dim=-1) if self.config.join else torch.stack(maps).mean(0)
        return F.layer_norm(target, target.shape[-1:]) if self.config.norm == "layer" else target

    def _normed(self, tokens: Tensor) -> Tensor:
        """A block's output, (B, M, D), in fp32 or better, with the target's norm."""
        tokens = tokens if tokens.dtype.itemsize >= 4 else tokens.float()
        if self.config.block_norm == "layer":
            return F.layer_norm(tokens, tokens.shape[-1:])
        if self.config.block_norm == "instance":
            return F.instance_norm(tokens.transpose(1, 2)).transpose(1, 2)
        return tokens

    def _refuse_missing_blocks(self, depth: int) -> None:
        if self.config.blocks is not None and max(self.config.blocks) > depth:
            raise ValueError(f"target.blocks {self.config.blocks} are not all among the teacher's blocks 1 to {depth}")


class Frozen(nn.Module):
    """An encoder of another model, with its tokenizer, that gets no gradient."""

    scale: Tensor
    shift: Tensor

    def __init__(self, tokenizer: Any, encoder: nn.Module, own: Input, other: Input) -> None:
        """For pixels normalised as `own` says, where it was trained on pixels as `other` says."""
        super().__init__()
        self.tokenizer, self.encoder = tokenizer, encoder.requires_grad_(False).eval()
        shape = (-1, *(1 for _ in own.size))  # over (B, C, s...)
        mean, std, to_mean, to_std = (torch.tensor(one).view(shape) for one in (own.mean, own.std, other.mean, other.std))
        self.register_buffer("scale", std / to_std, persistent=False)
        self.register_buffer("shift", (mean - to_mean) / to_std, persistent=False)

    def train(self, mode: bool = True) -> Self:
        """Evaluation mode, whatever the mode of the model."""
        return super().train(False)

    def split(self, x: Tensor) -> Tensor:
        """The values of its tokens, (B, N, P), of normalised pixels (B, C, s...)."""
        return self.tokenizer.split(x * self.scale + self.shift)

    def forward(self, patches: Tensor, grid: Grid, mask: Mask | None, blocks: tuple[int, ...] = ()) -> Features:
        """As an encoder's."""
        return self.encoder(patches, grid, mask, blocks)


def _is_frozen(part: nn.Module) -> bool:
    return isinstance(part, LatentTarget) and part.config.teacher != EMA


def _leave_frozen_out(part: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    if _is_frozen(part):
        for name in [name for name in state if name.startswith(f"{prefix}teacher.")]:
            del state[name]


def _miss_no_frozen(part: nn.Module, keys: Any) -> None:
    if _is_frozen(part):
        keys.missing_keys[:] = [name for name in keys.missing_keys if ".teacher." not in f".{name}"]
