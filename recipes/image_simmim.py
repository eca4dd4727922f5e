"""SimMIM on images (Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling", CVPR 2022): hidden squares of 32 pixels
are replaced by a mask token, and one linear layer predicts their raw pixels.

    python recipes/image_simmim.py                                     the demonstration: minutes on a CPU, no download
    python recipes/image_simmim.py --data.source /data/imagenet        ViT-B/16
    python recipes/image_simmim.py --preset imagenet_swin --data.source /data/imagenet     Swin-B at 192 pixels
    python recipes/image_simmim.py --preset cifar10 --data.source uoft-cs/cifar10

Results. The authors report a top-1 accuracy of 83.8 (ViT-B) and 84.0 % (Swin-B) after fine-tuning. This recipe has not been run
on ImageNet yet. Six minutes on CIFAR-10: docs/methods.md."""

from dataclasses import replace
from typing import Any

from mmm.config.cli import main
from mmm.data import ImagesConfig
from mmm.decoders import LinearDecoder
from mmm.encoders import Swin, VisionTransformer
from mmm.maskers import RandomMasker
from mmm.targets import PixelTarget
from mmm.tokenizers import Patches
from mmm.train.config import TrainConfig
from recipes.image_mae import CIFAR10, DEMO
from tasks import pretrain

PIXELS = PixelTarget.Config(standardise="none", loss="l1")

IMAGENET = pretrain.Config(
    data=ImagesConfig(image_size=224, crop_scale=(0.67, 1.0), workers=10),
    tokenizer=Patches.Config(size=16),
    masker=RandomMasker.Config(ratio=30 / 49, unit=2, blank=True),  # the authors' code rounds 0.6 of 49 squares up
    encoder=VisionTransformer.Config(
        size="base", positions="none", relative_bias="shared", qkv_bias="qv", layer_scale=0.1, drop_path=0.1
    ),
    decoder=LinearDecoder.Config(),
    target=PIXELS,
    train=TrainConfig(
        epochs=800,
        batch_size=2048,
        learning_rate=1e-4,
        scale_learning_rate=512,
        warmup_epochs=10,
        schedule="steps",
        milestones=(700 / 800,),
        weight_decay=0.05,
        betas=(0.9, 0.999),
        clip_norm=5.0,
    ),
)

IMAGENET_SWIN = replace(
    IMAGENET,
    data=replace(IMAGENET.data, image_size=192),
    tokenizer=Patches.Config(size=32),
    masker=RandomMasker.Config(ratio=22 / 36, blank=True),
    encoder=Swin.Config(size="base", window=6),
)

CHANGES: dict[str, Any] = {
    "masker": RandomMasker.Config(ratio=0.6, unit=2, blank=True),
    "decoder": LinearDecoder.Config(),
    "target": PIXELS,
}

PRESETS: dict[str, pretrain.Config] = {
    "imagenet": IMAGENET,
    "imagenet_swin": IMAGENET_SWIN,
    "cifar10": replace(CIFAR10, **CHANGES),
    "demo": replace(DEMO, **CHANGES),
}

if __name__ == "__main__":
    main(pretrain.run, presets=PRESETS, doc=__doc__)
