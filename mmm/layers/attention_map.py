"""Attention to each token in the last attention layer of an encoder.

Shapes: B samples, R prefix tokens, N tokens of the grid, h heads, c channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from einops import rearrange
from torch import Tensor, nn

from mmm.layers.transformer import Attention


@contextmanager
def last_attention(encoder: nn.Module) -> Iterator[Callable[[int], Tensor]]:
    """Records the last attention layer while an encoder runs once on all tokens. The yielded function then returns the attention.

    The function takes the number of prefix tokens, R, and returns the attention to each token, (B, N), in fp32 or better: that of
    the first prefix token or, without prefix tokens, the mean over all tokens; and the mean over heads (UMT: CLIP's class token in
    its last block).

    Raises:
        ValueError: the encoder has no attention layer.
    """
    layers = [module for module in encoder.modules() if isinstance(module, Attention)]
    if not layers:
        raise ValueError(f"{type(encoder).__name__} has no attention that could be followed")
    seen: list[tuple[Tensor, Tensor]] = []
    biases: list[Tensor | None] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append((inputs[0], inputs[1]))
        biases.append(inputs[5] if len(inputs) > 5 else None)

    def look(prefix: int) -> Tensor:
        query, key = (rearrange(one, "b n (h c) -> b h n c", h=layers[-1].heads) for one in seen[-1])
        query, key = (one if one.dtype.itemsize >= 4 else one.float() for one in (query, key))
        asking = slice(1) if prefix else slice(None)
        scores = query[:, :, asking] @ key.transpose(-1, -2) / query.shape[-1] ** 0.5  # (B, h, 1 or N, R + N)
        if biases[-1] is not None:
            scores = scores + biases[-1][:, :, asking]
        return scores.softmax(-1).mean((1, 2))[:, prefix:]

    hook = layers[-1].register_forward_pre_hook(keep)
    try:
        yield look
    finally:
        hook.remove()
