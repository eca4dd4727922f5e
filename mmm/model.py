"""One forward for every method: tokenizer -> masker -> encoder -> decoder -> target.

Shapes: B samples, N tokens of the grid, P values a token, V visible, Q predicted, K values predicted a token, D width.
A mask may have more rows than there are samples: mB rows of `visible` (several masks a sample), kmB of `predict` (several
groups a mask), both sample-major; the factors are read from the shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmm.core.mask import Mask
from mmm.core.pretrained import Pretrained
from mmm.core.registry import PartConfig
from mmm.core.rng import sample_keys
from mmm.core.types import Features, Input, pytree
from mmm.decoders import Decoder, DecoderConfig, decoders
from mmm.encoders import Encoder, EncoderConfig, encoders
from mmm.layers.cpu_bf16 import use_cpu_bf16_kernels
from mmm.maskers import Masker, MaskerConfig, maskers
from mmm.targets import Target, TargetConfig, TargetValues, targets
from mmm.tokenizers import GridTokenizer, tokenizers

if TYPE_CHECKING:
    from mmm.evaluate.reconstruction.reconstruct import Reconstruction


@pytree
@dataclass(frozen=True)
class Output:
    """The result of one forward.

    Attributes:
        loss: () fp32; of a mask that holds several, the mean over them.
        prediction: (kmB, Q, K), in the forward's precision; of a mask that holds several, the first one's.
        target: (kmB, Q, K) fp32, or (kmB, Q) int64 where the target is a class, or several of these; carries no gradient.
        mask: the one that was used.
    """

    loss: Tensor
    prediction: Tensor
    target: TargetValues
    mask: Mask


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The five choices that make a method, each the `Config` of a registered part."""

    tokenizer: PartConfig
    masker: MaskerConfig
    encoder: EncoderConfig
    decoder: DecoderConfig
    target: TargetConfig


class MaskedModel(Pretrained, nn.Module):
    """A masked autoencoder of images or clips, put together from five parts.

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
        """Puts parts together that fit each other; `build` makes such parts. Without a decoder, `encode` is all it can do.

        Args:
            data: what the data dictated to the parts; needed to save the model.
        """
        super().__init__()
        self.tokenizer, self.masker, self.encoder, self.decoder, self.target = tokenizer, masker, encoder, decoder, target
        self.data = data
        use_cpu_bf16_kernels(self)

    @classmethod
    def build(cls, config: ModelConfig, data: Input, *, seed: int | None = None) -> MaskedModel:
        """Builds each part from its own choices and from what the others and the data dictate.

        With a seed the weights depend on nothing else, and torch's generator stays as it was.
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
            raise ValueError(f"decoder.name {config.decoder.name} predicts from the encoder's own hidden tokens; set masker.blank")
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
        return cls(tokenizer, maskers.build(config.masker), encoder, decoder, target, data=data)

    def forward(self, x: Tensor, mask: Mask | None = None) -> Output:
        """The loss of a batch.

        Args:
            x: normalised pixels, (B, C, H, W) or (B, C, T, H, W).
            mask: what is visible and what is predicted; drawn from torch's generator where none is given.
        """
        if self.decoder is None:
            raise ValueError("this model holds no decoder, so it has no loss; `encode` gives its features")
        if not x.shape[0]:
            raise ValueError(f"the input holds no sample: {tuple(x.shape)}")
        patches = self.tokenizer.split(x)  # (B, N, P)
        grid = self.tokenizer.grid(x)
        mask = self.draw_masks(x) if mask is None else mask.checked(x.shape[0], patches.shape[1])
        token_targets = self.target.teach(x, patches, grid)  # once, however many masks there are
        losses, answers = [], []
        for one in mask.families:
            features = self.encoder(patches, grid, one)  # of the visible (and blank) tokens only
            prediction = self.decoder(features, one, grid)  # (kmB, Q, K)
            target = self.target.pick(token_targets, one)  # (kmB, Q, K) or (kmB, Q)
            losses.append(self.target.loss(prediction, target, one, features))
            answers.append((prediction, target))
        loss = torch.stack(losses).mean()
        if token_targets.loss is not None:
            loss = loss + token_targets.loss
        return Output(loss, *answers[0], mask)

    def encode(self, x: Any, *, blocks: tuple[int, ...] | None = None, mask: Mask | None = None) -> Features:
        """Encodes samples; `pooled`, `tokens`, `class_token` and `blocks` of the result are the features.

        Args:
            x: normalised (B, C, H, W) or (B, C, T, H, W), or images or clips in any form that `transform` takes.
            blocks: blocks whose outputs are kept, 0 for what enters the first. None: those that the decoder requires.
            mask: encodes only what it shows. None: every token, in the grid's order.

        Raises:
            ValueError: a sample cannot be taken.
        """
        x = self.prepared(x)
        return self.encoder(self.tokenizer.split(x), self.tokenizer.grid(x), mask, blocks=blocks)

    def reconstruct(self, x: Any, *, ratio: float | None = None, seed: int = 0) -> Reconstruction:
        """Hides tokens, predicts all of them, and returns pixels; `mmm.draw` makes a picture of the result.

        Args:
            x: as `encode` takes it.
            ratio: fraction of all tokens that is hidden. None: the masker's own.
            seed: of the masks.

        Returns:
            `original`, `visible`, `predicted` and `pasted`, (B, C, s...) each, in [0, 1]; not a number where there is nothing.

        Raises:
            ValueError: the model has no decoder, or its predictions are not pixels.
        """
        from mmm.evaluate.reconstruction.reconstruct import reconstruct_samples

        return reconstruct_samples(self, x, ratio=ratio, seed=seed)

    def draw_masks(
        self, x: Tensor, keys: Tensor | None = None, *, masker: Masker | None = None, step: int = 0, steps: int = 1
    ) -> Mask:
        """Draws the masks of a batch, with scores of its tokens from the target where the masker needs them.

        Args:
            x: normalised pixels, (B, C, H, W) or (B, C, T, H, W).
            keys: int64 (B,), of the samples. None: outside a training run samples have none, and torch's own generator seeds them.
            masker: instead of the model's own.
            step, steps: where the run stands.
        """
        masker, grid = masker or self.masker, self.tokenizer.grid(x)
        if keys is None:
            keys = sample_keys(int(torch.randint(2**62, ())), 0, torch.arange(x.shape[0], device=x.device))
        if not masker.needs_scores:
            return masker(keys, grid, step=step, steps=steps)
        return masker(keys, grid, step=step, steps=steps, scores=self.target.scores(x, self.tokenizer.split(x), grid))
