"""Our training steps: a recipe's published settings, trained by the functions of the training loop.

Shapes: B samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from benchmarks.measure import Step
from benchmarks.train.flops import step_flops
from mmm import MaskedModel
from mmm.core.rng import sample_keys
from mmm.decoders import CrossAttentionDecoder, SelfAttentionDecoder
from mmm.encoders import EncoderConfig, Hiera, VisionTransformer
from mmm.train.distributed.setup import precision_of, start
from mmm.train.loop import gradient_norm, nan_if_nonfinite, step_if_finite
from mmm.train.optimizer import make_optimizer
from mmm.train.state import Training
from recipes.image_mae import IMAGENET
from recipes.video_mae import KINETICS
from tasks import pretrain
from tasks.pretrain import build_model

METHODS = ("mae", "mae_today", "mae_hiera", "crossmae_75", "crossmae_25", "videomae")
TODAY = {"rotary": "axial", "positions": "none", "activation": "swiglu", "mlp_ratio": 8 / 3, "norm": "rms"}  # a modern ViT
# the decoders for VideoMAE's sizes: width, depth, heads (recipes/video_mae.py)
VIDEO_DECODERS = {"small": (192, 4, 3), "base": (384, 4, 6), "large": (512, 12, 8), "huge": (640, 12, 8)}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The setting of a measurement.

    Attributes:
        size: size of the encoder.
        image: side, in pixels.
        frames: frames per clip.
        batch, clips: images or clips per step.
        precision: as `train.precision`.
        compile: as `train.compile`.
    """

    size: str = "base"
    image: int = 224
    frames: int = 16
    batch: int = 16
    clips: int = 2
    precision: str = "auto"
    compile: bool = False


@dataclass(frozen=True)
class Way:
    """An implementation of a training step.

    Attributes:
        method: one of `METHODS`.
        by: the library that implements it.
        precision: fp32, bf16 or fp16.
        step: forward, backward and update.
        samples: samples per step.
        flops: FLOPs that the method needs for a step.
        held: bytes of weights and of the optimizer's averages.
        model: the model that is trained.
    """

    method: str
    by: str
    precision: str
    step: Step
    samples: int
    flops: float
    held: int
    model: torch.nn.Module

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"{self.method}, {self.by}, {self.precision}"


def config_of(method: str, setting: Setting) -> pretrain.Config:
    """Returns the recipe's published settings with these sizes."""
    config = KINETICS if method == "videomae" else IMAGENET
    data = replace(config.data, image_size=setting.image)
    decoder = config.decoder
    if method.startswith("crossmae"):
        decoder = CrossAttentionDecoder.Config(width=512, depth=12, heads=16, fusion="linear")
        config = replace(config, masker=replace(config.masker, predict=int(method.removeprefix("crossmae_")) / 100))
    if method == "videomae":
        assert isinstance(decoder, SelfAttentionDecoder.Config)
        data = replace(data, frames=setting.frames)
        width, depth, heads = VIDEO_DECODERS[setting.size]
        decoder = replace(decoder, width=width, depth=depth, heads=heads)
    assert isinstance(config.encoder, VisionTransformer.Config)
    encoder: EncoderConfig = replace(config.encoder, size=setting.size)
    if method == "mae_today":
        encoder = VisionTransformer.Config(size=setting.size, **TODAY)
    if method == "mae_hiera":
        assert isinstance(decoder, SelfAttentionDecoder.Config)
        encoder, decoder = Hiera.Config(size=setting.size), replace(decoder, fusion="stages")
        config = replace(config, masker=replace(config.masker, ratio=0.6, unit=2))
    batch = setting.clips if method == "videomae" else setting.batch
    train = replace(config.train, batch_size=batch, precision=setting.precision, compile=setting.compile)
    return replace(config, data=data, decoder=decoder, encoder=encoder, train=train)


def make_input(config: pretrain.Config, device: torch.device) -> torch.Tensor:
    """Returns noise on the device, (B, C, ..., h, w), the same in every call."""
    shape = (config.train.batch_size, config.data.input().channels, *config.data.input().size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def ours(method: str, setting: Setting) -> Way:
    """Returns a step like that of the training loop: masks from keys, forward, backward, gradient norm, update."""
    config = config_of(method, setting)
    accelerator, model = start(config.train), build_model(config)
    training = Training.prepare(accelerator, model, make_optimizer(model, config.train), identity={})
    x, steps = make_input(config, accelerator.device), iter(range(10**9))
    grid = model.tokenizer.grid(x)

    def step() -> None:
        keys = sample_keys(0, next(steps), torch.arange(len(x), device=x.device))
        loss = training.model(x, mask=model.masker(keys, grid)).loss
        accelerator.backward(nan_if_nonfinite(loss))
        norm = gradient_norm(accelerator, training.model, config.train.clip_norm)
        step_if_finite(norm, training.optimizer, accelerator.scaler)
        training.optimizer.zero_grad(set_to_none=True)

    mask = model.draw_masks(x[:1])
    flops = step_flops(model, mask.visible.shape[1], mask.predict.shape[1])
    return Way(method, "mmm", precision_of(accelerator), step, len(x), len(x) * flops, held_bytes(model), model)


def held_bytes(model: torch.nn.Module | MaskedModel) -> int:
    """Returns the bytes of weights, and of AdamW's two averages for those that are trained."""
    return sum(w.numel() * w.element_size() * (3 if w.requires_grad else 1) for w in model.parameters())
