"""MaskFeat on videos (Wei et al., "Masked Feature Prediction for Self-Supervised Visual Pre-Training", CVPR 2022): the model
predicts histograms of oriented gradients of the first frame of each hidden tube.

    python recipes/video_maskfeat.py                                       the demonstration: minutes on a CPU, no download
    python recipes/video_maskfeat.py --data.source /data/kinetics400/train

Hidden tokens form boxes that consist of squares of 32 pixels and extend over one or more time steps, up to all. The authors'
encoder is MViTv2; this one is a ViT. Ratio, target, crops, clipping, epochs, warm-up and the learning rate for 32 clips are the
authors'. The batch size is our choice.

Results. This recipe has not been run on Kinetics yet. `builtin:motion`, for six minutes: docs/methods.md."""

from dataclasses import replace

from mmm.config.cli import main
from mmm.decoders import LinearDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import BlockMasker
from mmm.targets import HogTarget
from mmm.tokenizers import Tubes
from mmm.train.config import TrainConfig
from recipes.video_mae import CLIPS, DEMO
from tasks import pretrain

KINETICS = pretrain.Config(
    data=replace(CLIPS, crop="random_resized", crop_scale=(0.5, 1.0), flip=0.5),
    tokenizer=Tubes.Config(size=16, frames=2),
    masker=BlockMasker.Config(ratio=0.4, unit=2, smallest=9 / 49, largest=1.0, duration="random", blank=True),
    encoder=VisionTransformer.Config(size="base", class_token=False),
    decoder=LinearDecoder.Config(),
    target=HogTarget.Config(cell=8, orientations=9),
    train=TrainConfig(
        epochs=300,
        batch_size=512,
        learning_rate=1e-4,
        scale_learning_rate=32,
        warmup_epochs=10,
        warmup_start=1e-6 / 1e-4,  # the authors' code scales all three with the batch
        final_learning_rate=1e-6 / 1e-4,
        weight_decay=0.05,
        betas=(0.9, 0.999),
        clip_norm=0.02,
    ),
)

PRESETS: dict[str, pretrain.Config] = {
    "kinetics": KINETICS,
    "demo": replace(
        DEMO,
        masker=BlockMasker.Config(ratio=0.4, duration="random", blank=True),
        decoder=LinearDecoder.Config(),
        target=HogTarget.Config(cell=4),
        train=replace(DEMO.train, learning_rate=5e-4),
    ),
}

if __name__ == "__main__":
    main(pretrain.run, presets=PRESETS, doc=__doc__)
