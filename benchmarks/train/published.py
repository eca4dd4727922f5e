"""Published implementations that differ from those of `mmm`, rewritten from their descriptions, on the same weights.

MAE (models_mae.py) embeds every patch with a strided convolution and selects the visible ones afterwards; before it decodes all
tokens, it restores their raster order with mask tokens; its loss is computed for all tokens. Its blocks are timm's, and torch
chooses the kernels. CrossMAE (models_cross.py) stacks the encoder's maps along a new innermost axis and multiplies along it.

Shapes: B samples, N tokens, V visible, D and d widths of encoder and decoder, k maps, p side of a patch.
"""

from __future__ import annotations

from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from mmm import MaskedModel
from mmm.core.types import Features
from mmm.decoders.fusion import LinearFusion


class PublishedMAE(nn.Module):
    """MAE's published step with the weights of one of our models; it draws and sorts its noise inside, as the original."""

    def __init__(self, model: MaskedModel, visible: int) -> None:
        super().__init__()
        self.encoder, self.decoder, self.visible = model.encoder, model.decoder, visible
        assert model.decoder is not None
        self.encoder_blocks, self.decoder_blocks = plain_blocks(model.encoder.blocks), plain_blocks(model.decoder.blocks)
        self.patch = model.tokenizer.size[0]

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Returns the loss, (B, C, H, W) -> ()."""
        proj = self.encoder.patch_embed.proj
        tokens = F.conv2d(x, proj.weight, proj.bias, stride=proj.stride).flatten(2).transpose(1, 2)  # (B, N, D)
        tokens = tokens + self.encoder.pos_embed[:, 1:]
        many, number, width = tokens.shape
        order = (torch.rand(many, number, device=x.device) if noise is None else noise).argsort(dim=1)
        back = order.argsort(dim=1)
        kept = tokens.gather(1, order[:, : self.visible, None].expand(-1, -1, width))
        first = self.encoder.cls_token + self.encoder.pos_embed[:, :1]
        kept = torch.cat([first.expand(many, -1, -1), kept], dim=1)  # (B, 1 + V, D)
        for block in self.encoder_blocks:
            kept = block(kept)
        prediction = self.decode(normed(kept, self.encoder.norm), back)
        hidden = torch.ones(many, number, device=x.device)
        hidden[:, : self.visible] = 0
        hidden = hidden.gather(1, back)
        return self.loss(x, prediction, hidden)

    def decode(self, kept: Tensor, back: Tensor) -> Tensor:
        """Returns predictions for all tokens, (B, 1 + V, D) -> (B, N, p p C)."""
        decoder = self.decoder
        kept = F.linear(kept, decoder.embed.weight, decoder.embed.bias)
        many, number, width = len(kept), back.shape[1], kept.shape[2]
        absent = decoder.mask_token.expand(many, number - self.visible, -1).to(kept.dtype)
        whole = torch.cat([kept[:, 1:], absent], dim=1).gather(1, back[..., None].expand(-1, -1, width))
        whole = torch.cat([kept[:, :1], whole], dim=1) + decoder.pos_embed  # (B, 1 + N, d)
        for block in self.decoder_blocks:
            whole = block(whole)
        return F.linear(normed(whole, decoder.norm), decoder.head.weight, decoder.head.bias)[:, 1:]

    def loss(self, x: Tensor, prediction: Tensor, hidden: Tensor) -> Tensor:
        """Computes the mean squared error of the standardised patches of all tokens, and returns its mean over hidden tokens."""
        many, channels, height, wide = x.shape
        p = self.patch
        boxes = x.reshape(many, channels, height // p, p, wide // p, p)
        expected = torch.einsum("nchpwq->nhwpqc", boxes).reshape(many, -1, p * p * channels)
        expected = (expected - expected.mean(-1, keepdim=True)) / (expected.var(-1, keepdim=True) + 1e-6) ** 0.5
        each = ((prediction - expected) ** 2).mean(-1)  # (B, N)
        return (each * hidden).sum() / hidden.sum()


def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Normalises with torch's own kernel, (..., D) -> (..., D)."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def plain_blocks(ours: nn.ModuleList) -> nn.ModuleList:
    """Returns timm's blocks with the weights of ours."""
    found = nn.ModuleList()
    for block in ours:
        heads, width = block.attn.num_heads, block.attn.proj.in_features
        ratio = block.mlp.fc1.out_features / width
        theirs = Block(width, heads, mlp_ratio=ratio, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=block.norm1.eps))
        theirs.load_state_dict(block.state_dict(keep_vars=True), assign=True)
        found.append(theirs)
    return found


class StackedFusion(nn.Module):
    """CrossMAE's published fusion with our weights: stacks the maps innermost, (B, M, D, k), and multiplies along that axis."""

    def __init__(self, ours: LinearFusion) -> None:
        super().__init__()
        self.blocks, self.mix, self.norms = ours.blocks, ours.mix, ours.norms

    def forward(self, features: Features) -> list[Tensor]:
        """Returns d mixtures, each (B, M, D)."""
        mixed = self.mix(torch.stack([features.blocks[block] for block in self.blocks], dim=-1))  # (B, M, D, d)
        return [norm(mixed[..., number]) for number, norm in enumerate(self.norms)]
