"""V-JEPA on videos (Bardes et al., "Revisiting Feature Prediction for Learning Visual Representations from Video", TMLR 2024;
V-JEPA 2: Assran et al., arXiv 2506.09985): a predictor computes the features of large spatial blocks, which extend over all frames,
as a teacher computes them. The teacher is the moving average of the encoder.

    python recipes/video_vjepa.py                                          the demonstration: minutes on a CPU, no download
    python recipes/video_vjepa.py --data.source /data/videos               V-JEPA, ViT-L
    python recipes/video_vjepa.py --preset vjepa2 --data.source /data/videos      V-JEPA 2, ViT-L at 256 pixels, rotary positions
    python recipes/video_vjepa.py --preset vjepa2_1 --data.source /data/videos    V-JEPA 2.1: four levels, visible tokens too

Each sample has two masks: the union of eight small blocks and the union of two large ones. For both masks together, the clip is
read once, and the teacher is computed once.

Differences from the authors' code: numbers of tokens are exact, so that no batch is cut to its shortest sample. Both masks share
one mask token; V-JEPA has one for each mask, and the released runs of V-JEPA 2 trained only one of them. Weights are initialised
Xavier-uniform instead of truncated normal. The schedule ends with the run; V-JEPA's is 1.25 times as long. The gradient of all
weights is clipped together and from the beginning; the authors clip it by part and after the warm-up. V-JEPA 2's cooldown on
longer clips is a second run with --init. V-JEPA 2.1 also trains on images on half of its processes, and normalises the teacher's
levels with learned factors.

Results. The authors report a top-1 accuracy of 80.8 % (L, Kinetics-400, attentive probe) and 69.5 % (Something-Something V2).
This recipe has not been run on these data sets yet. `builtin:motion`, for six minutes: docs/methods.md."""

from dataclasses import replace

from mmm.config.cli import main
from mmm.data import ClipsConfig
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import BlockUnionMasker
from mmm.targets import LatentTarget
from mmm.tokenizers import Tubes
from mmm.train.config import TrainConfig
from recipes.video_mae import DEMO
from tasks import pretrain

CLIPS = ClipsConfig(
    frames=16, stride=4, image_size=224, crop="random_resized", crop_scale=(0.3, 1.0), crop_ratio=(0.75, 1.35), flip=0.5, workers=10
)

UNIONS = BlockUnionMasker.Config(blocks=(8, 2), scale=(0.15, 0.7), aspect=(0.75, 1.5))

VJEPA = pretrain.Config(
    data=CLIPS,
    tokenizer=Tubes.Config(size=16, frames=2),
    masker=UNIONS,
    encoder=VisionTransformer.Config(size="large", class_token=False),
    decoder=SelfAttentionDecoder.Config(width=384, depth=12, heads=16),
    target=LatentTarget.Config(norm="layer", loss="l1", decay=0.998, decay_end=1.0),
    train=TrainConfig(
        steps=90_000,
        batch_size=3072,
        learning_rate=6.25e-4,
        scale_learning_rate=None,
        warmup_steps=12_000,
        warmup_start=0.32,  # 2e-4
        final_learning_rate=1.6e-3,  # 1e-6
        weight_decay=0.04,
        weight_decay_end=0.4,
        betas=(0.9, 0.999),
        clip_norm=10.0,
    ),
)

VJEPA2 = replace(
    VJEPA,
    data=replace(CLIPS, image_size=256, fps=4.0),
    encoder=VisionTransformer.Config(size="large", class_token=False, positions="none", rotary="axial"),
    decoder=SelfAttentionDecoder.Config(width=384, depth=12, heads=12, positions="none", rotary="axial"),
    target=LatentTarget.Config(norm="layer", loss="l1", decay=0.99925, decay_end=0.99925),
    train=replace(
        VJEPA.train,
        steps=240_000,
        learning_rate=5.25e-4,
        warmup_start=1 / 5.25,
        final_learning_rate=1.0,
        weight_decay_end=None,
        clip_norm=None,
    ),
)

LEVELS = (6, 12, 18, 24)

VJEPA2_1 = replace(
    VJEPA2,
    masker=replace(UNIONS, echo=0.5, echo_rise=(0.05, 0.1)),
    decoder=SelfAttentionDecoder.Config(
        width=384,
        depth=24,
        heads=12,
        positions="none",
        rotary="axial",
        fusion="levels",
        fusion_blocks=LEVELS,
        echo=True,
    ),
    target=LatentTarget.Config(
        blocks=LEVELS, join=True, block_norm="layer", norm="none", loss="l1", decay=0.99925, decay_end=0.99925
    ),
    train=replace(VJEPA2.train, steps=300_000, learning_rate=6e-4, warmup_start=1 / 6),
)

PRESETS: dict[str, pretrain.Config] = {
    "vjepa": VJEPA,
    "vjepa2": VJEPA2,
    "vjepa2_1": VJEPA2_1,
    "demo": replace(
        DEMO,
        masker=BlockUnionMasker.Config(blocks=(4, 2), scale=(0.15, 0.5)),
        encoder=VisionTransformer.Config(width=128, depth=4, heads=4, class_token=False),
        decoder=SelfAttentionDecoder.Config(width=64, depth=2, heads=4),
        target=LatentTarget.Config(norm="layer", loss="l1", decay=0.99, decay_end=1.0),
        train=replace(DEMO.train, learning_rate=5e-4),
    ),
}

if __name__ == "__main__":
    main(pretrain.run, presets=PRESETS, doc=__doc__)
