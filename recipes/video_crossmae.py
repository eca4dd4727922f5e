"""CrossMAE's decoder on videos: VideoMAE's setting, with cross-attention only, a quarter of the tokens predicted, and each decoder
block reading its own mixture of the encoder's blocks. Fu et al. (TMLR 2025) have done it with images, and only hope for videos.

    accelerate launch recipes/video_crossmae.py                                           the demonstration: minutes on a CPU
    accelerate launch recipes/video_crossmae.py --data.source /data/kinetics400/train     ViT-B, 25 % of the tokens predicted
    accelerate launch recipes/video_crossmae.py --preset ssv2 --data.source ssv2_train.csv

Of a clip's 1,568 tokens 1,408 are hidden, and self-attention over them all costs more than the encoder; here 392 are predicted, and
attend to the 160 visible ones only.

What to expect. Nobody has published this on Kinetics, and we have not measured it there. `demo`: docs/results.md.
"""

from dataclasses import replace

from mmm.config.cli import main
from mmm.decoders import CrossAttentionDecoder
from recipes.video_mae import PRESETS as MAE
from tasks import pretrain


def crossed(preset: pretrain.Config, decoder: CrossAttentionDecoder.Config) -> pretrain.Config:
    """The preset with this decoder and a quarter of the tokens predicted, its learning rate scaled as CrossMAE's is."""
    return replace(preset, masker=replace(preset.masker, predict=0.25), decoder=decoder, scale_by_predicted=True)


# VideoMAE's width, and 12 blocks of cross-attention, as the image recipe has for MAE's 8
LARGE = CrossAttentionDecoder.Config(width=384, depth=12, heads=6, fusion="linear", positions="flat_sine_cosine")

PRESETS = {name: crossed(MAE[name], LARGE) for name in ("kinetics", "ssv2", "ucf101")}
PRESETS["demo"] = replace(
    MAE["demo"],
    masker=replace(MAE["demo"].masker, predict=0.25),
    decoder=CrossAttentionDecoder.Config(width=64, depth=2, heads=4, fusion="linear"),
)

if __name__ == "__main__":
    main(pretrain.run, presets=PRESETS, doc=__doc__)
