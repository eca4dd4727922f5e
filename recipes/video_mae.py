"""VideoMAE on videos (Tong et al., "VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised Video
Pre-Training", NeurIPS 2022).

    python recipes/video_mae.py                                          the demonstration: minutes on a CPU, no download
    python recipes/video_mae.py --data.source /data/kinetics400/train    the paper's setting, ViT-B
    python recipes/video_mae.py --preset kinetics_large --data.source /data/kinetics400/train
    python recipes/video_mae.py --preset ssv2 --data.source ssv2_train.csv       a list file of `path label` lines
    python recipes/video_mae.py --preset ucf101 --data.source /data/ucf101

Each preset has the batch size of the authors' script for this size and data set, from which the learning rate follows: 2,048 clips
for ViT-B, 1,024 for ViT-S and ViT-H, 512 for ViT-L. The paper states 1,024 for all.

`mmm prepare_video` re-encodes a data set once, so that it reads several times faster. `--data.repeats 4` cuts four samples from
each decoded clip (VideoMAE V2). An update then has the same number of samples as before and an epoch has four times as many:
divide train.epochs by 4.

Results. After fine-tuning, the authors report a top-1 accuracy of 79.0 (S), 81.5 (B), 85.2 (L) and 86.6 % (H) on Kinetics-400,
66.8 (S) and 70.8 % (B) on Something-Something V2, and 91.3 % (B) on UCF101. This recipe has not been run on these data sets yet.
`demo`: docs/results.md."""

from dataclasses import replace

from mmm.config.cli import main
from mmm.data import ClipsConfig
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.evaluate.builtin import FewShotProbe, MaskedLoss, ReconstructionGallery
from mmm.evaluate.evaluator import EvaluatorSet
from mmm.maskers import RandomMasker, TubeMasker
from mmm.targets import PixelTarget
from mmm.tokenizers import Tubes
from mmm.train.config import TrainConfig
from tasks import pretrain

CLIPS = ClipsConfig(frames=16, stride=4, image_size=224, crop="multi_scale", workers=10)

ENCODER = VisionTransformer.Config(size="base", class_token=False, positions="flat_sine_cosine", qkv_bias="qv", embed_init="torch")
DECODER = SelfAttentionDecoder.Config(
    width=384, depth=4, heads=6, positions="flat_sine_cosine", qkv_bias="qv", embed_bias=False, embed_init="torch"
)

KINETICS = pretrain.Config(
    data=CLIPS,
    tokenizer=Tubes.Config(size=16, frames=2),
    masker=TubeMasker.Config(ratio=0.9),
    encoder=ENCODER,
    decoder=DECODER,
    target=PixelTarget.Config(standardise="channel", epsilon_inside=False, pixels="unit"),
    train=TrainConfig(
        epochs=1600,
        batch_size=2048,
        learning_rate=1.5e-4,  # for 256 clips
        final_learning_rate=1e-5 / 1.5e-4,  # the authors' code scales both with the batch
        warmup_epochs=40,
        weight_decay=0.05,
        decay_tokens=False,
        betas=(0.9, 0.95),
    ),
)

KINETICS_SMALL = replace(
    KINETICS,
    encoder=replace(ENCODER, size="small"),
    decoder=replace(DECODER, width=192, heads=3),
    train=replace(KINETICS.train, batch_size=1024),
)

KINETICS_LARGE = replace(
    KINETICS,
    encoder=replace(ENCODER, size="large"),
    decoder=replace(DECODER, width=512, depth=12, heads=8),
    train=replace(KINETICS.train, batch_size=512),
)

KINETICS_HUGE = replace(
    KINETICS,
    encoder=replace(ENCODER, size="huge"),
    decoder=replace(DECODER, width=640, depth=12, heads=8),
    train=replace(KINETICS.train, batch_size=1024, checkpoint_blocks=True),
)

SSV2 = replace(
    KINETICS,
    data=replace(CLIPS, stride=2),
    train=replace(KINETICS.train, epochs=2400),
)

SSV2_SMALL = replace(
    SSV2,
    encoder=KINETICS_SMALL.encoder,
    decoder=KINETICS_SMALL.decoder,
    train=replace(SSV2.train, batch_size=1024),
)

UCF101 = replace(
    KINETICS,
    masker=TubeMasker.Config(ratio=0.75),
    train=replace(KINETICS.train, epochs=3200, batch_size=192, learning_rate=3e-4, final_learning_rate=1e-5 / 3e-4),
)

# For 100 to 20,000 videos of your own: a small model, and a length in updates, so that few videos are used often.
SMALL_CLIPS = ClipsConfig(frames=16, stride=2, image_size=64, repeats=2, holdout=0.1, workers=2)
SMALL = pretrain.Config(
    data=SMALL_CLIPS,
    tokenizer=Tubes.Config(size=8, frames=4),
    masker=TubeMasker.Config(ratio=0.75),
    encoder=VisionTransformer.Config(width=192, depth=6, heads=3),
    decoder=SelfAttentionDecoder.Config(width=96, depth=2, heads=3),
    target=PixelTarget.Config(standardise="none"),
    train=TrainConfig(
        steps=3000,
        batch_size=32,
        learning_rate=1e-3,
        scale_learning_rate=None,
        warmup_steps=150,
        betas=(0.9, 0.95),
        clip_norm=1.0,
        log_every=50,
        evaluate_every=1000,
    ),
)

DEMO_CLIPS = ClipsConfig(
    source="builtin:motion",
    eval_split="test",
    frames=16,
    stride=1,
    image_size=32,
    channels=1,
    mean=(0.5,),
    std=(0.18,),
    crop_sides=(1.0, 0.9, 0.8),
    workers=1,
)

# A tube has four frames, so that it contains motion: with two frames, the accuracy of a probe does not improve in such a short run.
# Masks are drawn over space and time, because the model learned more slowly with tube masks (at another learning rate). The target
# is raw pixels, as in image_mae.py.
DEMO = pretrain.Config(
    data=DEMO_CLIPS,
    tokenizer=Tubes.Config(size=8, frames=4),
    masker=RandomMasker.Config(ratio=0.75),
    encoder=VisionTransformer.Config(width=128, depth=4, heads=4),
    decoder=SelfAttentionDecoder.Config(width=64, depth=1, heads=4),
    target=PixelTarget.Config(standardise="none"),
    train=TrainConfig(
        steps=1600,
        batch_size=64,
        learning_rate=2e-3,
        scale_learning_rate=None,
        warmup_steps=80,
        betas=(0.9, 0.95),
        clip_norm=1.0,
        threads=1,  # the second core decodes the videos
        precision="fp32",  # so that the documented figures do not depend on the processor
        log_every=100,
    ),
    evaluate=EvaluatorSet.of(
        MaskedLoss.Config(),
        FewShotProbe.Config(labels_per_class=10, heads=4, rates=(3e-4, 1e-3, 3e-3), steps=200),
        ReconstructionGallery.Config(measured=None),
    ),
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
    main(pretrain.run, presets=PRESETS, doc=__doc__)
