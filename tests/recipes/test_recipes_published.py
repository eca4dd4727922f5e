"""The presets that follow a publication have its values, one by one.

The tables give the values of the authors' scripts and papers in their own terms: batches as samples per GPU times GPUs, learning
rates for 256 samples, epochs of warm-up. Nothing in them is read from a recipe.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import timm
import torch
from conftest import load_recipe

from mmm.decoders.attention import place
from mmm.model import MaskedModel, ModelConfig
from mmm.train.config import TrainConfig
from mmm.train.schedule import make_plan

SAMPLES = 3 * 2**18  # size of a data set that every batch size below divides


def schedule(train: TrainConfig) -> dict[str, float]:
    """Returns epochs, batch size, epochs of warm-up, and peak and final learning rate of the optimizer."""
    plan = make_plan(train, samples=SAMPLES, processes=1)
    return {
        "epochs": plan.epoch(plan.steps),
        "batch": plan.batch_size,
        "warmup": plan.warmup * plan.batch_size / SAMPLES,
        "peak": plan.peak,
        "final": plan.final,
        "decay": train.weight_decay,
        **({} if train.betas is None else {"beta1": train.betas[0], "beta2": train.betas[1]}),
    }


class VideoPretraining(NamedTuple):
    """VideoMAE's scripts/*/pretrain.sh, with the defaults of run_mae_pretraining.py for missing options."""

    size: str
    clips: int  # per GPU
    gpus: int
    epochs: int  # the scripts give one more, because they save an epoch late
    decoder: tuple[int, int, int]  # width, depth, heads
    stride: int = 4
    ratio: float = 0.9
    rate: float = 1.5e-4  # for 256 clips
    final: float = 1e-5  # for 256 clips


VIDEO_PRETRAINING = {
    "kinetics": VideoPretraining("base", 32, 64, 1600, (384, 4, 6)),
    "kinetics_small": VideoPretraining("small", 32, 32, 1600, (192, 4, 3)),
    "kinetics_large": VideoPretraining("large", 8, 64, 1600, (512, 12, 8)),
    "kinetics_huge": VideoPretraining("huge", 16, 64, 1600, (640, 12, 8)),
    "ssv2": VideoPretraining("base", 32, 64, 2400, (384, 4, 6), stride=2),
    "ssv2_small": VideoPretraining("small", 32, 32, 2400, (192, 4, 3), stride=2),
    "ucf101": VideoPretraining("base", 24, 8, 3200, (384, 4, 6), ratio=0.75, rate=3e-4),
}


@pytest.mark.parametrize("name", VIDEO_PRETRAINING)
def test_video_pretraining_is_videomaes(name: str) -> None:
    row, config = VIDEO_PRETRAINING[name], load_recipe("video_mae").PRESETS[name]
    batch = row.clips * row.gpus
    assert schedule(config.train) == pytest.approx(
        {
            "epochs": row.epochs,
            "batch": batch,
            "warmup": 40,
            "peak": row.rate * batch / 256,
            "final": row.final * batch / 256,
            "decay": 0.05,
            "beta1": 0.9,
            "beta2": 0.95,
        }
    )
    assert config.encoder.size == row.size
    assert (config.decoder.width, config.decoder.depth, config.decoder.heads) == row.decoder
    assert (config.data.frames, config.data.stride, config.data.image_size, config.data.repeats) == (16, row.stride, 224, 1)
    assert (config.data.crop, config.data.crop_sides, config.data.flip) == ("multi_scale", (1.0, 0.875, 0.75, 0.66), 0.0)
    assert (config.masker.name, config.masker.ratio) == ("tube", row.ratio)
    assert (config.tokenizer.size, config.tokenizer.frames) == (16, 2)
    assert (config.target.standardise, config.target.pixels, config.target.epsilon_inside) == ("channel", "unit", False)
    assert config.train.clip_norm is None


@pytest.mark.parametrize("name", VIDEO_PRETRAINING)
def test_the_learning_rate_follows_the_batch_and_the_warm_up_does_not_follow_the_length(name: str) -> None:
    train = load_recipe("video_mae").PRESETS[name].train
    smaller = schedule(replace(train, batch_size=64, epochs=100))
    assert smaller["peak"] / smaller["final"] == pytest.approx(schedule(train)["peak"] / schedule(train)["final"])
    assert smaller["warmup"] == 40


