"""Every value of every config is checked when the config is made, also from Python."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
from conftest import REPOSITORY, load_recipe

from mmm.core.checks import CheckedConfig
from mmm.core.registry import PartSet
from mmm.data import ClipsConfig, ImagesConfig
from mmm.data.annotated.config import DepthConfig, MasksConfig
from mmm.data.decode.video.encode import EncodeConfig
from mmm.objectives.masked import SecondSource
from mmm.train.config import TrainConfig
from mmm.train.mixup import SoftConfig
from recipes.image_finetune import DEMO as FINETUNE
from recipes.image_mae import DEMO

RECIPES = sorted(path.stem for path in (REPOSITORY / "recipes").glob("*.py") if path.stem != "__init__")


def config_classes() -> set[type]:
    """Returns the dataclasses of `mmm` and `tasks` whose names end in Config."""
    files = [path for folder in ("mmm", "tasks") for path in (REPOSITORY / folder).rglob("*.py")]
    files = [path for path in files if re.search(r"^ *class \w*Config\b", path.read_text(encoding="utf-8"), re.MULTILINE)]
    modules = [importlib.import_module(".".join(path.relative_to(REPOSITORY).with_suffix("").parts)) for path in files]
    values = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    values += [value for kind in values for value in vars(kind).values() if isinstance(value, type)]  # the Config inside a part
    return {kind for kind in values if is_dataclass(kind) and kind.__name__.endswith("Config")}


def test_every_config_checks_its_fields() -> None:
    kinds = config_classes()
    assert len(kinds) > 80
    assert not [kind for kind in kinds if not issubclass(kind, CheckedConfig)]
    assert not [kind for kind in kinds if kind.__post_init__ is not CheckedConfig.__post_init__]  # type: ignore[attr-defined]


def configs_in(config: Any) -> Iterator[Any]:
    """Yields a config and all configs in it."""
    yield config
    for value in (getattr(config, field.name) for field in fields(config)):
        if is_dataclass(value):
            yield from (one for part in value for one in configs_in(part)) if isinstance(value, PartSet) else configs_in(value)


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_field_of_a_recipe_takes_what_it_does_not_know(recipe: str) -> None:
    preset = next(iter(load_recipe(recipe).PRESETS.values()))
    for config in configs_in(preset):
        for field in fields(config):
            with pytest.raises(ValueError, match=rf"{field.name} <object .* is not "):
                replace(config, **{field.name: object()})


TRAIN = {"batch_size": 8, "learning_rate": 1e-3, "steps": 10}
WRONG = {
    "data.resize 'gpu' is not worker or device": lambda: ImagesConfig(resize="gpu"),
    "data.mean .* is not a list, each a number": lambda: ImagesConfig(mean=[0.5, 0.5, 0.5]),
    "data.flip True is not a number from 0 to 1": lambda: ImagesConfig(flip=True),
    "data.sampling 'segment' is not dense or segments; did you mean 'segments'": lambda: ClipsConfig(sampling="segment"),
    "data.frames '16' is not a whole number": lambda: ClipsConfig(frames="16"),
    "data.largest_class 0 is not": lambda: MasksConfig(largest_class=0.0),
    r"data.range \(0.0, 1.0\) is not 2 values": lambda: DepthConfig(range=(0.0, 1.0)),
    "train.precision 'fp8' is not": lambda: TrainConfig(**TRAIN, precision="fp8"),
    "train.compile 'no' is not true or false": lambda: TrainConfig(**TRAIN, compile="no"),
    "train.timeout nan is not": lambda: TrainConfig(**TRAIN, timeout=float("nan")),
    r"train.betas \(0.9, 1.0\) is not": lambda: TrainConfig(**TRAIN, betas=(0.9, 1.0)),
    "soft.smoothing 1.5 is not": lambda: SoftConfig(smoothing=1.5),
    r"second.updates \(1, 0\) is not": lambda: SecondSource(updates=(1, 0)),
    "--crf 52 is not a whole number from 0 to 51": lambda: EncodeConfig(crf=52),
    "--seed 1.5 is not a whole number": lambda: replace(DEMO, seed=1.5),
    "--resume 'yes' is not": lambda: replace(DEMO, resume="yes"),
    "--encoder SelfAttentionDecoder.Config is not EncoderConfig": lambda: replace(DEMO, encoder=DEMO.decoder),
    "--layer_decay 0 is not": lambda: replace(FINETUNE, layer_decay=0.0),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_value_is_refused_by_name(message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        WRONG[message]()
