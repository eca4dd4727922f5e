"""Pretrains models of other libraries in a plain loop, with the encoder, the data and the settings of one of our configs.

lightly's MAE is built from its modules, with its transform, and reads images through torch's loader. transformers' VideoMAE reads
clips from our sources. Each model is saved in its own format, which `mmm.load` reads.

Shapes: B samples, C channels, T frames, N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.train.peers import build_lightly
from mmm.core.tokens import keep_count
from mmm.data import open_data
from mmm.weights.formats.base import write_folder
from tasks import pretrain


def lightly(config: pretrain.Config, folder: Path) -> None:
    """Trains lightly's MAE on images, and writes the encoder with timm's names of weights."""
    from datasets import load_dataset
    from lightly.transforms.mae_transform import MAETransform

    data: Any = config.data
    encoder, patch, decoder = sizes(config)
    model, loss, vit = build_lightly(data.image_size, patch, encoder, decoder, ratio=config.masker.ratio, raw=True)
    transform = MAETransform(data.image_size, min_scale=data.crop_scale[0], normalize={"mean": data.mean, "std": data.std})
    images = load_dataset(str(data.source), split="train").select_columns("img")
    images.set_transform(lambda rows: {"x": [transform(image)[0] for image in rows["img"]]})
    loader = DataLoader(images, batch_size=config.train.batch_size, shuffle=True, drop_last=True)
    train(config, model, loss, (rows["x"] for _ in range(config.train.steps or 1) for rows in loader))
    folder.mkdir(parents=True)
    names = ("embed_dim", "depth", "num_heads")
    arguments = {"img_size": data.image_size, "patch_size": patch, "global_pool": "", **dict(zip(names, encoder, strict=True))}
    content = {"architecture": "vit_base_patch16_224", "num_classes": 0, "num_features": encoder[0], "model_args": arguments}
    write_folder(folder, vit.state_dict(), content)


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
        hidden_size=encoder[0],
        num_hidden_layers=encoder[1],
        num_attention_heads=encoder[2],
        intermediate_size=4 * encoder[0],
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


def sizes(config: pretrain.Config) -> tuple[tuple[int, int, int], int, tuple[int, int, int]]:
    """Returns width, depth and heads of the encoder, the side of a patch, and width, depth and heads of the decoder."""
    encoder, decoder, token = config.encoder, config.decoder, config.tokenizer
    shape = encoder.shape.width, encoder.shape.depth, encoder.head_count  # type: ignore[attr-defined]
    return shape, token.size, (decoder.width, decoder.depth, decoder.heads)  # type: ignore[attr-defined]


LOOPS = {"lightly": lightly, "transformers": transformers}
