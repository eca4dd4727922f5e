"""Probes of a frozen video encoder: a linear classifier on the mean of its tokens, or attentive pooling.

    python recipes/video_linear_probe.py --model videomae_base.pth --data.source /data/kinetics400
    python recipes/video_linear_probe.py --preset attentive --model runs/pretrain-1 --data.source /data/kinetics400
    python recipes/video_linear_probe.py --model runs/pretrain-1             for a run of the demonstration of video_mae.py
    python recipes/video_linear_probe.py --model runs/pretrain-1/config.yaml          the same model with random weights

The score of a video is the mean over clips and crops (`--data.eval_clips 5 --data.eval_crops 3`). The video is decoded once.
Set `--data.flip 0` for data in which left and right have a meaning (Something-Something).

Results. `kinetics` has the clips and test views of VideoMAE and the classifier of MAE; no paper states such a recipe in full, and
this one has not been run. `attentive` follows the evaluation of V-JEPA (Bardes et al., 2024), which reports 80.8 % for its own
ViT-L on Kinetics-400 with 16 frames, 8 clips and 3 crops. Two things differ from the authors' code: the scores of the clips are
averaged here, whereas the authors' probe attends to all clips of a video at once; and the authors use AutoAugment. The learning
rate is that of the authors' code, which does not contain the other values of the schedule."""

from dataclasses import replace

from mmm.classifier import HeadConfig
from mmm.config.cli import main
from mmm.data import ClipsConfig
from mmm.pools import AttentivePool, MeanPool
from mmm.train.config import TrainConfig
from recipes.video_mae import DEMO_CLIPS
from tasks import linear_probe

HEAD = HeadConfig(norm="batch", std=0.01)
CLIPS = ClipsConfig(frames=16, stride=4, image_size=224, crop="random_resized", crop_scale=(0.08, 1.0), flip=0.5, workers=10)

KINETICS = linear_probe.Config(
    data=replace(CLIPS, eval_clips=5, eval_crops=3),
    pool=MeanPool.Config(),
    head=HEAD,
    train=TrainConfig(
        epochs=90,
        batch_size=1024,
        learning_rate=0.1,  # for 256 clips
        warmup_epochs=10,
        weight_decay=0.0,
    ),
    optimizer="lars",
    momentum=0.9,
    methods=("trained",),
)

ATTENTIVE = linear_probe.Config(
    data=replace(CLIPS, eval_clips=8, eval_crops=3),
    pool=AttentivePool.Config(),
    head=HeadConfig(std=0.02),
    train=TrainConfig(
        epochs=20,
        batch_size=256,
        learning_rate=1e-3,
        scale_learning_rate=None,
        weight_decay=0.01,
    ),
    optimizer="adamw",
    methods=("trained",),
)

DEMO = linear_probe.Config(
    data=replace(DEMO_CLIPS, repeats=1, eval_clips=2),
    pool=MeanPool.Config(),
    head=HEAD,
    train=TrainConfig(
        steps=200,
        batch_size=64,
        learning_rate=4.0,
        scale_learning_rate=None,
        warmup_steps=20,
        weight_decay=0.0,
        precision="fp32",
        log_every=50,
    ),
    rates=(0.25, 1.0, 4.0),
    held_back=0.1,
    test_split="test",
    methods=("trained", "exact"),
)

PRESETS = {"kinetics": KINETICS, "attentive": ATTENTIVE, "demo": DEMO}

if __name__ == "__main__":
    main(linear_probe.run, presets=PRESETS, doc=__doc__)
