"""Self-distilled masked autoencoding on images: the teacher, which is the moving average of the encoder, gets the whole image, and
the decoder predicts the teacher's features of the hidden tokens instead of their pixels.

    python recipes/image_selfdistill.py                                the demonstration: minutes on a CPU, no download
    python recipes/image_selfdistill.py --data.source /data/imagenet   ViT-B/16
    python recipes/image_selfdistill.py --preset imagenet_sdae --data.source /data/imagenet
    python recipes/image_selfdistill.py --preset imagenet_bootmae --data.source /data/imagenet
    python recipes/image_selfdistill.py --preset cifar10 --data.source uoft-cs/cifar10

`imagenet_sdae` follows SdAE (Chen et al., ECCV 2022): the teacher gets only the hidden tokens, and the loss is the cosine
distance. Batch size, learning rate, warm-up, drop path and weight decay are those of the authors' command; their code has an
option for a final weight decay of 0.4, and does not use it. SdAE's authors update the teacher once per epoch, with a momentum
that rises along a cosine from 0.96 to 0.99. Here it is updated after each of the 1,668 updates of an epoch, with a momentum that
has the same effect over an epoch and rises linearly. The authors split the hidden tokens into several sequences, and compute the
cosine over another axis.
`imagenet_bootmae` follows BootMAE (Dong et al., ECCV 2022): two decoders predict pixels and features. Both read the encoder's last
features; the pixel decoder attends to the output of the first block, and the feature decoder to that of the last one. The weight
of the second loss rises over a quarter of the run, and tokens inside blocks weigh up to twice as much. BootMAE's authors hide 120
tokens in blocks and 27 at random; here all 147 are in blocks. Their pixel decoder has the encoder's 12 heads, of 42 of its 512
values; here it has 16 heads. If features collapse to one vector, the run logs a warning, and `rankme` in metrics.jsonl shows it.

Results. BootMAE reports a top-1 accuracy of 84.2 % (B) after 800 epochs and fine-tuning. These presets have not been run on
ImageNet yet. CIFAR-10, for six minutes: docs/methods.md."""

from dataclasses import replace

from mmm.config.cli import main
from mmm.decoders import CrossAttentionDecoder, PairDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import BlockMasker
from mmm.targets import LatentTarget, PairTarget, PixelTarget
from recipes.image_mae import CIFAR10, DEMO
from recipes.image_mae import IMAGENET as MAE
from tasks import pretrain

IMAGENET = replace(MAE, target=LatentTarget.Config(decay=0.996, norm="layer", loss="mse"), train=replace(MAE.train, epochs=300))

SDAE_BATCH = 768  # 96 images on each of 8 GPUs
SDAE_EPOCH = 1_281_167 / SDAE_BATCH  # updates

SDAE = replace(
    IMAGENET,
    encoder=VisionTransformer.Config(size="base", drop_path=0.25),
    target=LatentTarget.Config(
        decay=0.96 ** (1 / SDAE_EPOCH), decay_end=0.99 ** (1 / SDAE_EPOCH), view="hidden", norm="layer", loss="cosine"
    ),
    train=replace(IMAGENET.train, batch_size=SDAE_BATCH, learning_rate=2.666e-4, warmup_epochs=60, weight_decay=0.04),
)

READER = CrossAttentionDecoder.Config(depth=2, self_attention=True, encoded_queries=True, fusion="linear", fusion_input=False)

BOOTMAE = replace(
    MAE,
    data=replace(MAE.data, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    masker=BlockMasker.Config(ratio=147 / 196, smallest=16 / 196, largest=60 / 196, inner_weight=1.0),
    decoder=PairDecoder.Config(
        first=replace(READER, width=512, heads=16, fusion_blocks=(1,)),
        second=replace(READER, width=768, heads=12, fusion_blocks=(12,)),
    ),
    target=PairTarget.Config(
        first=PixelTarget.Config(standardise="channel", unbiased=False, epsilon=1e-5),
        second=LatentTarget.Config(
            blocks=(12,),
            decay=0.999,
            decay_middle=(0.9999, 0.125),
            decay_end=0.99999,
            decay_until=0.5,
            norm="layer",
            norm_prediction=True,
            loss="mse",
        ),
        second_rise=0.25,
    ),
    train=replace(MAE.train, epochs=800, final_learning_rate=1e-4 / 2.4e-3),
)

DISTILLED = LatentTarget.Config(decay=0.99, norm="layer", loss="mse")

PRESETS: dict[str, pretrain.Config] = {
    "imagenet": IMAGENET,
    "imagenet_sdae": SDAE,
    "imagenet_bootmae": BOOTMAE,
    "cifar10": replace(CIFAR10, target=DISTILLED),
    "demo": replace(DEMO, target=DISTILLED),
}

if __name__ == "__main__":
    main(pretrain.run, presets=PRESETS, doc=__doc__)
