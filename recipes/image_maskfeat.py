"""MaskFeat on images (Wei et al., "Masked Feature Prediction for Self-Supervised Visual Pre-Training", CVPR 2022): the model
predicts histograms of oriented gradients of hidden tokens.

    python recipes/image_maskfeat.py                                   the demonstration: minutes on a CPU, no download
    python recipes/image_maskfeat.py --data.source /data/imagenet      ViT-B/16
    python recipes/image_maskfeat.py --preset cifar10 --data.source uoft-cs/cifar10

The learning rates for 256 images (peak, start of the warm-up and end), warm-up, crops, clipping, ratio and target are the authors'.
The batch size is our choice. A token of 4 pixels is one cell, with 9 values for each channel.

Results. The authors report a top-1 accuracy of 84.0 (B) and 85.7 % (L) after 1,600 epochs and fine-tuning. This recipe has not
been run on ImageNet yet. CIFAR-10, for six minutes: docs/methods.md."""

from dataclasses import replace
from typing import Any

from mmm.config.cli import main
from mmm.decoders import LinearDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import BlockMasker
from mmm.targets import HogTarget
from mmm.tokenizers import Patches
from mmm.train.config import TrainConfig
from recipes.image_mae import CIFAR10, DEMO
from recipes.image_mae import IMAGENET as MAE
from tasks import pretrain

IMAGENET = pretrain.Config(
    data=replace(MAE.data, crop_scale=(0.5, 1.0)),
    tokenizer=Patches.Config(size=16),
    masker=BlockMasker.Config(ratio=78 / 196, smallest=15 / 196, blank=True),
    encoder=VisionTransformer.Config(size="base"),
    decoder=LinearDecoder.Config(),
    target=HogTarget.Config(cell=8, orientations=9),
    train=TrainConfig(
        epochs=1600,
        batch_size=2048,
        learning_rate=2e-4,  # for 256 images
        warmup_epochs=30,
        warmup_start=1e-6 / 2e-4,  # the authors' code scales all three with the batch
        final_learning_rate=1e-6 / 2e-4,
        weight_decay=0.05,
        betas=(0.9, 0.999),
        clip_norm=0.02,
    ),
)

SMALL: dict[str, Any] = {
    "masker": BlockMasker.Config(ratio=0.4, blank=True),
    "decoder": LinearDecoder.Config(),
    "target": HogTarget.Config(cell=4),
}

PRESETS: dict[str, pretrain.Config] = {
    "imagenet": IMAGENET,
    "cifar10": replace(CIFAR10, **SMALL),
    "demo": replace(DEMO, **SMALL),
}

if __name__ == "__main__":
    main(pretrain.run, presets=PRESETS, doc=__doc__)
