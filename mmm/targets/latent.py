"""Features of a teacher as the target: of the encoder's moving average, which sees the hidden tokens, or of a frozen model.

I-JEPA (Assran et al., CVPR 2023) and V-JEPA (Bardes et al., 2024) predict the normed output of the average. data2vec 2.0
(Baevski et al., ICML 2023) predicts the mean output of the MLPs in its last blocks, V-JEPA 2.1 the outputs of four blocks. In
SdAE (Chen et al., ECCV 2022) the average sees only the hidden tokens. SALT (Li et al., 2025), UMT (Li et al., ICCV 2023) and
EVA use a frozen model.

Shapes: B samples, N tokens of the grid, mB masks, kmB rows of Q predicted tokens, L concatenated blocks, D width of the teacher,
K values per token, D or L D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mmm.core.checks import NonNegative, Positive
from mmm.core.mask import Mask
from mmm.core.tokens import Grid, repeat_rows, take
from mmm.core.types import Features, Input
from mmm.layers.attention_map import last_attention
from mmm.targets.average import Average, AverageConfig
from mmm.targets.base import Samples, Target, TargetValues, TokenTargets, targets
from mmm.targets.losses import ValueLoss, mean_loss
from mmm.targets.teachers import Frozen, FrozenEncoder, leave_out_frozen, read_teacher

EMA = "ema"


@targets.register("latent")
class LatentTarget(Target):
    """The features of the predicted tokens in the teacher."""

    @dataclass(frozen=True, kw_only=True)
    class Config(AverageConfig):
        teacher: str = EMA
        """Teacher. ema: the moving average of the encoder. A run folder, a file or a name on the hub: its encoder, frozen.
        timm:NAME or transformers:NAME: a frozen vision transformer of images from a library, by name or folder."""

        teacher_width: Positive | None = None
        """Width of a frozen teacher's features. None: the encoder's width."""

        blocks: tuple[Positive, ...] | None = None
        """The teacher's blocks, counted from 1, whose outputs are the target (data2vec 2.0: the last ten of twelve). None: the
        last output, after the final norm."""

        block_output: Literal["block", "mlp"] = "block"
        """Output of a block. block: its output. mlp: the output of its MLP (data2vec 2.0)."""

        join: bool = False
        """Concatenate the outputs of the blocks (V-JEPA 2.1, UMT) instead of averaging them (data2vec 2.0). The loss compares
        each output separately."""

        block_norm: Literal["none", "layer", "instance", "final"] = "none"
        """Norm of each block's output. layer: over each token's values, without weights (V-JEPA 2.1). instance: over the
        tokens, for each value, without weights (data2vec 2.0). final: the norm of a frozen teacher after its last block
        (UMT)."""

        norm: Literal["none", "layer"] = "layer"
        """Norm of the target, over each token's values, without weights."""

        norm_prediction: bool = False
        """Also norm the predictions, over each token's values, without weights (BootMAE)."""

        view: Literal["all", "hidden"] = "all"
        """Tokens that the teacher sees. all: the whole sample. hidden: only the predicted tokens (SdAE)."""

        loss: ValueLoss = "smooth_l1"
        """Loss per token."""

        class_weight: NonNegative = 0.0
        """Weight of the loss between the encoder's class token, or the mean of several, and the mean target of all tokens
        (data2vec 2.0)."""

        def validate(self) -> None:
            super().validate()
            if self.join and self.blocks is None:
                raise ValueError("target.join needs target.blocks, the blocks whose outputs are concatenated")
            if self.block_output == "mlp" and (self.blocks is None or self.teacher != EMA):
                raise ValueError("target.block_output mlp needs target.blocks and target.teacher ema")
            if self.block_norm == "final" and (self.blocks is None or self.teacher == EMA):
                raise ValueError("target.block_norm final needs target.blocks and a frozen target.teacher")
            if self.blocks == ():
                raise ValueError("target.blocks is empty; give blocks, or none for the last output")
            if self.class_weight and self.view == "hidden":
                raise ValueError(f"target.class_weight {self.class_weight} needs target.view all: the mean is of all tokens")
            if self.teacher == EMA and self.teacher_width is not None:
                raise ValueError("target.teacher_width is for a frozen teacher; the average is as wide as the encoder")

    config: Config
    teacher: Average | FrozenEncoder | None

    def __init__(self, config: Config, *, token: tuple[int, ...], data: Input, encoder: Any) -> None:
        """Builds the target with a copy of the encoder; `begin` reads a frozen teacher."""
        super().__init__()
        self.config, self.data, self.token, shape = config, data, token, encoder.shape
        if config.class_weight and not shape.class_tokens:
            raise ValueError("target.class_weight needs a class token; give the encoder one, or set target.class_weight 0")
        if config.class_weight and (config.join or config.teacher_width is not None):
            raise ValueError(
                "target.class_weight needs a target as wide as the encoder, because it compares the class token with it"
            )
        if config.block_output not in encoder.block_outputs:
            raise ValueError(f"target.block_output {config.block_output}: encoder.name {encoder.config.name} has none; vit has")
        self.levels = len(config.blocks) if config.join and config.blocks else 1
        self.width = (config.teacher_width or shape.width) * self.levels
        self.teacher = None
        if config.teacher == EMA:
            self._refuse_missing_blocks(shape.depth)
            self.teacher = Average(encoder, config.block_output)
        # each training reads a frozen teacher again, so that its checkpoints do not contain it
        leave_out_frozen(self)

    @property
    def widths(self) -> tuple[int, ...]:
        """The number of values of each concatenated block; otherwise the number of all values."""
        return (self.width // self.levels,) * self.levels

    @property
    def may_collapse(self) -> bool:
        """True if the teacher is the encoder's moving average."""
        return self.config.teacher == EMA

    def begin(self, model: Any, load: Callable[[str], Any], samples: Samples | None) -> None:
        """Sets the average equal to the encoder, or reads a frozen teacher.

        Raises:
            ValueError: the teacher cannot be read, or its features have another shape.
        """
        if isinstance(self.teacher, Average):
            if samples is not None:
                self.teacher.restart(model.encoder)
            return
        name, found = self.config.teacher, read_teacher(self.config.teacher, load, self.data, self.token)
        if found.width != self.width // self.levels:
            raise ValueError(f"target.teacher {name} has features of width {found.width}; set target.teacher_width {found.width}")
        self._refuse_missing_blocks(found.depth)
        self.teacher = found.to(next(model.parameters()).device)

    def unsaved(self) -> dict[str, Tensor]:
        """Returns the weights of a frozen teacher."""
        return self.teacher.state_dict() if isinstance(self.teacher, Frozen) else {}

    @torch.no_grad()
    def teach(self, x: Tensor, patches: Tensor, grid: Grid) -> TokenTargets:
        """Returns the values of every token, (B, N, K), or the teacher's input if it sees only the predicted tokens."""
        if self.teacher is None:
            raise ValueError(f"target.teacher {self.config.teacher} was not loaded, so there is no loss; call target.begin first")
        return TokenTargets((x, patches, grid) if self.config.view == "hidden" else self._encode(x, patches, grid, None))

    @torch.no_grad()
    def scores(self, x: Tensor, patches: Tensor, grid: Grid) -> Tensor:
        """Returns the attention of the teacher's last block to each token, (B, N)."""
        if self.teacher is None:
            raise ValueError(f"target.teacher {self.config.teacher} was not loaded: call target.begin first")
        if isinstance(self.teacher, FrozenEncoder):
            return self.teacher.scores(x, grid)
        with last_attention(self.teacher) as look:
            prefix = self.teacher(patches, grid, None).prefix
        return look(prefix)

    @torch.no_grad()
    def pick(self, token_targets: TokenTargets, mask: Mask) -> TargetValues:
        """Returns the values of the predicted tokens, (kmB, Q, K), and with `class_weight` those of each class token, (mB, K)."""
        if self.config.view == "hidden":
            x, patches, grid = token_targets.tokens
            seen = Mask(mask.predict, mask.predict, valid=mask.valid_predict, valid_predict=mask.valid_predict)
            return self._encode(x, patches, grid, seen)
        target = take(token_targets.tokens, mask.predict)
        return (target, repeat_rows(token_targets.tokens.mean(1), len(mask.visible))) if self.config.class_weight else target

    def loss(self, prediction: Tensor, target: TargetValues, mask: Mask, features: Features) -> Tensor:
        """Returns the mean loss per predicted token plus that of the class token, ()."""
        tokens, pooled = target if isinstance(target, tuple) else (target, None)
        levels, weight = self.levels, mask.weight
        if levels > 1:  # compares each block separately, (kmB, Q, L D) -> (kmB, Q L, D)
            prediction, tokens = (one.unflatten(2, (levels, -1)).flatten(1, 2) for one in (prediction, tokens))
            weight = None if weight is None else weight.repeat_interleave(levels, dim=1)
        if self.config.norm_prediction:
            prediction = F.layer_norm(prediction, prediction.shape[-1:])
        loss = mean_loss(self.config.loss, prediction, tokens, weight)
        if pooled is None:
            return loss
        return loss + self.config.class_weight * mean_loss(self.config.loss, features.class_token[:, None], pooled[:, None], None)

    def update(self, model: Any, step: int, steps: int, made: Tensor) -> None:
        """Updates the moving average from the encoder."""
        if isinstance(self.teacher, Average):
            self.teacher.follow(model.encoder, self.config.decay_at(step, steps), made)

    def _encode(self, x: Tensor, patches: Tensor, grid: Grid, mask: Mask | None) -> Tensor:
        """Returns the values of the tokens that the teacher sees, (B, M, K), in fp32 or better."""
        blocks, teacher = self.config.blocks, self.teacher
        chosen = teacher.features(x, grid, blocks, mask) if isinstance(teacher, FrozenEncoder) else None
        if isinstance(teacher, Average):
            chosen = teacher.tokens(patches, grid, blocks, mask)
        assert chosen is not None
        maps = [self._normed(one) for one in chosen]
        target = torch.cat(maps, dim=-1) if self.config.join else torch.stack(maps).mean(0)
        return F.layer_norm(target, target.shape[-1:]) if self.config.norm == "layer" else target

    def _normed(self, tokens: Tensor) -> Tensor:
        """Returns a block's output, (B, M, D), in fp32 or better, with the target's norm."""
        tokens = tokens if tokens.dtype.itemsize >= 4 else tokens.float()
        if self.config.block_norm == "final" and isinstance(self.teacher, FrozenEncoder):
            return self.teacher.norm(tokens)
        if self.config.block_norm == "layer":
            return F.layer_norm(tokens, tokens.shape[-1:])
        if self.config.block_norm == "instance":
            return F.instance_norm(tokens.transpose(1, 2)).transpose(1, 2)
        return tokens

    def _refuse_missing_blocks(self, depth: int) -> None:
        if self.config.blocks is not None and max(self.config.blocks) > depth:
            raise ValueError(f"target.blocks {self.config.blocks} are not all among the teacher's blocks 1 to {depth}")
