"""Semantic segmentation with a masked model's encoder.

    python recipes/segment.py --model runs/pretrain-1                        the demonstration: minutes on a CPU, no download
    python recipes/segment.py                                                random weights, to compare
    python recipes/segment.py --knn --model runs/pretrain-1                  nearest patches, without training
    python recipes/segment.py --preset linear --model mae_pretrain_vit_base.pth --data.source ADEChallengeData2016
    python recipes/segment.py --preset uper_net --model mae_pretrain_vit_base.pth --data.source ADEChallengeData2016
    python recipes/segment.py --preset linear --model mae.pth --data.source my_folder --data.classes 12

The demonstration trains all weights and a convolutional head on rendered scenes (`builtin:scenes`), from a run of the demonstration
of recipes/image_mae.py. `linear` trains a linear head on frozen features as DINOv3's authors do (crop 512, 40,000 updates of 16
images). `uper_net` is MAE's fine-tuning on ADE20K with BEiT's code (He et al., CVPR 2022, appendix A.4, and the released config:
160,000 updates of 16 images); `uper_net_large` has the values published for MAE's ViT-L.

Results. `uper_net`: the authors report a mIoU of 48.1 (B) and 53.6 (L). This recipe has not been run on ADE20K yet. `demo`:
docs/results.md."""

from dataclasses import replace

from mmm.config.cli import main
from mmm.data.annotated.config import MasksConfig
from mmm.dense.heads import ConvolutionalHead, LinearHead, UperNetHead
from mmm.encoders import VisionTransformer
from mmm.tokenizers import Patches
from mmm.train.config import TrainConfig
from tasks import segment

ADE20K = MasksConfig(image_size=512, classes=150, zero_is_ignored=True, photometric=True, workers=10)

UPER_NET = segment.Config(
    data=ADE20K,
    tokenizer=Patches.Config(size=16),
    encoder=VisionTransformer.Config(size="base", drop_path=0.1),
    head=UperNetHead.Config(),
    relative_bias=True,
    layer_decay=0.65,
    train_positions=True,
    train=TrainConfig(
        steps=160_000,
        batch_size=16,
        learning_rate=1e-4,
        scale_learning_rate=None,
        warmup_steps=1500,
        schedule="linear",
        weight_decay=0.05,
        betas=(0.9, 0.999),
        evaluate_every=16_000,
    ),
)

UPER_NET_LARGE = replace(
    UPER_NET,
    encoder=VisionTransformer.Config(size="large", drop_path=0.2),
    head=UperNetHead.Config(blocks=(8, 12, 16, 24)),
    layer_decay=0.95,
    train=replace(UPER_NET.train, learning_rate=2e-5),
)

LINEAR = segment.Config(
    data=replace(ADE20K, photometric=False),
    head=LinearHead.Config(),
    frozen=True,
    train=TrainConfig(
        steps=40_000,
        batch_size=16,
        learning_rate=1e-3,
        scale_learning_rate=None,
        warmup_steps=1500,
        weight_decay=1e-3,
        evaluate_every=10_000,
    ),
)

DEMO = segment.Config(
    data=MasksConfig(
        source="builtin:scenes",
        eval_split="test",
        image_size=64,
        channels=1,
        mean=(0.5,),
        std=(0.18,),
        scale=(0.8, 1.5),
        lighting=0.2,
        workers=0,
    ),
    tokenizer=Patches.Config(size=4),
    encoder=VisionTransformer.Config(width=128, depth=4, heads=4, drop_path=0.1),
    head=ConvolutionalHead.Config(channels=64, doublings=1),
    layer_decay=0.75,
    train=TrainConfig(
        steps=400,
        batch_size=16,
        learning_rate=1e-3,
        scale_learning_rate=None,
        warmup_steps=50,
        precision="fp32",
        log_every=50,
        evaluate_every=200,
    ),
)

DEMO_LINEAR = replace(
    DEMO,
    head=LinearHead.Config(),
    frozen=True,
    layer_decay=1.0,
    train=replace(DEMO.train, learning_rate=3e-3, weight_decay=1e-3),
)

PRESETS = {
    "uper_net": UPER_NET,
    "uper_net_large": UPER_NET_LARGE,
    "linear": LINEAR,
    "demo": DEMO,
    "demo_linear": DEMO_LINEAR,
}

if __name__ == "__main__":
    main(segment.run, presets=PRESETS, doc=__doc__)
