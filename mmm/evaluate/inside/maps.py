"""Maps over an image or a clip: principal components of token features as colours, and the attention of one token.

Shapes: B samples, N tokens, R prefix tokens, D width, h heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmm.evaluate.attention.decoder_attention import attention_weights, watching
from mmm.evaluate.inside.distance import rollout
from mmm.model import MaskedModel


def feature_colours(tokens: Tensor, *, centre_places: bool) -> Tensor:
    """Returns the first three principal components of the tokens of several samples as red, green and blue.

    Args:
        tokens: features of every token, (B, N, D).
        centre_places: first subtract the mean over samples at each position. The first component of a masked autoencoder is often
            the position, and the subtraction removes it.

    Returns:
        fp32 (B, N, 3) in [0, 1]; each component from its 2nd to its 98th percentile.
    """
    values = tokens.detach().cpu().double()
    values = values - values.mean(0, keepdim=True) if centre_places else values
    rows = values.flatten(0, 1)
    rows = rows - rows.mean(0)
    _, _, directions = torch.linalg.svd(rows, full_matrices=False)
    found = rows @ directions[:3].T  # (B N, 3)
    found = found * found.pow(3).mean(0).sign()  # the sign of a component is arbitrary; here the longer tail is bright
    low, high = found.quantile(0.02, dim=0), found.quantile(0.98, dim=0)
    return ((found - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).float().view(*values.shape[:2], -1)


def token_attention(model: MaskedModel, x: Tensor, token: int) -> tuple[Tensor, Tensor]:
    """Returns the attention of one token of the grid: in the last block of the encoder, and over all blocks (attention rollout).

    Args:
        x: normalised samples, (B, C, s...).
        token: number of the token in the grid's order.

    Returns:
        Two tensors (B, N), each of sum 1 over the tokens of the grid.
    """
    kept: list[Tensor] = []

    def see(_: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept.append(attention_weights(layer, inputs))  # (B, h, R + N, R + N)

    with watching(model.encoder, see):
        model.encode(x)
    prefix = model.encoder.shape.prefix
    last, through = kept[-1].mean(1)[:, prefix + token, prefix:], rollout(kept)[:, prefix + token, prefix:]
    return last / last.sum(1, keepdim=True), through / through.sum(1, keepdim=True)
