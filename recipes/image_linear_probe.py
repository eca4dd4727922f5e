"""Linear probe of a frozen image encoder, as published for MAE (He et al., CVPR 2022, appendix A.2; main_linprobe.py).

    python recipes/image_linear_probe.py --model mae_pretrain_vit_base.pth --data.source /data/imagenet
    python recipes/image_linear_probe.py --model runs/pretrain-1          for a run of the demonstration of image_mae.py
    python recipes/image_linear_probe.py --model runs/pretrain-1/config.yaml            the same model with random weights
    python recipes/image_linear_probe.py --preset cifar10 --model runs/pretrain-2 --data.source uoft-cs/cifar10

All heads share one forward pass of the encoder. `--rates 0.5 1 2 --held_back 0.01` tries three learning rates in little more time
than one, and chooses one by the accuracy on 1 % of the training samples. Use `--pool.name mean` for an encoder without a class
token or without a final norm (CrossMAE).

Results. `imagenet`: the authors report a top-1 accuracy of 68.0 (B), 75.8 (L) and 76.6 % (H). This recipe has not been run on
ImageNet yet. The authors' batch norm uses the statistics of the 512 images on one GPU; this one uses those of the whole batch."""

from mmm.classifier import HeadConfig
from mmm.config.cli import main
from mmm.data import ImagesConfig
from mmm.pools import ClassPool, MeanPool
from mmm.train.config import TrainConfig
from tasks import linear_probe

HEAD = HeadConfig(norm="batch", std=0.01)

IMAGENET = linear_probe.Config(
    data=ImagesConfig(image_size=224, crop_scale=(0.08, 1.0), workers=10),
    pool=ClassPool.Config(),
    head=HEAD,
    train=TrainConfig(
        epochs=90,
        batch_size=16384,
        learning_rate=0.1,  # for 256 images
        warmup_epochs=10,
        weight_decay=0.0,
    ),
    optimizer="lars",
    momentum=0.9,
    methods=("trained",),
)

CIFAR10 = linear_probe.Config(
    data=ImagesConfig(
        image_size=32,
        crop_scale=(0.2, 1.0),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        cache=True,
        workers=2,
    ),
    pool=MeanPool.Config(),
    head=HEAD,
    train=TrainConfig(
        epochs=20,
        batch_size=1024,
        learning_rate=0.8,  # for 256 images
        warmup_epochs=2,
        weight_decay=0.0,
        log_every=50,
    ),
    rates=(0.25, 1.0, 4.0),
    held_back=0.05,
    methods=("trained", "exact"),
)

DEMO = linear_probe.Config(
    data=ImagesConfig(  # as in the demonstration of image_mae.py
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
    pool=MeanPool.Config(),
    head=HEAD,
    train=TrainConfig(
        steps=400,
        batch_size=128,
        learning_rate=4.0,
        scale_learning_rate=None,
        warmup_steps=40,
        weight_decay=0.0,
        precision="fp32",
        log_every=100,
    ),
    rates=(0.25, 1.0, 4.0),
    held_back=0.1,
    methods=("trained", "exact"),
)

PRESETS = {"imagenet": IMAGENET, "cifar10": CIFAR10, "demo": DEMO}

if __name__ == "__main__":
    main(linear_probe.run, presets=PRESETS, doc=__doc__)
