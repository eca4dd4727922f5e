"""CAPI on images (Darcet et al., "Cluster and Predict Latent Patches for Improved Masked Image Modeling", TMLR 2025): a
teacher's features are clustered during training, and the clusters of hidden tokens are predicted.

    python recipes/image_capi.py                                       the demonstration: minutes on a CPU, no download
    python recipes/image_capi.py --data.source /data/imagenet          ViT-L/14
    python recipes/image_capi.py --preset cifar10 --data.source uoft-cs/cifar10

The visible tokens form a rectangle that wraps around the borders. A few of the hidden tokens are predicted, each separately.
Assignments to clusters are balanced at each position of the image, over the batch of all processes; with accumulated gradients,
over a micro-batch.

Differences from the authors' code: drop path rises from 0 to 0.2 over the encoder and drops branches of samples; the authors use
0.2 in every block of encoder and predictor and compute only a part of the batch. Norms have no weight decay; the authors use a
tenth of the weight decay. The decay of the teacher's average changes linearly from the first update; in the authors' code it
follows a cosine after the warm-up. The head of the student is a plain linear layer. The cosine of the learning rate is not cut at
four fifths.

Results. This recipe has not been run on ImageNet yet. CIFAR-10, for six minutes: docs/methods.md."""

from dataclasses import replace

from mmm.config.cli import main
from mmm.data import ImagesConfig
from mmm.decoders import CrossAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import InverseBlockMasker
from mmm.targets import ClusterTarget
from mmm.tokenizers import Patches
from mmm.train.config import TrainConfig
from recipes.image_mae import CIFAR10, DEMO
from tasks import pretrain

ENCODER = VisionTransformer.Config(
    size="large",
    class_token=False,
    registers=16,
    register_places="around",
    positions="none",
    rotary="capi",
    norm="rms",
    norm_epsilon=1e-5,
    last_norm_weight=False,
    bias=False,
    qkv_bias="none",
    drop_path=0.2,
)
PREDICTOR = CrossAttentionDecoder.Config(
    width=1024,
    depth=12,
    heads=16,
    positions="none",
    rotary="capi",
    register_places="around",
    norm="rms",
    norm_epsilon=1e-5,
    bias=False,
)

IMAGENET = pretrain.Config(
    data=ImagesConfig(image_size=224, crop_scale=(0.6, 1.0), workers=10),
    tokenizer=Patches.Config(size=14),
    masker=InverseBlockMasker.Config(ratio=166 / 256, predict=8 / 256, side=None, aspect=0.5, roll=True),
    encoder=ENCODER,
    decoder=PREDICTOR,
    target=ClusterTarget.Config(clusters=16384),
    train=TrainConfig(
        steps=500_000,
        batch_size=16384,
        learning_rate=1e-3,
        scale_learning_rate=None,
        warmup_steps=50_000,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        embedding_rate=0.2,
    ),
)

WINDOW = InverseBlockMasker.Config(ratio=0.65, predict=0.25, side=None, aspect=0.5, roll=True)

PRESETS: dict[str, pretrain.Config] = {
    "imagenet": IMAGENET,
    "cifar10": replace(
        CIFAR10,
        masker=WINDOW,
        encoder=replace(ENCODER, size="tiny", registers=4, drop_path=0.0),
        decoder=replace(PREDICTOR, width=96, depth=4, heads=3),
        target=ClusterTarget.Config(clusters=512, decay=0.99, decay_end=0.999),
    ),
    "demo": replace(
        DEMO,
        masker=WINDOW,
        encoder=replace(ENCODER, size="tiny", width=128, depth=4, heads=4, registers=4, drop_path=0.0),
        decoder=replace(PREDICTOR, width=64, depth=2, heads=4),
        target=ClusterTarget.Config(clusters=256, decay=0.99, decay_end=0.999),
    ),
}

if __name__ == "__main__":
    main(pretrain.run, presets=PRESETS, doc=__doc__)
