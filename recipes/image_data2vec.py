"""data2vec 2.0 on images (Baevski et al., "Efficient Self-supervised Learning with Contextualized Target Representations for
Vision, Speech and Language", ICML 2023): 16 masks of each image, a convolutional decoder, and a teacher that is a moving average
of the encoder.

    python recipes/image_data2vec.py                                   the demonstration: minutes on a CPU, no download
    python recipes/image_data2vec.py --data.source /data/imagenet      ViT-B/16
    python recipes/image_data2vec.py --preset cifar10 --data.source uoft-cs/cifar10

The target is the mean of the outputs of the MLPs in the last ten blocks, each standardised over the tokens of the image. The
image is read once for all masks, and the teacher is computed once.

Differences from the authors' code: blocks are pre-norm instead of post-norm; the optimizer is AdamW instead of Adam with weight
decay. The authors' loss of the class token is a sum over the 256 masks of a process, times 0.01; ours is the mean times 2.56,
which is the same.

Results. This recipe has not been run on ImageNet yet. CIFAR-10, for six minutes: docs/methods.md."""

from dataclasses import replace

from mmm.config.cli import main
from mmm.decoders import ConvolutionDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import InverseBlockMasker
from mmm.targets import LatentTarget
from mmm.tokenizers import Patches
from mmm.train.config import TrainConfig
from recipes.image_mae import CIFAR10, DEMO
from recipes.image_mae import IMAGENET as MAE
from tasks import pretrain

IMAGENET = pretrain.Config(
    data=MAE.data,
    tokenizer=Patches.Config(size=16),
    masker=InverseBlockMasker.Config(ratio=157 / 196, side=3, adjust=0.07, masks=16),
    encoder=VisionTransformer.Config(size="base"),
    decoder=ConvolutionDecoder.Config(width=768, depth=6, kernel=3, groups=16),
    target=LatentTarget.Config(
        blocks=tuple(range(3, 13)),
        block_output="mlp",
        block_norm="instance",
        norm="layer",
        loss="scaled_mse",
        class_weight=2.56,
        decay=0.9998,
        decay_end=0.99999,
        decay_until=100_000 / 375_300,
    ),
    train=TrainConfig(
        steps=375_300,
        batch_size=256,
        learning_rate=1e-3,
        scale_learning_rate=None,
        warmup_steps=50_040,
        weight_decay=0.05,
        betas=(0.9, 0.95),
        clip_norm=4.0,
    ),
)

MASKS = InverseBlockMasker.Config(ratio=0.8, side=3, masks=8)


def features(blocks: tuple[int, ...]) -> LatentTarget.Config:
    """Returns the target of a small model, with a smaller decay of the teacher's average."""
    return LatentTarget.Config(
        blocks=blocks, block_output="mlp", block_norm="instance", norm="layer", loss="scaled_mse", decay=0.99, decay_end=0.9998
    )


PRESETS: dict[str, pretrain.Config] = {
    "imagenet": IMAGENET,
    "cifar10": replace(
        CIFAR10,
        masker=MASKS,
        decoder=ConvolutionDecoder.Config(width=96, depth=3, groups=4),
        target=features(tuple(range(7, 13))),
        train=replace(CIFAR10.train, batch_size=128),
    ),
    "demo": replace(
        DEMO,
        masker=replace(MASKS, masks=4),
        decoder=ConvolutionDecoder.Config(width=64, depth=2, groups=4),
        target=features((2, 3, 4)),
    ),
}

if __name__ == "__main__":
    main(pretrain.run, presets=PRESETS, doc=__doc__)
