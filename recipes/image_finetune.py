"""Fine-tune a masked model's encoder to classify images, as MAE does (He et al., CVPR 2022, appendix A.1 and table 9).

    python recipes/image_finetune.py --model runs/pretrain-1                 the demonstration: minutes on a CPU
    python recipes/image_finetune.py                                         random weights, to compare
    python recipes/image_finetune.py --model mae_pretrain_vit_base.pth --data.source /data/imagenet
    python recipes/image_finetune.py --preset imagenet_large --model mae_large.pth --data.source /data/imagenet
    python recipes/image_finetune.py --preset small --model runs/mine --data.source my_images
    python recipes/image_finetune.py --preset cifar10 --model runs/pretrain-2 --data.source uoft-cs/cifar10

The demonstration needs a run of the demonstration of recipes/image_mae.py, and `cifar10` a run of its preset `cifar10`. Images
may be larger than in pretraining: --data.image_size 448. With `--held_back 0.02`, 2 % of the training images are held back,
and the weights with the best accuracy on them are evaluated instead of the last ones.

Results. `imagenet`: the authors report a top-1 accuracy of 83.6 (B), 85.9 (L) and 86.9 % (H) after 1,600 epochs of pretraining.
This recipe has not been run on ImageNet yet. CIFAR-10, with a small encoder: docs/results.md."""

from dataclasses import replace

from mmm.classifier import HeadConfig
from mmm.config.cli import main
from mmm.data import ImagesConfig
from mmm.encoders import VisionTransformer
from mmm.pools import MeanPool
from mmm.tokenizers import Patches
from mmm.train.config import TrainConfig
from mmm.train.mixup import SoftConfig
from tasks import finetune

IMAGENET = finetune.Config(
    data=ImagesConfig(image_size=224, crop_scale=(0.08, 1.0), augment="rand-m9-mstd0.5-inc1", workers=10),
    tokenizer=Patches.Config(size=16),
    encoder=VisionTransformer.Config(size="base", drop_path=0.1),
    pool=MeanPool.Config(),
    head=HeadConfig(norm="layer", std=2e-5),
    soft=SoftConfig(smoothing=0.1, mixup=0.8, cutmix=1.0, erase=0.25),
    layer_decay=0.65,
    train_positions=True,
    train=TrainConfig(
        epochs=100,
        batch_size=1024,
        learning_rate=5e-4,  # for 256 images
        final_learning_rate=1e-6 / 2e-3,  # the authors' code does not scale its 1e-6 with the batch
        warmup_epochs=5,
        weight_decay=0.05,
        betas=(0.9, 0.999),
        evaluate_every=6255,  # five epochs
    ),
)

IMAGENET_LARGE = replace(
    IMAGENET,
    encoder=VisionTransformer.Config(size="large", drop_path=0.2),
    layer_decay=0.75,
    train=replace(IMAGENET.train, epochs=50, learning_rate=1e-3, final_learning_rate=1e-6 / 4e-3),
)

IMAGENET_HUGE = replace(
    IMAGENET_LARGE,
    tokenizer=Patches.Config(size=14),
    encoder=VisionTransformer.Config(size="huge", drop_path=0.3),
)

CIFAR10 = replace(
    IMAGENET,
    data=ImagesConfig(
        image_size=32,
        crop_scale=(0.4, 1.0),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        augment="rand-m9-mstd0.5-inc1",
        cache=True,
        workers=2,
    ),
    tokenizer=Patches.Config(size=4),
    encoder=VisionTransformer.Config(size="tiny", drop_path=0.1),
    layer_decay=0.75,
    train=replace(
        IMAGENET.train,
        batch_size=256,
        learning_rate=1e-3,  # for 256 images
        final_learning_rate=1e-3,
        log_every=50,
        evaluate_every=980,  # five epochs
    ),
)

# for a run of the preset `small` of image_mae.py, with labelled images of your own
SMALL = finetune.Config(
    data=ImagesConfig(image_size=96, crop_scale=(0.4, 1.0), holdout=0.1, workers=2),
    tokenizer=Patches.Config(size=8),
    encoder=VisionTransformer.Config(width=192, depth=6, heads=3, drop_path=0.1),
    soft=SoftConfig(smoothing=0.1, mixup=0.8, cutmix=1.0),
    layer_decay=0.75,
    train=TrainConfig(
        steps=1000,
        batch_size=64,
        learning_rate=1e-3,
        scale_learning_rate=None,
        warmup_steps=50,
        precision="fp32",
        log_every=50,
        evaluate_every=250,
    ),
)

DEMO = finetune.Config(
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
    encoder=VisionTransformer.Config(width=128, depth=4, heads=4, drop_path=0.1),
    soft=SoftConfig(smoothing=0.1, mixup=0.8, cutmix=1.0),
    layer_decay=0.75,
    train=TrainConfig(
        steps=600,
        batch_size=64,
        learning_rate=1e-3,
        scale_learning_rate=None,
        warmup_steps=30,
        precision="fp32",
        log_every=50,
        evaluate_every=200,
    ),
)

PRESETS = {
    "imagenet": IMAGENET,
    "imagenet_large": IMAGENET_LARGE,
    "imagenet_huge": IMAGENET_HUGE,
    "cifar10": CIFAR10,
    "small": SMALL,
    "demo": DEMO,
}

if __name__ == "__main__":
    main(finetune.run, presets=PRESETS, doc=__doc__)
