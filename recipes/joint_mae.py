"""One encoder pretrained on images and videos (Girdhar et al., "OmniMAE: Single Model Masked Pretraining on Images and Videos",
CVPR 2023): an image is a clip of one constant tube, and each update is on images or on clips.

    python recipes/joint_mae.py                                                     the demonstration: minutes on a CPU
    python recipes/joint_mae.py --data.source /data/ssv2 --second.data.source /data/imagenet     the authors' schedule
    python recipes/joint_mae.py ... --second.updates 2 1          two of three updates on clips, one on images

Flags for the images begin with --second; all others are for the videos or for both. An epoch passes once over the videos.

`ssv2_imagenet` follows the authors' published configuration, omnimae_vitbase_ssv2_in1k.yaml, of 800 epochs; the paper trains for
1,600. The authors count an epoch as one pass over the images. During an epoch a quarter of the videos are decoded, with four crops
of each; 800 of these epochs are 200 passes over the videos. Among 43 updates, 38 are on images and 5 on clips, which is the
authors' proportion (626 to 82 updates per epoch on 64 GPUs). The decoder's attention has no biases, as in
the released weights; the configuration has biases. Two things differ from the authors' code. Positions are sines and cosines of
(time, row, column), with time 0 for images; the authors take them from a table over the flattened index. The mask token and the
decoder's positions have the decoder's width; the authors' have the encoder's, and are projected together with the features.

Results. After 1,600 epochs and fine-tuning, the authors report a top-1 accuracy of 69.5 (B), 74.2 (L) and 75.3 % (H) on
Something-Something V2, and of 83.0, 85.1 and 86.5 % on ImageNet. This recipe has not been run on these data sets yet, and
the demonstration has not been compared with training on one source.
"""

from dataclasses import replace

from mmm.config.cli import main
from mmm.data import ClipsConfig, ImagesConfig
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.evaluate.builtin import FrozenFeatures
from mmm.evaluate.evaluator import EvaluatorSet
from mmm.maskers import RandomMasker
from mmm.objectives.masked import SecondSource
from mmm.targets import PixelTarget
from mmm.tokenizers import Tubes
from mmm.train.config import TrainConfig
from recipes.image_mae import DEMO as PHOTOGRAPHS
from recipes.video_mae import DEMO as MOTION
from tasks import pretrain

SSV2_IMAGENET = pretrain.Config(
    data=ClipsConfig(
        frames=16,
        fps=16 / 2.7,  # 16 frames in 2.7 seconds
        image_size=224,
        crop="random_resized",
        crop_scale=(0.08, 1.0),
        repeats=4,
        workers=10,
    ),
    second=SecondSource(
        data=ImagesConfig(image_size=224, crop_scale=(0.2, 1.0), workers=10),
        masker=RandomMasker.Config(ratio=0.75),
        updates=(5, 38),
    ),
    tokenizer=Tubes.Config(size=16, frames=2),
    masker=RandomMasker.Config(ratio=0.9),
    encoder=VisionTransformer.Config(size="base", class_token=False, resize_positions="recompute"),
    decoder=SelfAttentionDecoder.Config(width=384, depth=4, heads=16, qkv_bias="none", resize_positions="recompute"),
    target=PixelTarget.Config(standardise="channel", pixels="unit"),
    train=TrainConfig(
        epochs=200,  # passes over the videos: 800 of the authors' epochs
        batch_size=2048,
        learning_rate=1.6e-3,
        scale_learning_rate=None,
        warmup_epochs=10,
        weight_decay=0.05,
        betas=(0.9, 0.95),
    ),
)

# the updates of the demonstrations of videos and of images alternate
DEMO = replace(
    MOTION,
    encoder=VisionTransformer.Config(width=128, depth=4, heads=4, resize_positions="recompute"),
    decoder=SelfAttentionDecoder.Config(width=64, depth=1, heads=4, resize_positions="recompute"),
    second=SecondSource(data=replace(PHOTOGRAPHS.data, mean=MOTION.data.mean, std=MOTION.data.std), masker=PHOTOGRAPHS.masker),
    evaluate=EvaluatorSet.of(*MOTION.evaluate, FrozenFeatures.Config(labels_per_class=20)),
)

PRESETS: dict[str, pretrain.Config] = {"ssv2_imagenet": SSV2_IMAGENET, "demo": DEMO}

if __name__ == "__main__":
    main(pretrain.run, presets=PRESETS, doc=__doc__)
