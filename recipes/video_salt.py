"""SALT on videos (Li et al., "Rethinking JEPA: Compute-Efficient Video SSL with Frozen Teachers", arXiv 2509.24317): a small
teacher is trained on pixels; then it is frozen, and a student predicts its features of hidden tokens.

    python recipes/video_salt.py --folder runs/salt-video-teacher          the demonstration's teacher: minutes on a CPU
    python recipes/video_salt.py --preset demo_student                     its student
    python recipes/video_salt.py --preset videos_teacher --data.source /data/videos --folder runs/salt-video-teacher
    python recipes/video_salt.py --data.source /data/videos                the student

The student's presets read the teacher from runs/salt-video-teacher; `--target.teacher` names another run, or a model of timm or
transformers. Masks and learning rates are those of V-JEPA 2. The teacher is trained for 40,000 of 240,000 updates, as in the
paper. No code is published.

Results. This recipe has not been run on the authors' data yet. `builtin:motion`, for six minutes: docs/methods.md."""

from dataclasses import replace

from mmm.config.cli import main
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.targets import LatentTarget, PixelTarget
from recipes.video_mae import DEMO
from recipes.video_vjepa import PRESETS as VJEPA
from tasks import pretrain

TEACHER = "runs/salt-video-teacher"
FEATURES = LatentTarget.Config(teacher=TEACHER, norm="layer", loss="l1")
SOURCE = VJEPA["vjepa2"]

VIDEOS_TEACHER = replace(
    SOURCE,
    encoder=VisionTransformer.Config(size="base", class_token=False),
    decoder=SelfAttentionDecoder.Config(width=384, depth=4, heads=6),
    target=PixelTarget.Config(standardise="patch"),
    train=replace(SOURCE.train, steps=40_000),
)

VIDEOS = replace(SOURCE, target=replace(FEATURES, teacher_width=768), train=replace(SOURCE.train, steps=200_000))

DEMO_TEACHER = replace(DEMO, masker=VJEPA["demo"].masker, encoder=VJEPA["demo"].encoder)

PRESETS: dict[str, pretrain.Config] = {
    "videos": VIDEOS,
    "videos_teacher": VIDEOS_TEACHER,
    "demo": DEMO_TEACHER,
    "demo_student": replace(DEMO_TEACHER, decoder=VJEPA["demo"].decoder, target=FEATURES, train=VJEPA["demo"].train),
}

if __name__ == "__main__":
    main(pretrain.run, presets=PRESETS, doc=__doc__)
