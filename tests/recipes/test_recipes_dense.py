"""The presets of segmentation, detection and depth have the published values, one by one.

The tables give the values of the authors' configs and papers in their terms, such as blocks counted from 0. Nothing in
them is read from a recipe. Sources: MAE's appendix A.4 and the config that was released for ADE20K (implus/mae_segmentation),
BEiT's configs (microsoft/unilm), ViTDet's configs (facebookresearch/detectron2), DINOv2's section 7.4 and DINOv3's configs.
"""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from conftest import load_recipe

from mmm.config.serialize import load, save
from mmm.dense.mask_rcnn import ANCHORS, RATIOS
from mmm.dense.windows import default_global_blocks
from mmm.train.schedule import make_plan

ADE20K = {
    "data.frame_size": (512, 512),
    "data.scale": (0.5, 2.0),
    "data.largest_class": 0.75,
    "data.flip": 0.5,
    "data.classes": 150,
    "data.zero_is_ignored": True,
    "data.ignore": 255,
    "data.whole_maps": False,
}
UPER_NET = ADE20K | {
    "data.photometric": True,
    "head.name": "uper_net",
    "head.pools": (1, 2, 3, 6),
    "head.channels": None,  # the width of the encoder, 768 or 1024
    "head.dropout": 0.1,
    "head.auxiliary": 256,
    "head.auxiliary_weight": 0.4,
    "frozen": False,
    "relative_bias": True,
    "train_positions": True,
    "train.steps": 160_000,
    "train.batch_size": 8 * 2,
    "train.warmup_steps": 1500,
    "train.schedule": "linear",
    "train.weight_decay": 0.05,
    "train.betas": (0.9, 0.999),
    "train.decay_tokens": True,  # the authors' list omits a prefix of the names, so that positions are decayed
    "train.clip_norm": None,
    "tokenizer.size": 16,
}
LINEAR = ADE20K | {
    "data.photometric": False,
    "head.name": "linear",
    "head.blocks": (),  # the last output, after the norm
    "head.class_token": False,
    "head.dropout": 0.1,
    "head.std": 0.01,
    "frozen": True,
    "train.steps": 40_000,
    "train.batch_size": 16,
    "train.learning_rate": 1e-3,
    "train.warmup_steps": 1500,
    "train.weight_decay": 1e-3,
}
VITDET = {
    "data.frame_size": (1024, 1024),
    "data.scale": (0.1, 2.0),
    "data.flip": 0.5,
    "data.split": "train2017",
    "data.eval_split": "val2017",
    "tokenizer.size": 16,
    "detector.name": "mask_rcnn",
    "detector.window": 14,
    "detector.relative": True,
    "detector.masks": True,
    "detector.channels": 256,
    "detector.hidden": 1024,
    "detector.convolutions": 4,
    "detector.detections": 100,
    "train_positions": True,
    "train.batch_size": 64,
    "train.learning_rate": 1e-4,
    "train.schedule": "steps",
    "train.milestones": (0.889, 0.963),
    "train.weight_decay": 0.1,
    "train.betas": (0.9, 0.999),
    "train.warmup_steps": 250,
}
NYU = {
    "data.range": (0.001, 10.0),
    "data.unit": 0.001,
    "bins": 256,
    "frozen": True,
    "head.name": "linear",
    "head.blocks": (),
    "head.class_token": False,  # as in DINOv3; DINOv2 has one
    "head.dropout": 0.0,
    "train.steps": 38_400,
    "train.batch_size": 16,
    "train.learning_rate": 3e-4,
}
DETR = {  # Carion et al., section A.4, as far as it applies to a plain vision transformer
    "detector.name": "detr",
    "detector.queries": 100,
    "detector.width": 256,
    "detector.depth": 6,
    "detector.heads": 8,
    "detector.hidden": 2048,
    "detector.dropout": 0.1,
    "detector.auxiliary": True,
    "detector.nothing": 0.1,
    "train.epochs": 300,
    "train.weight_decay": 1e-4,
    "train.clip_norm": 0.1,
}


