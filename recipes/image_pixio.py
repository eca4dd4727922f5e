"""Pixio on images ("In Pursuit of Pixel Supervision for Visual Pre-training", arXiv 2512.15715): MAE with larger hidden
squares, a deep decoder and eight class tokens, whose mean is the feature.

    python recipes/image_pixio.py                                      the demonstration: minutes on a CPU, no download
    python recipes/image_pixio.py --data.source /data/imagenet         ViT-H/16 at 256 pixels
    python recipes/image_pixio.py --preset cifar10 --data.source uoft-cs/cifar10

Squares of 4 x 4 tokens are hidden together. The preset has the values of the authors' script for ImageNet. The released models
are trained on web images, sampled by their loss. The smaller ones are distilled from larger ones; distillation is left out here.

Results. This recipe has not been run on ImageNet yet. CIFAR-10, for six minutes: docs/methods.md."""

from dataclasses import replace

from mmm.config.cli import main
from mmm.data import ImagesConfig
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import RandomMasker
from mmm.targets import PixelTarget
from mmm.tokenizers import Patches
from mmm.train.config import TrainConfig
from recipes.image_mae import CIFAR10, DEMO
from tasks import pretrain

IMAGENET = pretrain.Config(
    data=ImagesConfig(image_size=256, crop_scale=(0.2, 1.0), flip=0.0, workers=10),
    tokenizer=Patches.Config(size=16),
    masker=RandomMasker.Config(ratio=0.75, unit=4),
    encoder=VisionTransformer.Config(size="huge", class_tokens=8, positions="learned", drop_path=0.4),
    decoder=SelfAttentionDecoder.Config(width=512, depth=32, heads=16, positions="learned"),
    target=PixelTarget.Config(standardise="patch"),
    train=TrainConfig(
        steps=642_000,  # 400 of the authors' epochs
        batch_size=8192,
        learning_rate=2.5e-5,  # for 256 images
        warmup_steps=64_200,
        weight_decay=0.05,
        betas=(0.9, 0.95),
    ),
)

SQUARES = RandomMasker.Config(ratio=0.75, unit=2)

PRESETS: dict[str, pretrain.Config] = {
    "imagenet": IMAGENET,
    "cifar10": replace(
        CIFAR10,
        masker=SQUARES,
        encoder=VisionTransformer.Config(size="tiny", class_tokens=4, positions="learned"),
        decoder=SelfAttentionDecoder.Config(width=96, depth=6, heads=3, positions="learned"),
    ),
    "demo": replace(
        DEMO,
        masker=SQUARES,
        encoder=VisionTransformer.Config(width=128, depth=4, heads=4, class_tokens=4, positions="learned"),
        decoder=SelfAttentionDecoder.Config(width=64, depth=2, heads=4, positions="learned"),
    ),
}

if __name__ == "__main__":
    main(pretrain.run, presets=PRESETS, doc=__doc__)
