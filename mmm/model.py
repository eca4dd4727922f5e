"""One forward for every method: tokenizer -> masker -> encoder -> decoder -> target.

Shapes: B samples, N tokens of the grid, P values a token, V visible, Q predicted, K values predicted a token, D width.
A mask may have more rows than there are samples: mB rows of `visible` (several masks a sample), kmB of `predict` (several
groups a mask), both sample-major; the factors are read from the shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmm.core.checks import CheckedConfig
from mmm.core.mask import Mask
from mmm.core.pretrained import Pretrained
from mmm.core.registry import PartConfig
from mmm.core.rng import sample_keys
from mmm.core.tokens import Grid
from mmm.core.types import Features, Input, pytree
from mmm.decoders import Decoder, DecoderConfig, decoders
from mmm.encoders import Encoder, EncoderConfig, encoders
from mmm.maskers import Masker, MaskerConfig, maskers
from mmm.targets import Target, TargetConfig, TargetValues, TokenTargets, targets
from mmm.tokenizers import GridTokenizer, tokenizers

if TYPE_CHECKING:
    from mmm.evaluate.reconstruction.reconstruct import Reconstruction


@pytree
@dataclass(frozen=True)
class Output:
    """The result of one forward.

    Attributes:
        loss: fp32, (). If a mask has further masks in `also`, the mean over all of them. If the samples have different sizes, the
            mean over all samples.
        prediction: (kmB, Q, K), in the precision of the forward. If there are further masks in `also`, that of the first mask. If
            the samples have different sizes, prediction, target and mask are those of the first size.
        target: fp32 (kmB, Q, K), or int64 (kmB, Q) if the target is a class, or a tuple of these; without gradient.
        mask: the mask that was used.
    """

    loss: Tensor
    prediction: Tensor
    target: TargetValues
    mask: Mask


@dataclass(frozen=True, kw_only=True)
class ModelConfig(CheckedConfig):
    """The configs of the five parts of a method."""

    tokenizer: PartConfig
    masker: MaskerConfig
    encoder: EncoderConfig
    decoder: DecoderConfig
    target: TargetConfig


class MaskedModel(Pretrained, nn.Module):
    """A masked model of images or clips, which consists of five parts.

    Example:
        model = MaskedModel.build(config, Input(size=(224, 224)))
        loss = model(x).loss                        # x: normalised (B, C, H, W); the masker draws a mask
        loss = model(x, mask=Mask(visible, predict)).loss
    """

    tokenizer: GridTokenizer
    masker: Masker
    encoder: Encoder
    decoder: Decoder | None
    target: Target
    __call__: Callable[..., Output]

    def __init__(
        self,
        tokenizer: GridTokenizer,
        masker: Masker,
        encoder: Encoder,
        decoder: Decoder | None,
        target: Target,
        *,
        data: Input | None = None,
    ) -> None:
        """Combines parts that fit each other, as `build` makes them. Without a decoder the model can only encode.

        Args:
            data: properties of the data; needed to save the model.
        """
        super().__init__()
        self.tokenizer, self.masker, self.encoder, self.decoder, self.target = tokenizer, masker, encoder, decoder, target
        self.data = data

    @classmethod
    def build(cls, config: ModelConfig, data: Input, *, seed: int | None = None) -> MaskedModel:
        """Builds each part from its config and from properties of the other parts and of the data.

        With a seed, the weights depend on the seed alone, and torch's generator is not changed.
        """
        if seed is not None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                return cls.build(config, data)
        tokenizer = tokenizers.build(config.tokenizer, channels=data.channels)
        grid = tokenizer.grid_of(data.size)
        shape = config.encoder.shape
        required = config.decoder.required_features(shape)
        if required.hidden and not (config.masker.blank or config.masker.echoes_only):
            raise ValueError(f"decoder.name {config.decoder.name} needs features of hidden tokens; set masker.blank")
        check_grid(config.encoder, config.masker)
        if config.masker.unit % shape.unit:
            raise ValueError(f"encoder.name {config.encoder.name} has units of {shape.unit} x {shape.unit} tokens; set masker.unit")
        if not required.last and shape.depth not in required.blocks:  # an unused output gets no gradient, and DDP waits for it
            raise ValueError(f"decoder.fusion_blocks leave out the encoder's last block, {shape.depth}; add it")
        encoder = encoders.build(
            config.encoder,
            token=tokenizer.size,
            channels=data.channels,
            grid=grid,
            required=required,
            blanks=config.masker.leaves_blanks,
        )
        target = targets.build(config.target, token=tokenizer.size, data=data, encoder=encoder)
        decoder = decoders.build(config.decoder, encoder=shape, grid=grid, outputs=target.widths)
        if config.masker.pads and not (encoder.takes_padding and decoder.takes_padding):
            name = f"decoder.name {decoder.config.name}" if encoder.takes_padding else f"encoder.name {encoder.config.name}"
            raise ValueError(f"{name} cannot leave out the padding of masker.name {config.masker.name}; set masker.lengths update")
        return cls(tokenizer, maskers.build(config.masker), encoder, decoder, target, data=data)

    def forward(self, x: Tensor | Sequence[Tensor], mask: Mask | Sequence[Mask] | None = None) -> Output:
        """Computes the loss of a batch.

        Args:
            x: normalised pixels, (B, C, H, W) or (B, C, T, H, W); or several such tensors of different sizes, which are computed
                together without attention between samples.
            mask: visible and predicted tokens; one mask for each size if there are several. None: drawn with torch's generator.
        """
        if self.decoder is None:
            raise ValueError("this model has no decoder and therefore no loss; use `encode` for features")
        inputs = [x] if isinstance(x, Tensor) else list(x)  # of one size each
        patches = [self.tokenizer.split(one) for one in inputs]  # (B, N, P) each
        grids = [self.tokenizer.grid(one) for one in inputs]
        families = zip(*(one.families for one in self._masks(inputs, patches, mask)), strict=True)
        token_targets = list(map(self.target.teach, inputs, patches, grids))  # once for all masks
        outputs = [self._predict(patches, grids, masks, token_targets) for masks in families]
        loss, first = torch.stack([one.loss for one in outputs]).mean(), outputs[0]
        own = [one.loss for one in token_targets if one.loss is not None]
        return Output(loss + mean_over_samples(own, inputs) if own else loss, first.prediction, first.target, first.mask)

    def _predict(
        self, patches: list[Tensor], grids: list[Grid], masks: Sequence[Mask], token_targets: list[TokenTargets]
    ) -> Output:
        """Computes the loss of one mask of each sample."""
        assert self.decoder is not None
        features = self.encoder.packed(patches, grids, masks)  # only of the visible (and blank) tokens
        predictions = self.decoder.packed(features, masks, grids)  # (kmB, Q, K) each
        targets = list(map(self.target.pick, token_targets, masks))  # (kmB, Q, K) or (kmB, Q) each
        loss = mean_over_samples(map(self.target.loss, predictions, targets, masks, features), patches)
        return Output(loss, predictions[0], targets[0], masks[0])

    def _masks(self, inputs: list[Tensor], patches: list[Tensor], mask: Mask | Sequence[Mask] | None) -> list[Mask]:
        """Returns one mask for each size of the inputs. Masks that are not given are drawn."""
        for one in inputs:
            if not one.shape[0]:
                raise ValueError(f"the input has no samples: {tuple(one.shape)}")
        if mask is None:
            return [self.draw_masks(one) for one in inputs]
        masks = [mask] if isinstance(mask, Mask) else mask
        return [one.checked(*values.shape[:2]) for one, values in zip(masks, patches, strict=True)]

    def encode(self, x: Any, *, blocks: int | tuple[int, ...] | None = None, mask: Mask | None = None) -> Features:
        """Encodes samples; `pooled`, `tokens`, `class_token` and `blocks` of the result are the features.

        Args:
            x: normalised (B, C, H, W) or (B, C, T, H, W), or images or clips in any form that `transform` takes.
            blocks: block or blocks whose outputs are returned; 0 is the input of the first block. None: those that the decoder
                requires.
            mask: only its visible tokens are encoded. None: all tokens, in the order of the grid.

        Raises:
            ValueError: a sample has a form that the model does not accept, or there is no such block or token.
        """
        x, depth = self.prepared(x), self.encoder.shape.depth
        chosen = (blocks,) if isinstance(blocks, int) else blocks
        if wrong := [block for block in chosen or () if not 0 <= block <= depth]:
            raise ValueError(f"the encoder has no block {wrong[0]}; its blocks are 1 to {depth}, and 0 is their input")
        patches = self.tokenizer.split(x)
        checked = None if mask is None else mask.checked(*patches.shape[:2])
        return self.encoder(patches, self.tokenizer.grid(x), checked, blocks=chosen)

    def reconstruct(self, x: Any, *, ratio: float | None = None, hidden: Any = None, seed: int = 0) -> Reconstruction:
        """Hides tokens, predicts all of them, and returns pixels; `mmm.draw` makes a picture of the result.

        Args:
            x: as `encode` takes it.
            ratio: fraction of hidden tokens. None: that of the masker.
            hidden: pixels to hide instead of drawn masks, see `mmm.maskers.mask_from_pixels`.
            seed: random seed of the masks.

        Returns:
            `original`, `visible`, `predicted` and `pasted`, (B, C, s...) each, in [0, 1], with NaN in empty areas.

        Raises:
            ValueError: the model has no decoder, or its predictions are not pixels.
        """
        from mmm.evaluate.reconstruction.reconstruct import reconstruct_samples

        return reconstruct_samples(self, x, ratio=ratio, hidden=hidden, seed=seed)

    def draw_masks(
        self, x: Tensor, keys: Tensor | None = None, *, masker: Masker | None = None, step: int = 0, steps: int = 1
    ) -> Mask:
        """Draws the masks of a batch. If the masker needs scores of the tokens, they come from the target.

        Args:
            x: normalised pixels, (B, C, H, W) or (B, C, T, H, W).
            keys: keys of the samples, int64 (B,). None: keys are drawn with torch's generator, for samples outside a training run.
            masker: used instead of the masker of the model.
            step: the current update, for a ratio that changes during the run.
            steps: the number of updates of the run.

        Raises:
            ValueError: the masks do not fit the encoder or the grid.
        """
        masker, grid = masker or self.masker, self.tokenizer.grid(x)
        check_grid(self.encoder.config, masker.config)
        if keys is None:
            keys = sample_keys(int(torch.randint(2**62, ())), 0, torch.arange(x.shape[0], device=x.device))
        if not masker.needs_scores:
            return masker(keys, grid, step=step, steps=steps)
        return masker(keys, grid, step=step, steps=steps, scores=self.target.scores(x, self.tokenizer.split(x), grid))


def check_grid(encoder: EncoderConfig, masker: MaskerConfig) -> None:
    """Raises ValueError if an encoder needs a whole grid, and masks drop tokens so that the others form none."""
    if encoder.shape.whole and not (masker.blank or masker.keeps_grid):
        raise ValueError(
            f"{masker.name or 'painted'} masks leave no whole grid, which encoder.name {encoder.name} needs: set masker.blank, or "
            "for swin masker.name uniform with masker.unit 1"
        )


def mean_over_samples(losses: Iterable[Tensor], inputs: list[Tensor]) -> Tensor:
    """Returns the mean loss of all samples, (), from the mean losses of each size. Each sample has the same weight."""
    losses = list(losses)
    if len(losses) == 1:
        return losses[0]
    samples = sum(one.shape[0] for one in inputs)
    return torch.stack([loss * (one.shape[0] / samples) for loss, one in zip(losses, inputs, strict=True)]).sum()
