"""Fine-tune a masked model's encoder to classify videos, as VideoMAE does (Tong et al., NeurIPS 2022, and the authors' scripts).

    python recipes/video_finetune.py --model runs/pretrain-1                     for a run of the demonstration of video_mae.py
    python recipes/video_finetune.py --model videomae_base.pth --data.source /data/kinetics400
    python recipes/video_finetune.py --preset kinetics_large --model videomae_large.pth --data.source /data/kinetics400
    python recipes/video_finetune.py --preset ssv2 --model runs/p-2 --data.source train.csv --data.eval_source val.csv
    python recipes/video_finetune.py --preset ucf101 --model runs/pretrain-3 --data.source /data/ucf101

In training each video is decoded once for two samples. The final evaluation decodes it once for all its views, 5 clips x 3 crops
(`ssv2`: 2 x 3); evaluations during training use one view. Clips of Something-Something V2 are not flipped, because left and right
distinguish its classes.

Batch sizes and learning rates are stated for samples. The authors state them for videos, and an update has half as many videos as
samples. Two things differ from the authors' code. The frames of a clip are 4 apart, as in the pretraining; the authors spread 16
frames evenly over 64 and round. RandAugment is applied after the crop.

Results. The authors report a top-1 accuracy of 79.0 (S), 81.5 (B), 85.2 (L) and 86.6 % (H) on Kinetics-400 after 1,600 epochs of
pretraining, of 66.8 (S) and 70.8 % (B) on Something-Something V2 after 2,400, and of 91.3 % (B) on UCF101 after 3,200. This
recipe has not been run on these data sets yet."""

from dataclasses import replace

from mmm.classifier import HeadConfig
from mmm.config.cli import main
from mmm.data import ClipsConfig
from mmm.encoders import VisionTransformer
from mmm.pools import MeanPool
from mmm.tokenizers import Tubes
from mmm.train.config import TrainConfig
from mmm.train.mixup import SoftConfig
from recipes.video_mae import DEMO as MOTION
from recipes.video_mae import DEMO_CLIPS, SMALL_CLIPS
from recipes.video_mae import SMALL as VIDEOS
from tasks import finetune

DATA = ClipsConfig(
    frames=16,
    stride=4,
    image_size=224,
    crop="random_resized",
    crop_scale=(0.08, 1.0),
    flip=0.5,
    augment="rand-m7-n4-mstd0.5-inc1",
    repeats=2,
    eval_clips=5,
    eval_crops=3,
    workers=10,
)

ENCODER = VisionTransformer.Config(
    size="base", class_token=False, positions="flat_sine_cosine", qkv_bias="qv", embed_init="torch", drop_path=0.1
)

KINETICS = finetune.Config(
    data=DATA,
    tokenizer=Tubes.Config(size=16, frames=2),
    encoder=ENCODER,
    pool=MeanPool.Config(),
    head=HeadConfig(norm="layer", std=2e-5),
    soft=SoftConfig(smoothing=0.1, mixup=0.8, cutmix=1.0, erase=0.25),
    layer_decay=0.75,
    train=TrainConfig(
        epochs=75,
        batch_size=768,
        learning_rate=2.5e-4,  # for 256 samples; 5e-4 for 256 videos
        final_learning_rate=1e-6 / 5e-4,  # the authors' code scales both with the batch
        warmup_epochs=5,
        weight_decay=0.05,
        betas=(0.9, 0.999),
    ),
)

KINETICS_SMALL = replace(
    KINETICS,
    encoder=replace(ENCODER, size="small"),
    train=replace(KINETICS.train, epochs=150),
)

KINETICS_LARGE = replace(
    KINETICS,
    encoder=replace(ENCODER, size="large"),
    # 2e-3 for 256 videos
    train=replace(KINETICS.train, epochs=35, batch_size=256, learning_rate=1e-3, final_learning_rate=1e-6 / 2e-3),
)

KINETICS_HUGE = replace(
    KINETICS,
    encoder=replace(ENCODER, size="huge", drop_path=0.2),
    head=replace(KINETICS.head, dropout=0.5),
    # 1e-3 for 256 videos
    train=replace(KINETICS.train, epochs=50, batch_size=1024, learning_rate=5e-4, final_learning_rate=1e-5 / 1e-3),
)

SSV2 = replace(
    KINETICS,
    data=replace(DATA, sampling="segments", flip=0.0, eval_clips=2),
    train=replace(KINETICS.train, epochs=30),
)

SSV2_SMALL = replace(
    SSV2,
    encoder=replace(ENCODER, size="small"),
    layer_decay=0.7,
    train=replace(KINETICS.train, epochs=40, learning_rate=5e-4, final_learning_rate=1e-6 / 1e-3),  # 1e-3 for 256 videos
)

UCF101 = replace(
    KINETICS,
    encoder=replace(ENCODER, drop_path=0.2),
    head=replace(KINETICS.head, dropout=0.5),
    layer_decay=0.7,
    # 5e-4 for 256 videos
    train=replace(KINETICS.train, epochs=100, batch_size=256, learning_rate=2.5e-4, final_learning_rate=1e-5 / 5e-4),
)

# for a run of the demonstration of video_mae.py, or without --model to compare
DEMO = finetune.Config(
    data=replace(DEMO_CLIPS, repeats=2, eval_clips=2),
    tokenizer=MOTION.tokenizer,
    encoder=MOTION.encoder,
    soft=SoftConfig(smoothing=0.1),
    layer_decay=0.75,
    train=TrainConfig(
        steps=300,
        batch_size=64,
        learning_rate=1e-3,
        scale_learning_rate=None,
        warmup_steps=30,
        precision="fp32",
        log_every=50,
        evaluate_every=100,
    ),
)

# for a run of the preset `small` of video_mae.py, with labelled videos of your own
SMALL = replace(
    DEMO,
    data=replace(SMALL_CLIPS, eval_clips=2),
    tokenizer=VIDEOS.tokenizer,
    encoder=VIDEOS.encoder,
    train=replace(DEMO.train, steps=600, evaluate_every=200),
)

PRESETS = {
    "kinetics": KINETICS,
    "kinetics_small": KINETICS_SMALL,
    "kinetics_large": KINETICS_LARGE,
    "kinetics_huge": KINETICS_HUGE,
    "ssv2": SSV2,
    "ssv2_small": SSV2_SMALL,
    "ucf101": UCF101,
    "small": SMALL,
    "demo": DEMO,
}

if __name__ == "__main__":
    main(finetune.run, presets=PRESETS, doc=__doc__)
