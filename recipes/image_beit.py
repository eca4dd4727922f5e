"""BEiT on images (Bao et al., "BEiT: BERT Pre-Training of Image Transformers", ICLR 2022): the decoder predicts the codes that a
frozen tokenizer assigns to hidden tokens.

    python recipes/image_beit.py                                       the demonstration: minutes on a CPU, no download
    python recipes/image_beit.py --data.source /data/imagenet          codes by k-means on patches, no download
    python recipes/image_beit.py --preset imagenet_dalle --data.source /data/imagenet      DALL-E's tokenizer, from the hub
    python recipes/image_beit.py --target.vocabulary vqkd --target.source vqkd.pth --data.source /data/imagenet     BEiT v2's
    python recipes/image_beit.py --preset cifar10 --data.source uoft-cs/cifar10

With `--target.source runs/pretrain-1` k-means clusters the features of your own model instead of patches.

Differences from the authors' code: the number of hidden tokens is exact; there is no colour jitter; DALL-E's tokenizer reads the
resized input of the model instead of a second resizing of the crop. BEiT v2's second head, on the class token, is left out.

Results. An independent reproduction with DALL-E's codes reports a top-1 accuracy of 83.1 % (B) after 300 epochs and
fine-tuning. This recipe has not been run on ImageNet yet. CIFAR-10, for six minutes: docs/methods.md."""

from dataclasses import replace
from typing import Any

from mmm.config.cli import main
from mmm.decoders import LinearDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import BlockMasker
from mmm.targets import CodeTarget
from mmm.tokenizers import Patches
from mmm.train.config import TrainConfig
from recipes.image_mae import CIFAR10, DEMO
from recipes.image_mae import IMAGENET as MAE
from tasks import pretrain

IMAGENET = pretrain.Config(
    data=replace(MAE.data, crop_scale=(0.08, 1.0), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    tokenizer=Patches.Config(size=16),
    masker=BlockMasker.Config(ratio=75 / 196, smallest=16 / 196, blank=True),
    encoder=VisionTransformer.Config(
        size="base", positions="none", relative_bias="shared", qkv_bias="qv", layer_scale=0.1, drop_path=0.1
    ),
    decoder=LinearDecoder.Config(),
    target=CodeTarget.Config(vocabulary="kmeans", codes=8192, samples=50_000),
    train=TrainConfig(
        epochs=800,
        batch_size=2048,
        learning_rate=1.5e-3,
        scale_learning_rate=None,
        warmup_epochs=10,
        final_learning_rate=1e-5 / 1.5e-3,
        weight_decay=0.05,
        decay_tokens=False,
        betas=(0.9, 0.999),
        clip_norm=3.0,
    ),
)

IMAGENET_DALLE = replace(IMAGENET, target=CodeTarget.Config(vocabulary="dalle", codes=8192, source="facebook/flava-image-codebook"))

SMALL: dict[str, Any] = {
    "masker": BlockMasker.Config(ratio=0.4, blank=True),
    "decoder": LinearDecoder.Config(),
    "target": CodeTarget.Config(vocabulary="kmeans", codes=256, samples=2000),
}

PRESETS: dict[str, pretrain.Config] = {
    "imagenet": IMAGENET,
    "imagenet_dalle": IMAGENET_DALLE,
    "cifar10": replace(CIFAR10, **SMALL),
    "demo": replace(DEMO, **SMALL),
}

if __name__ == "__main__":
    main(pretrain.run, presets=PRESETS, doc=__doc__)
