"""Measures a model over batches: its encoder without a mask, its decoder and predictions with masks as in training.

For a hierarchical encoder, an encoder without a decoder, or a target other than pixels, only the applicable measures are computed;
the result names those that were left out.

Shapes: B samples, C channels, s... the sample's axes, N tokens, R prefix tokens, D width, h heads, K keys, Q predicted tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmm.core.mask import Mask
from mmm.core.tokens import Grid, repeat_rows, take
from mmm.core.types import Input
from mmm.encoders import VisionTransformer
from mmm.evaluate.attention.decoder_attention import DecoderAttention, attention_weights, watching
from mmm.evaluate.attention.fusion_weights import MapSizes, fusion_of, fusion_weights
from mmm.evaluate.inside.distance import RINGS, attention_distance, even_distance, ring_shares, token_places, tokens_read
from mmm.evaluate.inside.errors import DISTANCES, MOTIONS, ErrorByBin, ErrorByFrequency, nearest_visible, token_motion
from mmm.evaluate.inside.kernel import asymmetry, effective_rank, participation_ratio, spectrum
from mmm.evaluate.inside.similarity import MinibatchCKA
from mmm.evaluate.inside.stability import layer_changes, noise_gain
from mmm.evaluate.reconstruction.reconstruct import HiddenError, reconstruct
from mmm.layers.transformer import CrossAttention, SelfAttention
from mmm.model import MaskedModel

RATIOS = (0.5, 0.75, 0.9)
"""Fractions of hidden tokens at which predictions are measured."""
ATTENTION, GAIN = "attention of the encoder", "gain of noise"
RANKED = 2  # samples of a batch whose attention matrices are decomposed: a singular value decomposition per head and block


class Mean:
    """Accumulates a mean of tensors over batches, weighted by their samples."""

    def __init__(self) -> None:
        """Starts with nothing."""
        self.total: Tensor | None = None
        self.count = 0

    def add(self, value: Tensor, samples: int) -> None:
        """Adds the mean over a number of samples."""
        value = value.detach().cpu().double() * samples
        self.total = value if self.total is None else self.total + value
        self.count += samples

    def list(self) -> Any:
        """Returns the mean as nested lists of floats, or an empty list if nothing was added."""
        return [] if self.total is None else (self.total / self.count).tolist()


class Inspection:
    """Accumulates the measures of one model.

    Example:
        inspection = Inspection(model, data)
        for x, keys in batches:
            inspection.add(x, keys)
        found = inspection.result()
    """

    def __init__(self, model: MaskedModel, data: Input) -> None:
        """Prepares to measure.

        Args:
            model: on its device and in evaluation mode. The caller disables gradients.
            data: normalisation of the samples.
        """
        self.model, self.data, self.samples = model, data, 0
        self.cka = MinibatchCKA()
        self.change, self.cosine, self.gain, self.directions = Mean(), Mean(), Mean(), Mean()
        measures = ("distance", "tokens_read", "effective_rank", "prefix_share", "spectrum")
        self.attention: dict[str, list[Mean]] = {name: [] for name in measures}
        self.even: float | None = None
        self.decoder, self.even_rings = DecoderAttention(), Mean()
        self.rings: dict[str, Mean] = {}  # for the decoder's layers that read visible tokens
        self.by_distance, self.by_frequency, self.by_motion = ErrorByBin(DISTANCES), ErrorByFrequency(), ErrorByBin(MOTIONS)
        self.maps = MapSizes()
        self.by_ratio: dict[float, HiddenError] = {}
        self.left_out = _left_out(model)

    @property
    def predicts_pixels(self) -> bool:
        """True if the model has a decoder whose predictions can be shown as pixels."""
        return self.model.decoder is not None and self.model.target.shows_pixels

    def layers(self, x: Tensor) -> list[Tensor]:
        """Returns the input of the first block and the output of each block, (B, R + N, D) each, without a mask.

        The finer tokens of a hierarchical encoder are concatenated, (B, N a b, D'). If the blocks of an encoder cannot be read,
        only the last output is returned.
        """
        encoder, numbers = self.model.encoder, tuple(range(self.model.encoder.shape.depth + 1))
        patches, grid = self.model.tokenizer.split(x), self.model.tokenizer.grid(x)
        try:
            features = encoder(patches, grid, None, blocks=numbers)
        except ValueError as error:
            self.left_out.setdefault("layers before the last one", str(error))
            return [encoder(patches, grid, None, blocks=()).last]
        layers = [features.blocks[number] for number in numbers]
        if encoder.shape.stages:
            widths = [next(stage.width for stage in encoder.shape.stages if number <= stage.block) for number in numbers]
            layers = [layer.unflatten(2, (-1, width)).flatten(1, 2) for layer, width in zip(layers, widths, strict=True)]
        return layers

    def add(self, x: Tensor, keys: Tensor) -> list[Tensor]:
        """Adds a batch, and returns the mean token of each layer, (B, D) each, for a comparison with another model.

        Args:
            x: normalised, (B, C, s...); at least 4 samples.
            keys: int64 (B,), from which masks are drawn.
        """
        layers = self._encoder(x)
        if self.model.decoder is not None:
            self._decoder(x, keys)
        if self.predicts_pixels:
            self._predictions(x, keys)
        self.samples += len(x)
        return layers

    def _encoder(self, x: Tensor) -> list[Tensor]:
        """Measures layers and attention of the encoder on whole samples."""
        grid, seen = self.model.tokenizer.grid(x), [0]
        places = token_places(grid, self.model.tokenizer.size)[None].to(x.device)  # (1, N, a)
        self.even = even_distance(places, places)
        prefix = self.model.encoder.shape.prefix

        def see(_: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            weights = attention_weights(layer, inputs)  # (B, h, R + N, R + N)
            own = weights[:, :, prefix:]
            shares = spectrum(weights[:RANKED])  # (RANKED, h, R + N)
            found = {
                "distance": attention_distance(own[..., prefix:], places, places),
                "tokens_read": tokens_read(own),
                "effective_rank": effective_rank(shares).mean(0),
                "spectrum": shares.mean((0, 1)),
                "prefix_share": own[..., :prefix].sum(-1).mean((0, 2)),
            }
            for name, value in found.items():
                if seen[0] == len(self.attention[name]):
                    self.attention[name].append(Mean())
                self.attention[name][seen[0]].add(value, len(x))
            seen[0] += 1

        with watching(self.model.encoder, see) if attends(self.model.encoder) else nullcontext():
            layers = self.layers(x)
        pooled = [layer[:, prefix:].mean(1) for layer in layers]  # (B, D) each
        self.cka.add(pooled)
        if len(layers) > 1 and not self.model.encoder.shape.stages:
            for mean, value in zip((self.change, self.cosine), layer_changes(layers), strict=True):
                mean.add(value, len(x))
        if GAIN not in self.left_out:
            blocks = _whole_grid_blocks(self.model.encoder, grid, x.device)
            gains = [noise_gain(block, layer) for block, layer in zip(blocks, layers[:-1], strict=True)]
            self.gain.add(torch.tensor(gains), len(x))
        tokens = [layer[:, prefix:].flatten(0, 1) for layer in layers]
        self.directions.add(torch.tensor([participation_ratio(values) for values in tokens]), len(x))
        return pooled

    def _decoder(self, x: Tensor, keys: Tensor) -> None:
        """Measures the attention of predicted tokens to other tokens, with a mask as in training."""
        patches, grid = self.model.tokenizer.split(x), self.model.tokenizer.grid(x)
        mask = self.model.draw_masks(x, keys).trimmed()
        features = self.model.encoder(patches, grid, mask)
        assert self.model.decoder is not None
        if fusion_of(self.model.decoder) is not None:
            self.maps.add(features)
        if not attends(self.model.decoder):
            return
        self.decoder.add(self.model.decoder, features, mask, grid)
        places = token_places(grid, (1,) * len(grid)).to(x.device)
        to = take(places[None], mask.predict)  # (kmB, Q, a)
        visible = repeat_rows(take(places[None], mask.visible), len(mask.predict))  # (kmB, V, a)

        def see(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            weights = attention_weights(layer, inputs, slice(-mask.predict.shape[1], None))  # (B, h, Q, K)
            first = features.prefix
            if weights.shape[-1] >= first + mask.visible.shape[1]:
                found, even = ring_shares(weights[..., first : first + mask.visible.shape[1]], to, visible)
                self.rings.setdefault(name, Mean()).add(found, len(x))
                self.even_rings.add(even, len(x))

        with watching(self.model.decoder, see):
            self.model.decoder(features, mask, grid)

    def _predictions(self, x: Tensor, keys: Tensor) -> None:
        """Measures predictions of all hidden tokens: by distance, by frequency, and at several ratios."""
        own = reconstruct(self.model, x, self.data, keys)
        frames = (lambda value: value.movedim(2, 1).flatten(0, 1)) if x.dim() == 5 else (lambda value: value)
        pasted, original = frames(own.pasted), frames(own.original)
        self.by_frequency.add(pasted, original)
        grid = self.model.tokenizer.grid(x)
        mask = self._mask_of(own.visible)
        difference = self.model.tokenizer.split((own.pasted - own.original).to(x.device))  # (B, N, P)
        error = take(difference, mask.predict).square().mean(-1)  # (B, Q)
        self.by_distance.add(error, nearest_visible(mask, token_places(grid, (1,) * len(grid)).to(x.device)))
        if x.dim() == 5 and x.shape[2] > 1:
            motion = token_motion(own.original.to(x.device), self.model.tokenizer.split)  # (B, N)
            self.by_motion.add(error, take(motion, mask.predict))
        masker = self.model.masker
        for ratio in RATIOS:
            try:
                self.model.masker = masker.with_ratio(ratio)
                self.by_ratio.setdefault(ratio, HiddenError()).add([reconstruct(self.model, x, self.data, keys)])
            except ValueError as error:  # too few tokens, for instance
                self.left_out[f"predictions with {ratio:.0%} hidden"] = str(error)
                self.by_ratio.pop(ratio, None)
            finally:
                self.model.masker = masker

    def _mask_of(self, visible: Tensor) -> Mask:
        """Returns the mask of a picture of visible tokens, in which the values of hidden tokens are NaN."""
        hidden = self.model.tokenizer.split(visible).isnan().any(-1)  # (B, N)
        order = hidden.byte().argsort(dim=1, stable=True)
        count = int((~hidden[0]).sum())
        return Mask(order[:, :count], order[:, count:])

    def result(self) -> dict[str, Any]:
        """Returns plain numbers: lists by layer, by block and head, by distance, by frequency and by ratio."""
        found: dict[str, Any] = {
            "samples": self.samples,
            "left_out": self.left_out,
            "cka": self.cka.result().tolist(),
            "stability": {"change": self.change.list(), "cosine": self.cosine.list(), "noise_gain": self.gain.list()},
            "directions": self.directions.list(),
            "attention": {name: [mean.list() for mean in means] for name, means in self.attention.items()} | {"even": self.even},
            "asymmetry": [_asymmetries(block) for block in _blocks(self.model.encoder)],
        }
        if self.decoder.samples:
            found["decoder"] = self.decoder.result() | {"rings": self._rings()}
            for layer in found["decoder"]["layers"]:
                layer["rings"] = self.rings[layer["layer"]].list() if layer["layer"] in self.rings else []
        fusion = None if self.model.decoder is None else fusion_of(self.model.decoder)
        if fusion is not None and self.maps.samples:
            found["fusion"] = fusion_weights(fusion, self.maps)
        if self.predicts_pixels and self.samples:
            found["errors"] = {
                "by_distance": self.by_distance.result(),
                "by_frequency": self.by_frequency.result(),
                "by_motion": self.by_motion.result() if self.by_motion.counts.sum() else [],
                "psnr_by_ratio": {str(ratio): error.psnr() for ratio, error in self.by_ratio.items()},
            }
        return found

    def _rings(self) -> list[dict[str, Any]]:
        """Returns the share of the decoder's attention to visible tokens by distance, the mean over layers and heads."""
        if not self.rings:
            return []
        means = torch.stack([torch.tensor(mean.list()).mean(0) for mean in self.rings.values()]).mean(0)
        ends = [None if math.isinf(end) else end for end in RINGS]
        pairs = zip(ends, means.tolist(), self.even_rings.list(), strict=True)
        return [{"up_to": end, "share": share, "even": even} for end, share, even in pairs]


def attends(part: nn.Module) -> bool:
    """Returns True if a part has attention layers whose weights can be read."""
    return any(isinstance(layer, (SelfAttention, CrossAttention)) for layer in part.modules())


def _left_out(model: MaskedModel) -> dict[str, str]:
    """Returns the measures that do not apply to a model, with the reasons."""
    encoder, decoder, found = model.encoder, model.decoder, {}
    kind = type(encoder).__name__
    if encoder.shape.stages:
        found[ATTENTION] = f"the stages of {kind} have tokens of different sizes"
        found["changes by each block"] = found[ATTENTION]
    elif not attends(encoder):
        found[ATTENTION] = f"the attention layers of {kind} cannot be read"
    if ATTENTION in found:
        found[GAIN] = found[ATTENTION]
    elif getattr(encoder.config, "rotary", "none") != "none":
        found[GAIN] = "blocks with rotary positions cannot be run alone"
    if decoder is None:
        found["attention and errors of predictions"] = "the model has no decoder"
    else:
        if not attends(decoder):
            found["attention of predicted tokens"] = f"{type(decoder).__name__} has no attention"
        if not model.target.shows_pixels:
            found["errors of predictions"] = f"{type(model.target).__name__} cannot be shown as pixels"
    return found


def _blocks(encoder: nn.Module) -> list[nn.Module]:
    """Returns the encoder's blocks in their order, or an empty list if the encoder has no attribute `blocks`."""
    blocks = getattr(encoder, "blocks", None)
    return list(blocks) if isinstance(blocks, nn.ModuleList) else []


def _whole_grid_blocks(encoder: nn.Module, grid: Grid, device: torch.device) -> list[Callable[[Tensor], Tensor]]:
    """Returns the encoder's blocks as functions of all tokens of a grid, (B, R + N, D) -> (B, R + N, D), with their relative
    positions if the encoder has them."""
    relative = None
    if isinstance(encoder, VisionTransformer):
        relative = encoder.relative(grid, torch.arange(math.prod(grid), device=device)[None])
    return [block if relative is None else partial(block, relative=relative) for block in _blocks(encoder)]


def _asymmetries(block: nn.Module) -> list[float]:
    """Returns the asymmetry of each head's query-key form, multiplied by the gain of the preceding norm."""
    attention = getattr(block, "attn", None)
    if not isinstance(attention, SelfAttention):
        return []
    gain = getattr(getattr(block, "norm1", None), "weight", None)
    weight = attention.qkv.weight if gain is None else attention.qkv.weight * gain  # (3 D, D)
    query, key, _ = weight.chunk(3)
    heads = attention.num_heads
    return [asymmetry(q, k) for q, k in zip(query.chunk(heads), key.chunk(heads), strict=True)]
