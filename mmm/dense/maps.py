"""Feature maps from tokens, and maps at several scales.

Shapes: B samples, R prefix tokens, N tokens of a grid (h, w) or (t, h, w), D width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mmm.core.tokens import Grid
from mmm.core.types import Features, Stage


def to_map(tokens: Tensor, grid: Grid) -> Tensor:
    """Arranges the tokens of a grid as a map, (B, N, D) -> (B, D, h, w). For a clip, the map is the mean over time."""
    image = tokens.unflatten(1, grid).movedim(-1, 1)  # (B, D, ..., h, w)
    return image if image.dim() == 4 else image.mean(2)


def block_maps(features: Features, grid: Grid, blocks: tuple[int, ...]) -> list[Tensor]:
    """Returns the outputs of blocks as maps, (B, D, h, w) each; without blocks, the encoder's last output."""
    found = [features.blocks[number] for number in blocks] if blocks else [features.last]
    return [to_map(tokens[:, features.prefix :], grid) for tokens in found]


def stage_map(tokens: Tensor, grid: Grid, stage: Stage) -> Tensor:
    """Arranges a stage of a hierarchical encoder as a map, (B, N, a b D') -> (B, D', h a, w b); for a clip, the mean over time."""
    axes = len(grid)
    x = tokens.unflatten(1, grid).unflatten(-1, (*stage.inner, stage.width))  # (B, ..., h, w, ..., a, b, D')
    if axes == 3:
        x = x.mean((1, 4))
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def stage_maps(features: Features, grid: Grid, stages: tuple[Stage, ...]) -> list[Tensor]:
    """Arranges all stages of a hierarchical encoder as maps, (B, D', h', w') each, whose sides halve from one to the next.

    A last stage that has the grid of the one before it (Hiera with tokens of 16 pixels) is reduced by max pooling.
    """
    maps: list[Tensor] = []
    for stage in stages:
        one = stage_map(features.blocks[stage.block], grid, stage)
        maps.append(F.max_pool2d(one, 2) if maps and one.shape[-2:] == maps[-1].shape[-2:] else one)
    return maps


class FourScales(nn.Module):
    """Resizes four maps of a plain vision transformer to 4, 2, 1 and 1/2 times their size (the neck of UperNet in BEiT and MAE)."""

    def __init__(self, width: int) -> None:
        """Builds layers for maps of this width."""
        super().__init__()
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, 2), nn.BatchNorm2d(width), nn.GELU(), nn.ConvTranspose2d(width, width, 2, 2)
        )
        self.up2 = nn.ConvTranspose2d(width, width, 2, 2)
        self.down2 = nn.MaxPool2d(2, 2, ceil_mode=True)  # with ceil_mode, a map of one row keeps it

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Four maps (B, D, h, w) -> (B, D, 4h, 4w), (B, D, 2h, 2w), (B, D, h, w), (B, D, h/2, w/2)."""
        first, second, third, fourth = maps
        return [self.up4(first), self.up2(second), third, self.down2(fourth)]
