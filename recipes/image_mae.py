"""MAE on images (He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022).

    python recipes/image_mae.py                                  the demonstration: minutes on a CPU, no download
    python recipes/image_mae.py --data.source /data/imagenet     the paper's setting, ViT-B/16
    python recipes/image_mae.py --preset imagenet_1600 --data.source /data/imagenet      the released weights' schedule
    python recipes/image_mae.py --data.source /data/imagenet --encoder.size large
    python recipes/image_mae.py --data.source /data/imagenet --encoder.size huge --tokenizer.size 14
    python recipes/image_mae.py --preset small --data.source my_images     100 to 20,000 images of your own
    python recipes/image_mae.py --preset cifar10 --data.source uoft-cs/cifar10

Results. `imagenet_1600`: the paper reports a top-1 accuracy of 83.6 % (B), 85.9 % (L) and 86.9 % (H) after fine-tuning. This
recipe has not been run on ImageNet yet. `cifar10` and `demo`: docs/results.md."""

from dataclasses import replace

from mmm.config.cli import main
from mmm.data import ImagesConfig
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.evaluate.builtin import FrozenFeatures, MaskedLoss, ReconstructionGallery
from mmm.evaluate.evaluator import EvaluatorSet
from mmm.maskers import RandomMasker
from mmm.targets import PixelTarget
from mmm.tokenizers import Patches
from mmm.train.config import TrainConfig
from tasks import pretrain

IMAGENET = pretrain.Config(
    data=ImagesConfig(image_size=224, crop_scale=(0.2, 1.0), workers=10),
    tokenizer=Patches.Config(size=16),
    masker=RandomMasker.Config(ratio=0.75),
    encoder=VisionTransformer.Config(size="base"),
    decoder=SelfAttentionDecoder.Config(width=512, depth=8, heads=16),
    target=PixelTarget.Config(standardise="patch"),
    train=TrainConfig(
        epochs=800,
        batch_size=4096,
        learning_rate=1.5e-4,  # for 256 images
        warmup_epochs=40,
        weight_decay=0.05,
        betas=(0.9, 0.95),
    ),
)

IMAGENET_1600 = replace(IMAGENET, train=replace(IMAGENET.train, epochs=1600))

CIFAR10 = pretrain.Config(
    data=ImagesConfig(
        image_size=32,
        crop_scale=(0.2, 1.0),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        cache=True,
        workers=2,
    ),
    tokenizer=Patches.Config(size=4),
    masker=RandomMasker.Config(ratio=0.75),
    encoder=VisionTransformer.Config(size="tiny"),
    decoder=SelfAttentionDecoder.Config(width=96, depth=4, heads=3),
    target=PixelTarget.Config(standardise="none"),  # as in the demonstration, whose patches have the same size
    train=TrainConfig(
        epochs=400,
        batch_size=512,
        learning_rate=5e-4,  # for 256 images
        warmup_epochs=20,
        weight_decay=0.05,
        betas=(0.9, 0.95),
        log_every=50,
    ),
    evaluate=EvaluatorSet.of(MaskedLoss.Config(), FrozenFeatures.Config(), ReconstructionGallery.Config()),
)

# For 100 to 20,000 images of your own: a small model, and a length in updates, so that few images are used often.
SMALL = pretrain.Config(
    data=ImagesConfig(image_size=96, crop_scale=(0.2, 1.0), holdout=0.1, workers=2),
    tokenizer=Patches.Config(size=8),
    masker=RandomMasker.Config(ratio=0.75),
    encoder=VisionTransformer.Config(width=192, depth=6, heads=3),
    decoder=SelfAttentionDecoder.Config(width=96, depth=2, heads=3),
    target=PixelTarget.Config(standardise="none"),
    train=TrainConfig(
        steps=3000,
        batch_size=64,
        learning_rate=1e-3,
        scale_learning_rate=None,
        warmup_steps=150,
        betas=(0.9, 0.95),
        log_every=50,
        evaluate_every=1000,
    ),
)

# The target is raw pixels, because standardised patches of 4 x 4 pixels are hard to predict: a linear model of the neighbouring
# patches explains 9 % of their variance, but 46 % of that of raw pixels. In a few minutes the model would learn nothing.
DEMO = pretrain.Config(
    data=ImagesConfig(
        source="builtin:photographs",
        eval_split="test",
        image_size=32,
        channels=1,
        mean=(0.5,),
        std=(0.18,),
        crop_scale=(0.4, 1.0),
        cache=True,
        workers=0,
    ),
    tokenizer=Patches.Config(size=4),
    masker=RandomMasker.Config(ratio=0.75),
    encoder=VisionTransformer.Config(width=128, depth=4, heads=4),
    decoder=SelfAttentionDecoder.Config(width=64, depth=1, heads=4),
    target=PixelTarget.Config(standardise="none"),
    train=TrainConfig(
        steps=2600,
        batch_size=64,
        learning_rate=1.2e-3,
        scale_learning_rate=None,
        warmup_steps=130,
        betas=(0.9, 0.95),
        precision="fp32",  # so that the documented figures do not depend on the processor
        log_every=100,
        evaluate_every=650,
    ),
    evaluate=EvaluatorSet.of(
        MaskedLoss.Config(), FrozenFeatures.Config(labels_per_class=20), ReconstructionGallery.Config(measured=None)
    ),
)

PRESETS = {"imagenet": IMAGENET, "imagenet_1600": IMAGENET_1600, "cifar10": CIFAR10, "small": SMALL, "demo": DEMO}

if __name__ == "__main__":
    main(pretrain.run, presets=PRESETS, doc=__doc__)
