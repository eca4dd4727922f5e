"""SALT on images (Li et al., "Rethinking JEPA: Compute-Efficient Video SSL with Frozen Teachers", arXiv 2509.24317): a small
teacher is trained on pixels; then it is frozen, and a student predicts its features of hidden tokens.

    python recipes/image_salt.py --folder runs/salt-teacher            the demonstration's teacher: minutes on a CPU
    python recipes/image_salt.py --preset demo_student                 its student
    python recipes/image_salt.py --preset imagenet_teacher --data.source /data/imagenet --folder runs/salt-teacher
    python recipes/image_salt.py --data.source /data/imagenet          the student, of any size: --target.teacher_width 384

The student's presets read the teacher from runs/salt-teacher; `--target.teacher` names another run, or a model of timm or
transformers. The teacher does not depend on the student, so features cannot collapse.

The paper is about videos, and no code is published. The share of the updates for the teacher (a sixth) and the loss (L1) are the
paper's. Masks and learning rates are those of I-JEPA and MAE, and the weight decay is constant.

Results. This recipe has not been run on ImageNet yet. CIFAR-10, for six minutes: docs/methods.md."""

from dataclasses import replace

from mmm.config.cli import main
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import MultiBlockMasker
from mmm.targets import LatentTarget, PixelTarget
from recipes.image_ijepa import IMAGENET as IJEPA
from recipes.image_mae import CIFAR10, DEMO
from recipes.image_mae import IMAGENET as MAE
from tasks import pretrain

TEACHER = "runs/salt-teacher"
FEATURES = LatentTarget.Config(teacher=TEACHER, norm="layer", loss="l1")
BLOCKS = MultiBlockMasker.Config(ratio=0.6)

IMAGENET_TEACHER = replace(
    MAE,
    masker=MultiBlockMasker.Config(ratio=0.74),
    encoder=VisionTransformer.Config(size="small", class_token=False),
    decoder=SelfAttentionDecoder.Config(width=384, depth=6, heads=6),
    target=PixelTarget.Config(standardise="patch"),
    train=replace(MAE.train, epochs=50, warmup_epochs=5, batch_size=IJEPA.train.batch_size),
)

IMAGENET = replace(
    IMAGENET_TEACHER,
    encoder=VisionTransformer.Config(size="base", class_token=False),
    decoder=SelfAttentionDecoder.Config(width=384, depth=12, heads=12),
    target=replace(FEATURES, teacher_width=384),
    train=replace(IJEPA.train, epochs=250, weight_decay_end=None),
)

SMALL_TEACHER = replace(CIFAR10, masker=BLOCKS, encoder=VisionTransformer.Config(size="tiny", class_token=False))
DEMO_TEACHER = replace(DEMO, masker=BLOCKS, encoder=VisionTransformer.Config(width=128, depth=4, heads=4, class_token=False))

PRESETS: dict[str, pretrain.Config] = {
    "imagenet": IMAGENET,
    "imagenet_teacher": IMAGENET_TEACHER,
    "cifar10": replace(SMALL_TEACHER, target=FEATURES),
    "cifar10_teacher": SMALL_TEACHER,
    "demo": DEMO_TEACHER,
    "demo_student": replace(DEMO_TEACHER, target=FEATURES),
}

if __name__ == "__main__":
    main(pretrain.run, presets=PRESETS, doc=__doc__)