def sizes(size: str, rate: float, decay: float, drop: float, **more: Any) -> dict[str, Any]:
    return {"encoder.size": size, "train.learning_rate": rate, "layer_decay": decay, "encoder.drop_path": drop, **more}


PUBLISHED: dict[tuple[str, str], dict[str, Any]] = {
    ("segment", "uper_net"): UPER_NET | sizes("base", 1e-4, 0.65, 0.1),
    ("segment", "uper_net_large"): UPER_NET | sizes("large", 2e-5, 0.95, 0.2),
    ("segment", "linear"): LINEAR,
    ("detect", "base"): VITDET | sizes("base", 1e-4, 0.7, 0.1, **{"train.epochs": 100}),
    ("detect", "large"): VITDET | sizes("large", 1e-4, 0.8, 0.4, **{"train.epochs": 100}),
    ("detect", "huge"): VITDET | sizes("huge", 1e-4, 0.9, 0.5, **{"train.epochs": 75}),
    ("detect", "detr"): DETR,
    ("depth", "nyu"): NYU,
}


@pytest.mark.parametrize(("recipe", "preset"), PUBLISHED, ids="-".join)
def test_a_preset_has_the_published_values(recipe: str, preset: str) -> None:
    config = load_recipe(recipe).PRESETS[preset]
    found = {name: reduce(getattr, name.split("."), config) for name in PUBLISHED[recipe, preset]}
    assert found == PUBLISHED[recipe, preset]
    plan = make_plan(config.train, samples=118_287, processes=1)
    assert plan.peak == config.train.learning_rate  # given for the whole batch, of any size
    assert plan.final == 0


@pytest.mark.parametrize(
    ("preset", "depth", "taps", "globals_"),
    [
        ("base", 12, (3, 5, 7, 11), (2, 5, 8, 11)),
        ("large", 24, (7, 11, 15, 23), (5, 11, 17, 23)),
        ("huge", 32, (), (7, 15, 23, 31)),
    ],
)
def test_blocks_that_are_read_and_global_blocks(preset: str, depth: int, taps: tuple[int, ...], globals_: tuple[int, ...]) -> None:
    """The authors count blocks from 0."""
    config = load_recipe("detect").PRESETS[preset]
    assert config.encoder.shape.depth == depth
    blocks = config.detector.global_blocks or default_global_blocks(depth)
    assert tuple(block - 1 for block in blocks) == globals_
    if taps:
        segment = load_recipe("segment").PRESETS["uper_net" if preset == "base" else "uper_net_large"]
        required = segment.head.required_features(segment.encoder.shape)
        assert tuple(block - 1 for block in required.blocks) == taps
        assert not required.last  # without the final norm
    assert (ANCHORS, RATIOS) == ((32, 64, 128, 256, 512), (0.5, 1.0, 2.0))


@pytest.mark.parametrize("recipe", ["segment", "detect", "depth"])
def test_presets_are_saved_and_loaded_to_the_same(recipe: str, tmp_path: Path) -> None:
    module = load_recipe(recipe)
    for name, preset in module.PRESETS.items():
        save(preset, tmp_path / f"{name}.yaml")
        assert load(type(preset), tmp_path / f"{name}.yaml") == preset


def test_the_demonstrations_start_from_the_pretraining_of_the_same_shape() -> None:
    """Tokens, encoder and pixels of the demonstrations equal those of recipes/image_mae.py."""
    pretraining = load_recipe("image_mae").PRESETS["demo"]
    for recipe in ("segment", "detect", "depth"):
        config = load_recipe(recipe).PRESETS["demo"]
        for name in ("tokenizer.size", "encoder.width", "encoder.depth", "encoder.heads", "data.channels", "data.mean", "data.std"):
            assert reduce(getattr, name.split("."), config) == reduce(getattr, name.split("."), pretraining), (recipe, name)
