"""Frozen teachers: trained encoders whose features are a target.

A teacher is a run or any weights that `mmm.load` reads. With `timm:NAME` or `transformers:NAME` it is a vision transformer of
images from a library (EVA, CLIP, DINOv2), which reads the frames of a clip separately.

Shapes: B samples, C channels, s... axes of a sample, N tokens of the grid, M visible tokens, R prefix tokens, D width.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.core.mask import Mask
from mmm.core.tokens import Grid
from mmm.core.types import Input
from mmm.layers.attention_map import last_attention

logger = logging.getLogger(__name__)

LIBRARIES = ("timm", "transformers")
FINAL_NORMS = ("norm", "fc_norm", "layernorm", "post_layernorm", "post_layer_norm")  # names of the norm after the last block
# names of what timm's attention layers add to a joint qkv layer: rotations, biases of queries, biases of relative positions
MORE_ATTENTION = ("rope", "q_bias", "relative_position_bias_table", "rel_pos")


class Frozen(nn.Module):
    """A trained network without gradients, which checkpoints do not contain: each training reads it again.

    Its inputs are normalised like the model's input, even if the network was trained with another normalisation.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, own: Input, mean: Sequence[float], std: Sequence[float]) -> None:
        """Wraps a network that was trained with this mean and standard deviation; `own` is the normalisation of its inputs."""
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        (own_mean, own_std), (mean_, std_) = ([torch.tensor(one) for one in pair] for pair in ((own.mean, own.std), (mean, std)))
        self.register_buffer("scale", own_std / std_, persistent=False)  # (C,)
        self.register_buffer("shift", (own_mean - mean_) / std_, persistent=False)

    def train(self, mode: bool = True) -> Self:
        """Keeps evaluation mode, also if the model is set to training mode."""
        return super().train(False)

    def pixels(self, x: Tensor) -> Tensor:
        """Converts inputs (B, C, s...) to the normalisation of the network."""
        shape = (-1, *(1 for _ in x.shape[2:]))  # broadcasts over (B, C, s...)
        return x * self.scale.view(shape) + self.shift.view(shape)


class FrozenEncoder(Frozen, ABC):
    """A trained encoder without gradients.

    Attributes:
        width: width of the features, D.
        depth: number of blocks.
    """

    width: int
    depth: int

    def features(self, x: Tensor, grid: Grid, blocks: tuple[int, ...] | None, mask: Mask | None = None) -> list[Tensor]:
        """Returns the outputs of these blocks, counted from 1 (None: the normed last output), for visible tokens, (B, M, D) each.

        Args:
            x: input, normalised like the model's input, (B, C, s...).
            mask: the mask of visible tokens. None: all tokens of the grid, in order.
        """
        return self.outputs(self.pixels(x), grid, blocks, mask)

    def norm(self, tokens: Tensor) -> Tensor:
        """Applies the network's final norm to the output of a block, (B, M, D).

        Raises:
            ValueError: the network has no final norm.
        """
        layer = self.final_norm
        if layer is None:
            raise ValueError(f"target.block_norm final: {type(self.network).__name__} has no norm after its last block")
        return layer(tokens)

    @property
    def final_norm(self) -> nn.Module | None:
        """The network's norm after its last block, or None."""
        layers = (getattr(self.network, name, None) for name in FINAL_NORMS)
        return next((one for one in layers if isinstance(one, nn.Module) and not isinstance(one, nn.Identity)), None)

    @abstractmethod
    def scores(self, x: Tensor, grid: Grid) -> Tensor:
        """Returns the attention of the last block to each token, (B, N): see `mmm.layers.attention_map`.

        Args:
            x: input, normalised like the model's input, (B, C, s...).
        """

    @abstractmethod
    def outputs(self, x: Tensor, grid: Grid, blocks: tuple[int, ...] | None, mask: Mask | None) -> list[Tensor]:
        """Returns the same as `features`, for pixels with the network's own normalisation."""


class FrozenRun(FrozenEncoder):
    """The encoder of a masked model, with its tokenizer."""

    def __init__(self, model: Any, own: Input) -> None:
        data = model.data or own
        super().__init__(model.encoder, own, data.mean, data.std)
        self.tokenizer, self.width, self.depth = model.tokenizer, model.encoder.shape.width, model.encoder.shape.depth

    def outputs(self, x: Tensor, grid: Grid, blocks: tuple[int, ...] | None, mask: Mask | None) -> list[Tensor]:
        found = self.network(self.tokenizer.split(x), grid, mask, blocks or ())
        return [one[:, found.prefix :] for one in ([found.last] if blocks is None else [found.blocks[b] for b in blocks])]

    def scores(self, x: Tensor, grid: Grid) -> Tensor:
        with last_attention(self.network) as look:
            prefix = self.network(self.tokenizer.split(self.pixels(x)), grid, None).prefix
        return look(prefix)


