"""The recipe image_crossmae.py has the published settings and trains, also as one flag of image_mae.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import load_recipe

import mmm
from mmm import MaskedModel, ModelConfig
from mmm.config.cli import main
from tasks.pretrain import Config, scaled

Run = Callable[..., dict[str, object]]


def parsed(*flags: str, name: str = "image_crossmae") -> Config:
    """Returns the config that a command line makes."""
    found: list[Config] = []
    recipe = load_recipe(name)
    main(lambda config: found.append(config) or {}, presets=recipe.PRESETS, doc=recipe.__doc__, argv=list(flags), prog=name)
    return found[0]


SIZES = {  # flags in the recipe's docstring, and the published numbers of parameters
    "base": ((), 127_286_428),
    "small": (("--encoder.size", "small", "--decoder.width", "256", "--decoder.heads", "8"), 32_186_396),
    "large": (("--encoder.size", "large"), 347_940_908),
}


@pytest.mark.parametrize("size", [*SIZES, "huge"])
def test_the_published_sizes_are_flags(size: str) -> None:
    flags, total = SIZES.get(size, (("--encoder.size", "huge", "--tokenizer.size", "14"), None))
    config = parsed("--data.source", "/data/imagenet", *flags)
    parts = ModelConfig(**{name: getattr(config, name) for name in ("tokenizer", "masker", "encoder", "decoder", "target")})
    with torch.device("meta"):
        model = MaskedModel.build(parts, config.data.input())
    counted = sum(weight.numel() for weight in model.parameters())
    assert counted == total or (total is None and counted > 600_000_000)
    assert model.decoder.fusion.mix.weight.shape == (12, config.encoder.shape.depth + 1)


@pytest.mark.parametrize(("preset", "asked", "rate"), [("imagenet", 0.25, 1.5e-4 / 3), ("imagenet_75", None, 1.5e-4)])
def test_the_learning_rate_falls_with_what_is_predicted(preset: str, asked: float | None, rate: float) -> None:
    """The published code scales it by 0.25 / 0.75, which is an option of the recipe."""
    config = parsed("--preset", preset, "--data.source", "/data/imagenet")
    assert (config.masker.ratio, config.masker.predict) == (0.75, asked)
    assert scaled(config).learning_rate == pytest.approx(rate, rel=1e-12)
    plain = parsed("--preset", preset, "--data.source", "/data/imagenet", "--no-scale_by_predicted")
    assert scaled(plain).learning_rate == 1.5e-4


def test_one_flag_makes_it_of_mae() -> None:
    """With three more flags only the scaling of the learning rate differs from the recipe."""
    flags = [
        "--decoder.name",
        "cross_attention",
        "--decoder.fusion",
        "linear",
        "--masker.predict",
        "0.25",
        "--masker.rounding",
        "truncate",
    ]
    config = parsed("--data.source", "/data/imagenet", *flags, "--scale_by_predicted", name="image_mae")
    assert config == parsed("--data.source", "/data/imagenet")


@pytest.mark.parametrize("preset", ["demo", "cifar10"])
def test_presets_train(preset: str, run_recipe: Run, tmp_path: Path) -> None:
    """The presets run on built-in data; the CIFAR-10 preset on colour tiles of the same size."""
    source = () if preset == "demo" else ("--data.source", "builtin:photographs", "--data.eval_split", "test")
    run = tmp_path / "run"
    result = run_recipe("image_crossmae", "--preset", preset, *source, "--data.workers", "0", "--folder", str(run))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert result["loss"] > 0
    model = mmm.load(run)
    x = torch.randn(2, *((1,) if preset == "demo" else (3,)), 32, 32)
    output = model(x)
    assert (output.mask.visible.shape, output.mask.predict.shape) == ((2, 16), (2, 16))  # of 64; 32 are in neither
    assert output.loss.isfinite()


def test_mae_trains_with_it_by_one_flag(run_recipe: Run, tmp_path: Path) -> None:
    flags = ("--decoder.name", "cross_attention", "--decoder.depth", "2", "--decoder.width", "32", "--decoder.heads", "2")
    run_recipe("image_mae", *flags, "--masker.predict", "0.25", "--folder", str(tmp_path / "run"))
    model = mmm.load(tmp_path / "run")
    assert model.decoder.config.name == "cross_attention"
    assert model(torch.randn(1, 1, 32, 32)).prediction.shape == (1, 16, 16)
