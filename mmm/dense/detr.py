"""DETR (Carion et al., ECCV 2020) from the library transformers, on the last map of an encoder. It predicts boxes, and no masks.

Shapes: B samples, D width of the encoder's last map, (h, w) its grid, (H, W) pixels, q queries, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmm.core.checks import NonNegative, Positive, Rate
from mmm.dense.detector_layers import DetectorConfig, DetectorLayers, Target, detectors


class _Given(nn.Module):
    """Replaces the backbone: returns the map that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Tensor | None = None

    def forward(self, pixels: Tensor) -> list[Tensor]:
        assert self.found is not None
        return [self.found]


@detectors.register("detr")
class Detr(DetectorLayers):
    """A transformer encoder and a decoder of learned queries, each of which finds one object or none."""

    @dataclass(frozen=True, kw_only=True)
    class Config(DetectorConfig):
        queries: Positive = 100
        """Number of queries, each of which can find one object."""
        width: Positive = 256
        """Width of the transformer."""
        depth: Positive = 6
        """Number of layers of the transformer's encoder, and of its decoder."""
        heads: Positive = 8
        """Attention heads."""
        hidden: Positive = 2048
        """Hidden width of the MLPs."""
        dropout: Rate = 0.1
        """Rate of dropout in the transformer's layers."""
        auxiliary: bool = True
        """Compute the loss on the output of every layer of the decoder. False: only on the output of the last layer."""
        nothing: NonNegative = 0.1
        """Weight of the class "no object" in the loss."""

    def __init__(self, config: Config, *, widths: tuple[int, ...], token: int, classes: int) -> None:
        super().__init__()
        try:
            import scipy  # noqa: F401 (transformers matches with it)
            from transformers import DetrConfig, DetrForObjectDetection, VitDetConfig
        except ImportError as error:
            raise ValueError("detector.name detr needs transformers and scipy; pip install transformers scipy") from error
        self.most = config.detections
        # builds a backbone of the same width, which is then replaced
        tiny: Any = VitDetConfig(
            hidden_size=widths[-1], num_hidden_layers=1, num_attention_heads=1, image_size=token, patch_size=token
        )
        make: Any = DetrConfig  # its annotations do not list its keywords
        whole = make(
            backbone_config=tiny,
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            num_labels=classes,
            num_queries=config.queries,
            d_model=config.width,
            encoder_layers=config.depth,
            decoder_layers=config.depth,
            encoder_attention_heads=config.heads,
            decoder_attention_heads=config.heads,
            encoder_ffn_dim=config.hidden,
            decoder_ffn_dim=config.hidden,
            dropout=config.dropout,
            auxiliary_loss=config.auxiliary,
            eos_coefficient=config.nothing,
        )
        self.detr: Any = DetrForObjectDetection(whole)
        self.detr.model.backbone.model = self.given = _Given()

    def forward(self, maps: list[Tensor], size: tuple[int, int], targets: list[Target] | None) -> dict[str, Tensor] | list[Target]:
        self.given.found = x = maps[-1]
        labels = None
        if self.training:
            assert targets is not None
            labels = [{"class_labels": one["labels"] - 1, "boxes": to_shares(one["boxes"], size)} for one in targets]
        pixels = x.new_zeros(len(x), 1, 1, 1).expand(-1, 3, *size)  # only the size is read
        found = self.detr(pixel_values=pixels, labels=labels)
        self.given.found = None
        if self.training:
            return {"loss": found.loss}
        return find_best(found.logits.float(), found.pred_boxes.float(), size, self.most)


def to_shares(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Converts boxes (left, top, right, bottom) in pixels to centre, width and height as shares of the image, (n, 4)."""
    scale = boxes.new_tensor([size[1], size[0]])
    first, last = boxes[:, :2] / scale, boxes[:, 2:] / scale
    return torch.cat([(first + last) / 2, last - first], dim=1)


def find_best(logits: Tensor, boxes: Tensor, size: tuple[int, int], most: int) -> list[Target]:
    """Selects the most probable class of each query, and then the most probable of these objects.

    Args:
        logits: (B, q, K + 1); the last class is "no object".
        boxes: boxes in the form of `to_shares`, (B, q, 4).
        most: largest number of objects of an image.

    Returns:
        For each image `boxes` in pixels, `scores` and `labels`, from 1.
    """
    scores, labels = logits.softmax(-1)[..., :-1].max(-1)  # (B, q)
    scale = boxes.new_tensor([size[1], size[0]] * 2)
    corners = torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], dim=-1)
    corners = torch.minimum((corners * scale).clamp(min=0), scale)
    order = scores.topk(min(most, scores.shape[1]), dim=1).indices  # (B, m)
    return [
        {"boxes": box[place], "scores": score[place], "labels": label[place] + 1}
        for box, score, label, place in zip(corners, scores, labels, order, strict=True)
    ]
