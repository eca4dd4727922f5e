"""I-JEPA on images (Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture", CVPR
2023): a predictor computes the teacher's features of four target blocks from the encoder's features of a context block.

    python recipes/image_ijepa.py                                      the demonstration: minutes on a CPU, no download
    python recipes/image_ijepa.py --data.source /data/imagenet         ViT-H/14
    python recipes/image_ijepa.py --preset cifar10 --data.source uoft-cs/cifar10

The teacher is the moving average of the encoder and gets the whole image. Its features are normalised over the values of each
token.

Differences from the authors' code: the numbers of tokens are exact, so that no batch is cut to its shortest sample; blocks may
touch the last row and column; scale and aspect ratio are drawn separately; weights are initialised Xavier-uniform instead of
truncated normal.

Results. This recipe has not been run on ImageNet yet. CIFAR-10, for six minutes: docs/methods.md."""

from dataclasses import replace

from mmm.config.cli import main
from mmm.data import ImagesConfig
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import MultiBlockMasker
from mmm.targets import LatentTarget
from mmm.tokenizers import Patches
from mmm.train.config import TrainConfig
from recipes.image_mae import CIFAR10, DEMO
from tasks import pretrain

IMAGENET = pretrain.Config(
    data=ImagesConfig(image_size=224, crop_scale=(0.3, 1.0), flip=0.0, workers=10),
    tokenizer=Patches.Config(size=14),
    masker=MultiBlockMasker.Config(ratio=0.74, targets=4, scale=(0.15, 0.2), aspect=(0.75, 1.5), context=(0.85, 1.0)),
    encoder=VisionTransformer.Config(size="huge", class_token=False),
    decoder=SelfAttentionDecoder.Config(width=384, depth=12, heads=16),
    target=LatentTarget.Config(norm="layer", loss="smooth_l1", decay=0.996, decay_end=1.0),
    train=TrainConfig(
        epochs=300,
        batch_size=2048,
        learning_rate=1e-3,
        scale_learning_rate=None,
        warmup_epochs=40,
        warmup_start=0.2,  # 2e-4
        final_learning_rate=1e-3,  # 1e-6
        weight_decay=0.04,
        weight_decay_end=0.4,
        betas=(0.9, 0.999),
    ),
)

BLOCKS = MultiBlockMasker.Config(ratio=0.6)
FEATURES = LatentTarget.Config(norm="layer", loss="smooth_l1", decay=0.99, decay_end=1.0)

PRESETS: dict[str, pretrain.Config] = {
    "imagenet": IMAGENET,
    "cifar10": replace(
        CIFAR10,
        masker=BLOCKS,
        encoder=VisionTransformer.Config(size="tiny", class_token=False),
        decoder=SelfAttentionDecoder.Config(width=96, depth=4, heads=3),
        target=FEATURES,
        train=replace(CIFAR10.train, weight_decay=0.04, weight_decay_end=0.4),
    ),
    "demo": replace(
        DEMO,
        masker=BLOCKS,
        encoder=VisionTransformer.Config(width=128, depth=4, heads=4, class_token=False),
        decoder=SelfAttentionDecoder.Config(width=64, depth=2, heads=4),
        target=FEATURES,
    ),
}

if __name__ == "__main__":
    main(pretrain.run, presets=PRESETS, doc=__doc__)
