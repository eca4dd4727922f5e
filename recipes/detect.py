"""Object detection and instance segmentation with a masked model's encoder (ViTDet, Li et al., ECCV 2022).

    python recipes/detect.py --model runs/pretrain-1                        the demonstration: minutes on a CPU, no download
    python recipes/detect.py                                                random weights, to compare
    python recipes/detect.py --preset base --model mae_pretrain_vit_base.pth --data.source /data/coco
    python recipes/detect.py --preset large --model mae_pretrain_vit_large.pth --data.source /data/coco

`base`, `large` and `huge` have the values published for COCO, which CrossMAE also used: images of 1,024 pixels, large-scale jitter,
100 epochs (75 for H), attention in windows of 14 tokens with four global blocks. The feature pyramid needs patches of a power of 2:
pretrain ViT-H with patches of 16 pixels instead of MAE's 14. `detr` finds boxes with transformers' DETR on the same encoder.

Results. The authors report a box / mask AP of 51.6 / 45.9 (B), 55.5 / 49.2 (L) and 56.7 / 50.2 (H). CrossMAE's authors report
52.1 / 46.3 (B) and 54.9 / 48.8 (L) with their own code. These presets have not been run on COCO yet. Differences from ViTDet's
code: torchvision's RoIAlign samples twice per axis and is not aligned by half a pixel. `demo`: docs/results.md."""

from dataclasses import replace

from mmm.config.cli import main
from mmm.data.annotated.config import ObjectsConfig
from mmm.dense.detector import Detr, MaskRCNN
from mmm.encoders import VisionTransformer
from mmm.tokenizers import Patches
from mmm.train.config import TrainConfig
from tasks import detect

BASE = detect.Config(
    data=ObjectsConfig(image_size=1024, split="train2017", eval_split="val2017", scale=(0.1, 2.0), workers=10),
    tokenizer=Patches.Config(size=16),
    encoder=VisionTransformer.Config(size="base", drop_path=0.1),
    detector=MaskRCNN.Config(),
    layer_decay=0.7,
    train_positions=True,
    train=TrainConfig(
        epochs=100,
        batch_size=64,
        learning_rate=1e-4,
        scale_learning_rate=None,
        warmup_steps=250,
        schedule="steps",
        weight_decay=0.1,
        betas=(0.9, 0.999),
        evaluate_every=18_485,  # ten epochs
    ),
)

LARGE = replace(BASE, encoder=VisionTransformer.Config(size="large", drop_path=0.4), layer_decay=0.8)

HUGE = replace(
    BASE,
    encoder=VisionTransformer.Config(size="huge", drop_path=0.5),
    layer_decay=0.9,
    train=replace(BASE.train, epochs=75),
)

DEMO = detect.Config(
    data=ObjectsConfig(
        source="builtin:scenes",
        eval_split="test",
        image_size=64,
        channels=1,
        mean=(0.5,),
        std=(0.18,),
        scale=(0.8, 1.3),
        lighting=0.2,
        one_class=True,  # because learning the classes of textures would take far more than minutes
        workers=0,
    ),
    tokenizer=Patches.Config(size=4),
    encoder=VisionTransformer.Config(width=128, depth=4, heads=4, drop_path=0.1),
    detector=MaskRCNN.Config(window=8, global_blocks=(2, 4), channels=32, hidden=128, convolutions=1, proposals=50, detections=20),
    layer_decay=0.8,
    train=TrainConfig(
        steps=300,
        batch_size=8,
        learning_rate=1e-3,
        scale_learning_rate=None,
        warmup_steps=50,
        precision="fp32",
        log_every=50,
    ),
)

# transformers' DETR on the same encoder, with those values of its paper (Carion et al., ECCV 2020) that apply; only boxes
DETR = replace(
    BASE,
    data=replace(BASE.data, scale=(0.6, 1.6)),
    detector=Detr.Config(),
    train=replace(BASE.train, epochs=300, milestones=(2 / 3,), weight_decay=1e-4, clip_norm=0.1),
)

PRESETS = {"base": BASE, "large": LARGE, "huge": HUGE, "detr": DETR, "demo": DEMO}

if __name__ == "__main__":
    main(detect.run, presets=PRESETS, doc=__doc__)
