"""CrossMAE's decoder on videos: VideoMAE's setting with a decoder of cross-attention only. A quarter of the tokens is predicted,
and each decoder block reads its own weighted sum of the encoder's blocks. Fu et al. (TMLR 2025) trained on images and mention
videos as future work.

    python recipes/video_crossmae.py                                           the demonstration: minutes on a CPU
    python recipes/video_crossmae.py --data.source /data/kinetics400/train     ViT-B, 25 % of the tokens predicted
    python recipes/video_crossmae.py --preset ssv2 --data.source ssv2_train.csv

A clip has 1,568 tokens, of which 1,408 are hidden. Self-attention over all of them costs more than the encoder. Here 392 tokens are
predicted, and attend to the 160 visible ones only.

Results. There is no published result on Kinetics, and we have none. The demonstration has not been compared with that of VideoMAE.
"""

from dataclasses import replace

from mmm.config.cli import main
from mmm.decoders import CrossAttentionDecoder
from recipes.video_mae import PRESETS as MAE
from tasks import pretrain


def crossed(preset: pretrain.Config, decoder: CrossAttentionDecoder.Config) -> pretrain.Config:
    """Returns the preset with this decoder, a quarter of the tokens predicted, and CrossMAE's scaling of the learning rate."""
    return replace(preset, masker=replace(preset.masker, predict=0.25), decoder=decoder, scale_by_predicted=True)


# VideoMAE's width, and 12 blocks of cross-attention, as in the image recipe, where MAE has 8
LARGE = CrossAttentionDecoder.Config(width=384, depth=12, heads=6, fusion="linear", positions="flat_sine_cosine")

PRESETS = {name: crossed(MAE[name], LARGE) for name in ("kinetics", "ssv2", "ucf101")}
PRESETS["demo"] = replace(
    MAE["demo"],
    masker=replace(MAE["demo"].masker, predict=0.25),
    decoder=CrossAttentionDecoder.Config(width=64, depth=2, heads=4, fusion="linear"),
)

if __name__ == "__main__":
    main(pretrain.run, presets=PRESETS, doc=__doc__)
