"""Monocular depth by a linear head on frozen features (DINOv2, Oquab et al., 2024, section 7.4; DINOv3's schedule).

    python recipes/depth.py --model runs/pretrain-1                        the demonstration: minutes on a CPU, no download
    python recipes/depth.py                                                random weights, to compare
    python recipes/depth.py --preset motorcycle --model runs/pretrain-1      a photograph with measured depths
    python recipes/depth.py --preset nyu --model mae_pretrain_vit_base.pth --data.source nyu_folder

`nyu` reads NYUv2 from a folder with images/ and depth/ (16-bit PNG in millimetres). It has 256 bins from 1 mm to 10 m and 38,400
updates of 16 images. The crop size and the warm-up are our choice. Test-time augmentation and the crop of NYUv2's borders are left
out. This preset has not been run on NYUv2 yet. `demo`: docs/results.md."""

from dataclasses import replace

from mmm.config.cli import main
from mmm.data.annotated.config import DepthConfig
from mmm.dense.heads import LinearHead
from mmm.encoders import VisionTransformer
from mmm.tokenizers import Patches
from mmm.train.config import TrainConfig
from tasks import depth

NYU = depth.Config(
    data=DepthConfig(image_size=416, scale=(1.0, 1.3), workers=10),
    head=LinearHead.Config(dropout=0.0),
    train=TrainConfig(
        steps=38_400,
        batch_size=16,
        learning_rate=3e-4,
        scale_learning_rate=None,
        warmup_steps=1500,  # as in the authors' segmentation
        weight_decay=1e-3,
        evaluate_every=9600,
    ),
)

DEMO = depth.Config(
    data=DepthConfig(
        source="builtin:scenes",
        eval_split="test",
        image_size=64,
        channels=1,
        mean=(0.5,),
        std=(0.18,),
        range=(1.5, 10.5),
        scale=(1.0, 1.0),
        workers=0,
    ),
    tokenizer=Patches.Config(size=4),
    encoder=VisionTransformer.Config(width=128, depth=4, heads=4),
    head=LinearHead.Config(dropout=0.0),
    bins=64,
    train=TrainConfig(
        steps=200,
        batch_size=16,
        learning_rate=3e-3,
        scale_learning_rate=None,
        warmup_steps=20,
        weight_decay=1e-3,
        precision="fp32",
        log_every=50,
    ),
)

# the left half of one photograph for training, the right half for testing: a check with measured depths, not a benchmark
MOTORCYCLE = replace(DEMO, data=replace(DEMO.data, source="builtin:motorcycle", range=(2.0, 5.2), scale=(1.0, 1.5), holdout=0.0))

PRESETS = {"nyu": NYU, "demo": DEMO, "motorcycle": MOTORCYCLE}

if __name__ == "__main__":
    main(depth.run, presets=PRESETS, doc=__doc__)