class FrozenImages(FrozenEncoder):
    """A vision transformer of images from a library.

    Images are resized so that its patches form the model's grid, as in UMT and EVA. Only the first frame of a tube is used.
    """

    def __init__(
        self, network: nn.Module, own: Input, mean: Sequence[float], std: Sequence[float], *, patch: int, frames: int
    ) -> None:
        """Wraps a network whose patches have a side of `patch` pixels, for tokens of `frames` frames."""
        super().__init__(network, own, mean, std)
        self.patch, self.frames = patch, frames

    def outputs(self, x: Tensor, grid: Grid, blocks: tuple[int, ...] | None, mask: Mask | None) -> list[Tensor]:
        if mask is not None:
            raise ValueError("target.view hidden needs a teacher that can encode a part of the tokens: a run of mmm, or ema")
        found = self.tokens(self.pictures(x, grid), grid, blocks)  # (B T', N', D)
        return [one.reshape(len(x), -1, one.shape[-1]) for one in found]

    def scores(self, x: Tensor, grid: Grid) -> Tensor:
        return self.attention(self.pictures(self.pixels(x), grid), grid).reshape(len(x), -1)  # (B T', N') -> (B, N)

    def pictures(self, x: Tensor, grid: Grid) -> Tensor:
        """Returns the first frames of tubes, resized for this grid, (B, C, s...) -> (B T', C, H, W)."""
        pictures, size = first_frames(x, self.frames), (grid[-2] * self.patch, grid[-1] * self.patch)
        return pictures if pictures.shape[-2:] == size else F.interpolate(pictures, size=size, mode="bicubic", antialias=True)

    @abstractmethod
    def tokens(self, pictures: Tensor, grid: Grid, blocks: tuple[int, ...] | None) -> list[Tensor]:
        """Returns features of the tokens of images (B, C, H, W), without prefix tokens, (B, N', D) each."""

    @abstractmethod
    def attention(self, pictures: Tensor, grid: Grid) -> Tensor:
        """Returns the attention of the last block to the tokens of images (B, C, H, W), (B, N')."""


class FrozenTimm(FrozenImages):
    """A vision transformer of timm."""

    def __init__(self, network: Any, own: Input, frames: int, grid: Grid) -> None:
        patch = network.patch_embed.patch_size[0]
        network.set_input_size(img_size=(grid[-2] * patch, grid[-1] * patch))
        super().__init__(network, own, network.pretrained_cfg["mean"], network.pretrained_cfg["std"], patch=patch, frames=frames)
        self.width, self.depth = network.num_features, len(network.blocks)

    def tokens(self, pictures: Tensor, grid: Grid, blocks: tuple[int, ...] | None) -> list[Tensor]:
        network: Any = self.network
        chosen = [self.depth - 1] if blocks is None else [block - 1 for block in blocks]
        found = network.forward_intermediates(
            pictures, indices=sorted(chosen), norm=blocks is None, output_fmt="NLC", intermediates_only=True
        )
        return [found[sorted(chosen).index(one)] for one in chosen]

    def attention(self, pictures: Tensor, grid: Grid) -> Tensor:
        network: Any = self.network
        layer, seen = network.blocks[-1].attn, list[tuple[Any, ...]]()
        hook = layer.register_forward_pre_hook(lambda _, inputs, named: seen.append((*inputs, *named.values())), with_kwargs=True)
        try:
            network.forward_features(pictures)
        finally:
            hook.remove()
        x, *given = seen[0]  # (B, L, D), and rotations or biases that all layers share
        plain = isinstance(getattr(layer, "qkv", None), nn.Linear) and all(one is None or one is False for one in given)
        if not plain or any(getattr(layer, name, None) is not None for name in MORE_ATTENTION):
            raise ValueError(
                f"the attention of timm's {type(layer).__name__} cannot be followed; use one with a joint qkv layer, and without "
                "rotary positions, relative positions and a separate bias of queries"
            )
        q, k, _ = layer.qkv(x).unflatten(2, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, h, L, c) each
        return attended(layer.q_norm(q), layer.k_norm(k), grid[-2] * grid[-1])