def test_every_preset_for_videos_is_in_the_table_or_the_demonstration() -> None:
    assert set(load_recipe("video_mae").PRESETS) == {*VIDEO_PRETRAINING, "small", "demo"}


@pytest.mark.parametrize(("preset", "epochs"), [("imagenet", 800), ("imagenet_1600", 1600)])
def test_image_pretraining_is_maes(preset: str, epochs: int) -> None:
    """The source is MAE's PRETRAIN.md; the released weights were trained for 1,600 epochs."""
    config = load_recipe("image_mae").PRESETS[preset]
    expected = {"epochs": epochs, "batch": 4096, "warmup": 40, "peak": 1.5e-4 * 16, "final": 0.0, "decay": 0.05}
    assert schedule(config.train) == pytest.approx(expected | {"beta1": 0.9, "beta2": 0.95})
    assert (config.encoder.size, config.encoder.class_token, config.tokenizer.size) == ("base", True, 16)
    assert (config.decoder.width, config.decoder.depth, config.decoder.heads) == (512, 8, 16)
    assert (config.data.image_size, config.data.crop_scale, config.data.flip, config.data.repeats) == (224, (0.2, 1.0), 0.5, 1)
    assert (config.masker.name, config.masker.ratio) == ("random", 0.75)
    assert (config.target.standardise, config.target.pixels, config.target.epsilon_inside) == ("patch", "normalised", True)
    assert config.train.clip_norm is None


