"""Pretrains models of other libraries in a plain loop, with the encoder, the data and the settings of one of our configs.

lightly's MAE is built from its modules, with its transform, and reads images through torch's loader. transformers' VideoMAE reads
clips from our sources. Each model is saved in its own format, which `mmm.load` reads.

Shapes: B samples, C channels, T frames, N tokens.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from mmm.core.tokens import keep_count
from mmm.data import open_data
from tasks import pretrain


def lightly(config: pretrain.Config, folder: Path) -> None:
    """Trains lightly's MAE on images, and writes the encoder with timm's names of weights."""
    from datasets import load_dataset
    from lightly.models import utils
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
    from lightly.transforms.mae_transform import MAETransform
    from timm.models.vision_transformer import VisionTransformer

    data: Any = config.data
    encoder, patch, decoder = sizes(config)
    vit = VisionTransformer(data.image_size, patch, **encoder, num_classes=0, global_pool="")
    body, tokens = MaskedVisionTransformerTIMM(vit=vit), vit.patch_embed.num_patches
    width, depth, heads = decoder
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated; the replacement needs more parts for the same result
        head = MAEDecoderTIMM(
            tokens, patch, embed_dim=encoder["embed_dim"], decoder_embed_dim=width, decoder_depth=depth, decoder_num_heads=heads
        )
    transform = MAETransform(data.image_size, min_scale=data.crop_scale[0], normalize={"mean": data.mean, "std": data.std})
    images = load_dataset(str(data.source), split="train").select_columns("img")
    images.set_transform(lambda rows: {"x": [transform(image)[0] for image in rows["img"]]})
    loader = DataLoader(images, batch_size=config.train.batch_size, shuffle=True, drop_last=True)

    def loss(x: Tensor) -> Tensor:
        keep, hide = utils.random_token_mask((len(x), tokens + 1), mask_ratio=config.masker.ratio, device=x.device)
        seen = head.embed(body.encode(x, idx_keep=keep))
        whole = utils.repeat_token(head.mask_token, (len(x), tokens + 1))
        whole = head.decode(utils.set_at_index(whole, keep, seen.type_as(whole)))
        prediction = head.predict(utils.get_at_index(whole, hide))
        return nn.functional.mse_loss(prediction, utils.get_at_index(utils.patchify(x, patch), hide - 1))

    model = nn.ModuleList([body, head])
    train(config, model, loss, (rows["x"] for _ in range(config.train.steps) for rows in loader))
    folder.mkdir(parents=True)
    torch.save(vit.state_dict(), folder / "checkpoint.pth")


def transformers(config: pretrain.Config, folder: Path) -> None:
    """Trains transformers' VideoMAE on clips, and writes its model folder."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    data: Any = config.data
    encoder, patch, decoder = sizes(config)
    frames = config.tokenizer.frames  # type: ignore[attr-defined]
    settings = VideoMAEConfig(
        image_size=data.image_size,
        patch_size=patch,
        num_channels=data.channels,
        num_frames=data.frames,
        tubelet_size=frames,
        hidden_size=encoder["embed_dim"],
        num_hidden_layers=encoder["depth"],
        num_attention_heads=encoder["num_heads"],
        intermediate_size=4 * encoder["embed_dim"],
        decoder_hidden_size=decoder[0],
        decoder_num_hidden_layers=decoder[1],
        decoder_num_attention_heads=decoder[2],
        decoder_intermediate_size=4 * decoder[0],
        use_mean_pooling=False,
        attn_implementation="sdpa",
    )
    model = VideoMAEForPreTraining(settings)
    tokens = (data.image_size // patch) ** 2 * (data.frames // frames)
    seen = keep_count(config.masker.ratio, tokens)

    def loss(x: Tensor) -> Tensor:
        hidden = torch.rand(len(x), tokens).argsort(dim=1) >= seen  # (B, N)
        prediction = model(pixel_values=x.transpose(1, 2), bool_masked_pos=hidden).logits  # (B, Q, K)
        # the model's own loss does not support raw pixels of one channel
        pixels = rearrange(x, "b c (t f) (h p) (w q) -> b (t h w) (f p q c)", f=frames, p=patch, q=patch)
        return nn.functional.mse_loss(prediction, pixels[hidden].view_as(prediction))

    clips = DataLoader(RandomClips(config), batch_size=config.train.batch_size)
    train(config, model, loss, iter(clips))
    model.save_pretrained(folder)


class RandomClips(IterableDataset[Tensor]):
    """Endless random clips of the training split, normalised (C, T, h, w)."""

    def __init__(self, config: pretrain.Config) -> None:
        self.config = config

    def __iter__(self) -> Iterator[Tensor]:
        data: Any = self.config.data
        clips = open_data(data, "train")
        mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (data.mean, data.std))
        while True:
            index, key = torch.randint(len(clips), (1,)), torch.randint(2**62, (1,))
            views, _ = clips.train_views(index, key)
            yield (views[0].float() / 255 - mean) / std


def train(config: pretrain.Config, model: nn.Module, loss: Any, batches: Iterator[Tensor]) -> None:
    """Trains with AdamW, a linear warm-up and a cosine schedule from the config; vectors get no weight decay."""
    options = config.train
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [weight for weight in weights if weight.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=options.betas, fused=True)
    steps, warmup = options.steps or 1, options.warmup_steps or 1

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    model.train()
    for _ in range(steps):
        value = loss(next(batches))
        value.backward()
        if options.clip_norm:
            nn.utils.clip_grad_norm_(weights, options.clip_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)


def sizes(config: pretrain.Config) -> tuple[dict[str, int], int, tuple[int, int, int]]:
    """Returns the encoder's arguments with timm's names, the side of a patch, and the decoder's width, depth and heads."""
    encoder, decoder, token = config.encoder, config.decoder, config.tokenizer
    arguments = {"embed_dim": encoder.shape.width, "depth": encoder.shape.depth, "num_heads": encoder.head_count}  # type: ignore[attr-defined]
    return arguments, token.size, (decoder.width, decoder.depth, decoder.heads)  # type: ignore[attr-defined]


LOOPS = {"lightly": lightly, "transformers": transformers}