class FrozenTransformers(FrozenImages):
    """A vision transformer of the library transformers."""

    def __init__(self, network: Any, own: Input, mean: Any, std: Any, frames: int) -> None:
        super().__init__(network, own, mean, std, patch=network.config.patch_size, frames=frames)
        self.width, self.depth = network.config.hidden_size, network.config.num_hidden_layers
        network.config.tie_last_hidden_states = False  # the last hidden state is the last block's output, before the norm

    def tokens(self, pictures: Tensor, grid: Grid, blocks: tuple[int, ...] | None) -> list[Tensor]:
        network: Any = self.network
        found = network(pixel_values=pictures, output_hidden_states=True, **self._size(pictures))
        chosen = [found.last_hidden_state] if blocks is None else [found.hidden_states[block] for block in blocks]
        if blocks is None and self.final_norm is not None and found.last_hidden_state is found.hidden_states[-1]:
            chosen = [self.norm(found.last_hidden_state)]  # CLIP's model norms only its class token
        return [one[:, one.shape[1] - grid[-2] * grid[-1] :] for one in chosen]  # prefix tokens come first

    def attention(self, pictures: Tensor, grid: Grid) -> Tensor:
        network: Any = self.network
        usual = network.config._attn_implementation
        network.set_attn_implementation("eager")  # other implementations do not return attention weights
        try:
            weights = network(pixel_values=pictures, output_attentions=True, **self._size(pictures)).attentions[-1]  # (B, h, L, L)
        finally:
            network.set_attn_implementation(usual)
        tokens = grid[-2] * grid[-1]
        asking = weights if weights.shape[2] == tokens else weights[:, :, :1]
        return asking.float().mean((1, 2))[:, -tokens:]

    def _size(self, pictures: Tensor) -> dict[str, bool]:
        """Returns an argument for images whose size is not the network's own."""
        network: Any = self.network
        size = network.config.image_size
        own = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        return {} if tuple(pictures.shape[-2:]) == own else {"interpolate_pos_encoding": True}


def attended(query: Tensor, key: Tensor, tokens: int) -> Tensor:
    """Returns the attention of the class token (without prefix tokens: of all tokens) to the last `tokens`, (B, h, L, c) -> (B,
    N')."""
    query, key = (one if one.dtype.itemsize >= 4 else one.float() for one in (query, key))
    asking = query if query.shape[2] == tokens else query[:, :, :1]
    weights = (asking @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
    return weights.mean((1, 2))[:, -tokens:]


def first_frames(x: Tensor, frames: int) -> Tensor:
    """Returns images unchanged, and every `frames`-th frame of clips, (B, C, s...) -> (B T', C, H, W)."""
    return x[:, :, ::frames].transpose(1, 2).flatten(0, 1) if x.dim() == 5 else x


def read_teacher(name: str, load: Callable[[str], Any], own: Input, token: tuple[int, ...]) -> FrozenEncoder:
    """Reads a frozen teacher for a model of this data and these tokens.

    Args:
        name: `timm:NAME` or `transformers:NAME` (a name or a folder), or anything that `load` reads.
        load: reads a masked model from a path, as `mmm.load` does.

    Raises:
        ValueError: the teacher cannot be read, or its grid differs from the model's.
    """
    grid = tuple(size // side for size, side in zip(own.size, token[-len(own.size) :], strict=True))
    library, _, rest = name.partition(":")
    if library not in LIBRARIES:
        found = load(name)
        theirs = found.tokenizer.grid_of(own.size)
        if theirs != grid:
            raise ValueError(f"target.teacher {name} makes {theirs} tokens of a sample of {own.size}, and the model {grid}")
        return FrozenRun(found, own)
    frames = token[0] if len(token) == 3 else 1
    try:
        return _from_timm(rest, own, frames, grid) if library == "timm" else _from_transformers(rest, own, frames)
    except (OSError, RuntimeError, ImportError, AttributeError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"target.teacher {name} cannot be read as a vision transformer of images: {reason}") from error


def _from_timm(name: str, own: Input, frames: int, grid: Grid) -> FrozenEncoder:
    import timm

    name = f"local-dir:{name}" if "/" in name and ":" not in name and not name.startswith("hf-hub") else name
    return FrozenTimm(timm.create_model(name, pretrained=True, num_classes=0), own, frames, grid)


def _from_transformers(name: str, own: Input, frames: int) -> FrozenEncoder:
    from transformers import AutoImageProcessor, AutoModel

    network = AutoModel.from_pretrained(name)
    network = getattr(network, "vision_model", network)  # CLIP and SigLIP also have a text model
    try:
        pixels = AutoImageProcessor.from_pretrained(name)
        mean, std = pixels.image_mean, pixels.image_std
    except (OSError, ValueError):
        mean, std = own.mean, own.std
        logger.warning("%s does not say how its pixels were normalised; this run's data.mean and data.std are used", name)
    return FrozenTransformers(network, own, mean, std, frames)


def leave_out_frozen(part: nn.Module) -> None:
    """Excludes every frozen network that is an attribute of `part` from its state dict; loading does not require them either."""
    part.register_state_dict_post_hook(_leave_out)
    part.register_load_state_dict_post_hook(_miss_none)


def _frozen_names(part: nn.Module) -> list[str]:
    return [f"{name}." for name, child in part.named_children() if isinstance(child, Frozen)]


def _leave_out(part: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in _frozen_names(part):
        for one in [one for one in state if one.startswith(prefix + name)]:
            del state[one]


def _miss_none(part: nn.Module, keys: Any) -> None:
    for name in _frozen_names(part):
        keys.missing_keys[:] = [one for one in keys.missing_keys if f".{name}" not in f".{one}"]
