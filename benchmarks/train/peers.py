"""Other implementations for comparison: the published step, transformers' ViTMAE and VideoMAE, and lightly's MAE.

Each peer has the published sizes, the same standardisation of the target as ours, scaled-dot-product attention and fused AdamW;
only the published step keeps its own AdamW, which is not fused. A library that is not installed is reported and left out.

Shapes: B samples, N tokens, D width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import Step
from benchmarks.train.methods import VIDEO_DECODERS, Setting, Way, config_of, held_bytes, make_input
from benchmarks.train.published import PublishedMAE
from mmm.core.tokens import keep_count
from mmm.encoders.vit import SIZES
from tasks.pretrain import build_model

Loss = Callable[[], Tensor]
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def peers(method: str, setting: Setting, like: Way, device: torch.device) -> tuple[list[Way], list[str]]:
    """Returns the other implementations of one method, and the missing libraries.

    Args:
        like: our step of the same method. The others run in its precision; the published one also in its own precision.
    """
    config = config_of(method, setting)
    x = make_input(config, device)
    ways, absent = [], []

    def add(by: str, precision: str, model: nn.Module, loss: Loss, fused: bool = True) -> None:
        weights = [w for w in model.parameters() if w.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=fused or None)
        step = make_step(loss, optimizer, DTYPES[precision], device)
        ways.append(Way(method, by, precision, step, len(x), like.flops, held_bytes(model), model))

    if method == "mae":
        model = build_model(config).to(device)
        published = PublishedMAE(model, keep_count(0.75, (setting.image // 16) ** 2))
        for precision in dict.fromkeys(("fp16" if device.type == "cuda" else "fp32", like.precision)):
            add("published", precision, model, lambda: published(x), fused=False)
    for by, makes in (("transformers", {"mae": vit_mae, "videomae": video_mae}), ("lightly", {"mae": lightly_mae})):
        if method in makes and find_spec(by) is None:
            absent.append(f"{by} is not installed, so its {method} was not measured")
        elif method in makes:
            model, loss = makes[method](setting, x)
            add(by, like.precision, model, loss)
    return ways, absent


def make_step(loss: Loss, optimizer: torch.optim.Optimizer, dtype: torch.dtype | None, device: torch.device) -> Step:
    """Returns a step of forward, backward and update; fp16 uses a gradient scaler, as published."""
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            value = loss()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step


def vit_mae(setting: Setting, x: Tensor) -> tuple[nn.Module, Loss]:
    """Builds transformers' ViTMAE, which draws its masks."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(image_size=setting.image, norm_pix_loss=True, attn_implementation="sdpa", **sizes(setting))
    model = ViTMAEForPreTraining(config).to(x.device).train()
    return model, lambda: model(pixel_values=x).loss


def video_mae(setting: Setting, x: Tensor) -> tuple[nn.Module, Loss]:
    """Builds transformers' VideoMAE, with one tube mask for all clips."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    width, depth, heads = VIDEO_DECODERS[setting.size]
    config = VideoMAEConfig(
        image_size=setting.image,
        num_frames=setting.frames,
        use_mean_pooling=False,
        attn_implementation="sdpa",
        decoder_hidden_size=width,
        decoder_num_hidden_layers=depth,
        decoder_num_attention_heads=heads,
        decoder_intermediate_size=4 * width,
        **sizes(setting),
    )
    model = VideoMAEForPreTraining(config).to(x.device).train()
    plane = (setting.image // 16) ** 2
    hidden = torch.arange(plane, device=x.device) >= keep_count(0.9, plane)
    hidden = hidden.repeat(setting.frames // 2).expand(len(x), -1)  # (B, N)
    clips = x.transpose(1, 2).contiguous()  # (B, T, C, H, W), the order of transformers
    return model, lambda: model(pixel_values=clips, bool_masked_pos=hidden).loss


def sizes(setting: Setting) -> dict[str, Any]:
    """Returns the options of the encoder with the names of transformers."""
    width, depth, heads = SIZES[setting.size]
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return dict(zip(names, (width, depth, heads, 4 * width), strict=True))


def lightly_mae(setting: Setting, x: Tensor) -> tuple[nn.Module, Loss]:
    """Builds lightly's MAE with the published decoder; it draws its masks."""
    model, loss_of, _ = build_lightly(setting.image, 16, SIZES[setting.size], (512, 8, 16))
    return model.to(x.device).train(), lambda: loss_of(x)


def build_lightly(
    image: int, patch: int, encoder: tuple[int, int, int], decoder: tuple[int, int, int], *, ratio: float = 0.75, raw: bool = False
) -> tuple[nn.Module, Callable[[Tensor], Tensor], nn.Module]:
    """Builds lightly's MAE from its modules.

    Args:
        image, patch: sides in pixels.
        encoder, decoder: width, depth and heads.
        ratio: fraction of hidden tokens.
        raw: predict raw pixels instead of standardised patches.

    Returns:
        The model, the function from images to its loss, and timm's vision transformer in the model.
    """
    from lightly.models import utils
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
    from timm.models.vision_transformer import VisionTransformer

    width, depth, heads = encoder
    vit = VisionTransformer(image, patch, embed_dim=width, depth=depth, num_heads=heads, num_classes=0, global_pool="")
    body, tokens = MaskedVisionTransformerTIMM(vit=vit), vit.patch_embed.num_patches
    inner = dict(zip(("decoder_embed_dim", "decoder_depth", "decoder_num_heads"), decoder, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its successor asks for more parts that do the same
        head = MAEDecoderTIMM(tokens, patch, embed_dim=width, **inner)

    def loss_of(x: Tensor) -> Tensor:
        keep, hide = utils.random_token_mask((len(x), tokens + 1), mask_ratio=ratio, device=x.device)
        seen = head.embed(body.encode(x, idx_keep=keep))
        whole = utils.repeat_token(head.mask_token, (len(x), tokens + 1))
        whole = head.decode(utils.set_at_index(whole, keep, seen.type_as(whole)))
        prediction = head.predict(utils.get_at_index(whole, hide))
        expected = utils.get_at_index(utils.patchify(x, patch), hide - 1)
        return nn.functional.mse_loss(prediction, expected if raw else standardised(expected))

    return nn.ModuleList([body, head]), loss_of, vit


def standardised(expected: Tensor) -> Tensor:
    """Standardises each patch to mean 0 and variance 1."""
    return (expected - expected.mean(-1, keepdim=True)) / (expected.var(-1, keepdim=True) + 1e-6) ** 0.5