def test_joint_pretraining_is_omnimaes() -> None:
    """The source is omnimae_vitbase_ssv2_in1k.yaml: 32 samples on each of 64 GPUs, 800 epochs of both loaders.

    An image update takes 32 images per GPU; a clip update takes 8 videos, with four crops each, which make 32 samples. An epoch
    passes once over the images and once over a quarter of the videos.
    """
    videos, images, gpus, epochs = 168_913, 1_281_167, 64, 800
    image_updates = -(-images // (32 * gpus))
    clip_updates = -(-videos // (8 * gpus)) // 4
    config = load_recipe("joint_mae").PRESETS["ssv2_imagenet"]
    clips_turn, images_turn = config.second.updates
    epoch = videos * config.data.repeats * (clips_turn + images_turn) / clips_turn  # samples of one pass over the videos
    plan = make_plan(config.train, samples=round(epoch), processes=1)
    assert plan.batch_size == 32 * gpus
    assert config.data.repeats == 4
    assert config.second.data.repeats == 1
    assert plan.steps == pytest.approx(epochs * (image_updates + clip_updates), rel=0.005)
    passes = plan.steps * plan.batch_size * images_turn / (clips_turn + images_turn) / images
    assert passes == pytest.approx(epochs, rel=0.005)
    assert plan.epoch(plan.steps) * config.data.repeats == pytest.approx(epochs, rel=0.005)  # samples per video
    assert plan.warmup == pytest.approx(0.05 * plan.steps, rel=0.005)
    assert (plan.peak, plan.final) == (1.6e-3, 0.0)
    assert (config.train.weight_decay, config.train.betas, config.train.clip_norm) == (0.05, (0.9, 0.95), None)
    assert (config.data.frames, config.data.fps, config.data.flip) == (16, pytest.approx(16 / 2.7), 0.0)
    assert (config.data.crop, config.data.crop_scale) == ("random_resized", (0.08, 1.0))
    assert (config.second.data.crop_scale, config.second.data.flip) == ((0.2, 1.0), 0.5)
    assert [(masker.name, masker.ratio) for masker in (config.masker, config.second.masker)] == [("random", 0.9), ("random", 0.75)]
    assert (config.target.standardise, config.target.pixels, config.target.epsilon_inside) == ("channel", "unit", True)
    assert (config.encoder.size, config.encoder.class_token, config.encoder.drop_path) == ("base", False, 0.0)
    assert (config.decoder.width, config.decoder.depth, config.decoder.heads) == (384, 4, 16)


def test_sdaes_schedule_is_the_authors() -> None:
    """The sources are the command in SdAE's README.md and main_pretrain.py, which does not use its option of a final weight decay.

    The momentum of the teacher is that of an epoch.
    """
    config = load_recipe("image_selfdistill").PRESETS["imagenet_sdae"]
    expected = {"epochs": 300, "batch": 96 * 8, "warmup": 60, "peak": 2.666e-4 * 3, "final": 0.0, "decay": 0.04}
    assert schedule(config.train) == pytest.approx(expected | {"beta1": 0.9, "beta2": 0.95})
    assert (config.encoder.drop_path, config.train.weight_decay_end) == (0.25, None)
    updates = 1_281_167 / (96 * 8)
    assert config.target.decay**updates == pytest.approx(0.96)
    assert config.target.decay_end**updates == pytest.approx(0.99)


def test_bootmaes_schedule_is_the_authors() -> None:
    """The sources are scripts/pretrain/bash_pre_BootMAE_Base_800.sh and create_adamw_optimizer, which sets the betas."""
    config = load_recipe("image_selfdistill").PRESETS["imagenet_bootmae"]
    expected = {"epochs": 800, "batch": 4096, "warmup": 40, "peak": 1.5e-4 * 16, "final": 1e-4, "decay": 0.05}
    assert schedule(config.train) == pytest.approx(expected | {"beta1": 0.9, "beta2": 0.95})
    assert (config.decoder.second.width, config.decoder.second.heads) == (768, 12)


@pytest.mark.parametrize("preset", ["ssv2_imagenet", "demo"])
def test_an_image_has_the_positions_of_the_first_time(preset: str) -> None:
    """OmniMAE takes the positions of the first tube of a clip; an interpolated table would have those of the middle."""
    config = load_recipe("joint_mae").PRESETS[preset]
    parts = {kind: getattr(config, kind) for kind in ("tokenizer", "masker", "encoder", "decoder", "target")}
    parts |= {"encoder": replace(config.encoder, size="tiny", depth=1), "decoder": replace(config.decoder, depth=1)}
    model = MaskedModel.build(ModelConfig(**parts), config.data.input())
    decoder, clip = model.decoder, model.encoder.home
    image = model.tokenizer.grid(torch.zeros(1, config.data.channels, *config.second.data.size))
    assert image == (1, *clip[1:])
    in_encoder = [model.encoder.positions_of(grid) for grid in (clip, image)]
    in_decoder = [place(decoder.pos_embed, decoder.config, clip, grid, model.encoder.shape.prefix) for grid in (clip, image)]
    for whole, first in (in_encoder, in_decoder):
        assert torch.allclose(first, whole[:, : first.shape[1]], atol=1e-6)
        assert not torch.allclose(first[:, -1], whole[:, -1], atol=0.1)


def test_umts_teacher_is_clip_with_its_activation() -> None:
    """CLIP's weights were trained with QuickGELU; timm also loads them into a model with GELU."""
    name = load_recipe("video_umt").PRESETS["kinetics"].target.teacher.removeprefix("timm:")
    published = timm.get_pretrained_cfg(name)
    assert published is not None
    assert published.hf_hub_id == "timm/vit_base_patch16_clip_224.openai"
    with torch.device("meta"):
        network = timm.create_model(name)
    assert {type(block.mlp.act).__name__ for block in network.blocks} == {"QuickGELU"}


class VideoFineTuning(NamedTuple):
    """VideoMAE's scripts/*/finetune.sh; every video gives two samples, and batches and rates are given in videos."""

    size: str
    videos: int  # per GPU
    gpus: int
    epochs: int
    rate: float  # for 256 videos
    final: float = 1e-6  # for 256 videos
    layer_decay: float = 0.75
    drop_path: float = 0.1
    dropout: float = 0.0
    views: tuple[int, int] = (5, 3)
    flip: float = 0.5


VIDEO_FINE_TUNING = {
    "kinetics": VideoFineTuning("base", 6, 64, 75, 5e-4),
    "kinetics_small": VideoFineTuning("small", 12, 32, 150, 5e-4),
    "kinetics_large": VideoFineTuning("large", 2, 64, 35, 2e-3),
    "kinetics_huge": VideoFineTuning("huge", 8, 64, 50, 1e-3, final=1e-5, drop_path=0.2, dropout=0.5),
    "ssv2": VideoFineTuning("base", 6, 64, 30, 5e-4, views=(2, 3), flip=0.0),
    "ssv2_small": VideoFineTuning("small", 12, 32, 40, 1e-3, layer_decay=0.7, views=(2, 3), flip=0.0),
    "ucf101": VideoFineTuning("base", 16, 8, 100, 5e-4, final=1e-5, layer_decay=0.7, drop_path=0.2, dropout=0.5),
}


@pytest.mark.parametrize("name", VIDEO_FINE_TUNING)
def test_video_fine_tuning_is_videomaes(name: str) -> None:
    row, config = VIDEO_FINE_TUNING[name], load_recipe("video_finetune").PRESETS[name]
    videos = row.videos * row.gpus
    found = schedule(config.train)
    expected = {"batch": 2 * videos, "peak": row.rate * videos / 256, "final": row.final * videos / 256, "decay": 0.05}
    assert found == pytest.approx(expected | {"epochs": row.epochs, "warmup": 5, "beta1": 0.9, "beta2": 0.999})
    check_fine_tuning(config, row)
    assert (config.data.repeats, config.data.augment) == (2, "rand-m7-n4-mstd0.5-inc1")
    assert (config.data.eval_clips, config.data.eval_crops, config.data.flip) == (*row.views, row.flip)


class ImageFineTuning(NamedTuple):
    """MAE's FINETUNE.md and table 9; the smallest rate is 1e-6 for any batch size."""

    size: str
    epochs: int
    rate: float  # for 256 images
    layer_decay: float
    drop_path: float
    dropout: float = 0.0


IMAGE_FINE_TUNING = {
    "imagenet": ImageFineTuning("base", 100, 5e-4, 0.65, 0.1),
    "imagenet_large": ImageFineTuning("large", 50, 1e-3, 0.75, 0.2),
    "imagenet_huge": ImageFineTuning("huge", 50, 1e-3, 0.75, 0.3),
}


@pytest.mark.parametrize("name", IMAGE_FINE_TUNING)
def test_image_fine_tuning_is_maes(name: str) -> None:
    row, config = IMAGE_FINE_TUNING[name], load_recipe("image_finetune").PRESETS[name]
    expected = {"batch": 1024, "peak": row.rate * 4, "final": 1e-6, "decay": 0.05, "epochs": row.epochs, "warmup": 5}
    assert schedule(config.train) == pytest.approx(expected | {"beta1": 0.9, "beta2": 0.999})
    check_fine_tuning(config, row)
    assert (config.data.augment, config.data.flip) == ("rand-m9-mstd0.5-inc1", 0.5)
    assert config.head.std == 2e-5
    assert config.train_positions


def check_fine_tuning(config: Any, row: VideoFineTuning | ImageFineTuning) -> None:
    """Checks the values that images and videos have in common."""
    assert (config.encoder.size, config.encoder.drop_path, config.layer_decay) == (row.size, row.drop_path, row.layer_decay)
    assert (config.pool.name, config.head.norm, config.head.dropout) == ("mean", "layer", row.dropout)
    assert (config.data.image_size, config.data.crop_scale) == (224, (0.08, 1.0))
    soft = config.soft
    assert (soft.smoothing, soft.mixup, soft.cutmix, soft.erase) == (0.1, 0.8, 1.0, 0.25)


def test_linear_probing_is_maes() -> None:
    """The sources are MAE's main_linprobe.py and appendix A.2."""
    config = load_recipe("image_linear_probe").PRESETS["imagenet"]
    expected = {"batch": 16384, "peak": 6.4, "final": 0.0, "decay": 0.0, "epochs": 90, "warmup": 10}
    found = schedule(config.train)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert (config.optimizer, config.momentum, config.pool.name) == ("lars", 0.9, "class")
    assert (config.head.norm, config.head.std) == ("batch", 0.01)
