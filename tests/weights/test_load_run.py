"""Run folders load as the trained model, weights initialise another model, and errors name what does not fit."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from mmm import MaskedModel, ModelConfig
from mmm.config.serialize import save
from mmm.core.registry import PartConfig
from mmm.data.config import ImagesConfig
from mmm.decoders import DecoderConfig, LinearDecoder, SelfAttentionDecoder
from mmm.encoders import EncoderConfig, VisionTransformer
from mmm.maskers import BlockMasker, MaskerConfig, RandomMasker
from mmm.targets import PixelTarget
from mmm.tokenizers import Patches
from mmm.train.checkpoint import writer as checkpoint
from mmm.weights.formats.mae import to_mae
from mmm.weights.initialize import initialise_from
from mmm.weights.load import load


@dataclass(frozen=True, kw_only=True)
class Config:
    """The config that a task saves: the parts, the data, and a field of the task alone."""

    data: ImagesConfig
    tokenizer: PartConfig
    masker: MaskerConfig
    encoder: EncoderConfig
    decoder: DecoderConfig
    target: PartConfig
    surprise: int = 3


BASE = Config(
    data=ImagesConfig(source="somewhere", image_size=(8, 12), channels=2, mean=(0.1, 0.2), std=(0.3, 0.4)),
    tokenizer=Patches.Config(size=4),
    masker=RandomMasker.Config(ratio=0.5),
    encoder=VisionTransformer.Config(width=16, depth=2, heads=2),
    decoder=SelfAttentionDecoder.Config(width=8, depth=1, heads=2),
    target=PixelTarget.Config(standardise="channel", epsilon=1e-5, epsilon_inside=False),
)
BLANK = replace(
    BASE, masker=BlockMasker.Config(ratio=0.5, blank=True), decoder=LinearDecoder.Config(), target=PixelTarget.Config(loss="l1")
)


def make(config: Config, seed: int) -> MaskedModel:
    parts = ModelConfig(
        tokenizer=config.tokenizer, masker=config.masker, encoder=config.encoder, decoder=config.decoder, target=config.target
    )
    return MaskedModel.build(parts, config.data.input(), seed=seed)


def write(run: Path, config: Config = BASE, steps: tuple[int, ...] = (10,), average: bool = False) -> list[MaskedModel]:
    """Writes a run folder as training does; returns the model of each checkpoint."""
    (run / "checkpoints").mkdir(parents=True)
    save(config, run / "config.yaml")
    models = [make(config, seed=step) for step in steps]
    for step, model in zip(steps, models, strict=True):
        tensors = {"model": model.state_dict(), "optimizer": {"a": torch.zeros(2)}}
        if average:
            tensors["ema"] = make(config, seed=step + 1).state_dict()
        checkpoint.write(run / "checkpoints", step, tensors, {}, None)
    return models


def same(left: MaskedModel, right: MaskedModel) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def loss(model: MaskedModel, images: Tensor) -> float:
    torch.manual_seed(1)
    return model(images).loss.item()


@pytest.mark.parametrize("config", [BASE, BLANK], ids=["mae", "blank"])
def test_run_gives_the_model_that_was_trained(tmp_path: Path, config: Config) -> None:
    [model] = write(tmp_path / "run", config)
    loaded, images = load(tmp_path / "run"), torch.randn(3, 2, 8, 12)
    assert same(loaded, model)
    assert loss(loaded, images) == loss(model, images)
    assert loaded.target.config == config.target  # type: ignore


def test_a_model_that_is_loaded_is_in_evaluation_mode(tmp_path: Path) -> None:
    [model] = write(tmp_path / "run", replace(BASE, encoder=replace(BASE.encoder, drop_path=0.9)))
    save_file(to_mae(model), tmp_path / "mae.safetensors")
    for path, heads in (("run", {}), ("mae.safetensors", {"heads": 2, "decoder_heads": 2, "image_size": (8, 12)})):
        loaded = load(tmp_path / path, **heads)
        assert not any(module.training for module in loaded.modules())


def test_path_says_which_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    first, last = write(run, steps=(10, 20), average=True)
    (tmp_path / "latest").symlink_to(run / "checkpoints" / "step_00000010")
    (tmp_path / "link").symlink_to(run)
    for path in (run, run / "checkpoints", run / "checkpoints" / "step_00000020", str(run), tmp_path / "link"):
        with caplog.at_level(logging.INFO, "mmm"):
            assert same(load(path), last)
        assert "as they were trained" in caplog.text
        assert "step_00000020/ema.safetensors" in caplog.text
    early = run / "checkpoints" / "step_00000010"
    for path in (early, early / "model.safetensors", tmp_path / "latest"):
        assert same(load(path), first)
    assert same(load(run / "checkpoints" / "step_00000020" / "ema.safetensors"), make(BASE, seed=21))
    monkeypatch.chdir(run / "checkpoints" / "step_00000010")
    assert same(load("."), first)
    assert same(load("ema.safetensors"), make(BASE, seed=11))


def test_damaged_checkpoints_are_passed_over_or_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first, _ = write(run, steps=(10, 20))
    weights = run / "checkpoints" / "step_00000020" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert same(load(run), first)
    for path in (weights, weights.parent):
        with pytest.raises(ValueError, match=r"step_00000020 is damaged: .*model\.safetensors"):
            load(path)


def test_without_checkpoints(tmp_path: Path) -> None:
    write(tmp_path / "run", steps=())
    with pytest.raises(ValueError, match="holds no checkpoint yet"):
        load(tmp_path / "run")
    (tmp_path / "run" / "pictures").mkdir()
    with pytest.raises(ValueError, match="is not a run folder"):
        load(tmp_path / "run" / "pictures")


def test_arguments_that_the_config_answers_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "run")
    with pytest.raises(ValueError, match=r"heads=2 was given, but .* a folder of mmm's, which takes no argument; leave it out"):
        load(tmp_path / "run", heads=2, norm_pix=False)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("encoder", None, "encoder is missing"),
        ("data", None, "data: expected names and values"),
        ("data", {"image_size": 8, "channels": 2, "mean": [0.1, 0.1]}, "data.std is missing"),
        ("data", {"image_size": 8, "channels": 2, "mean": [0.1], "std": [0.1, 0.1]}, "data.mean has 1 values"),
        ("data", {"image_size": "big", "channels": 2, "mean": [0.1] * 2, "std": [0.1] * 2}, "data.image_size"),
        (
            "encoder",
            {"name": "vitt"},
            r"encoder\.name 'vitt' is not one of hiera, swin, timm, vit; for a part of your own: --use FILE",
        ),
        ("encoder", {"name": "vit", "widht": 16}, "encoder.widht is not known"),
        ("encoder", {"name": "vit", "width": 16, "depth": 3, "heads": 2}, r"lacks encoder\.blocks\.2"),
        (
            "encoder",
            {"name": "vit", "width": 24, "depth": 2, "heads": 2},
            r"encoder\.cls_token as \(1, 1, 16\) instead of \(1, 1, 24\)",
        ),
        ("encoder", {"name": "vit", "width": 16, "depth": 1, "heads": 2}, r"has encoder\.blocks\.1.*which the model does not have"),
    ],
)
def test_configs_that_do_not_fit_are_refused(tmp_path: Path, field: str, value: object, message: str) -> None:
    write(tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    tree = {name: old for name, old in yaml.safe_load(file.read_text()).items() if name != field}
    file.write_text(yaml.safe_dump(tree | ({field: value} if value else {})))
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path / "run")
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "!!python/object/apply:os.system ['true']"])
def test_unreadable_configs_are_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml") as caught:
        load(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_initialise_from_a_run_and_from_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    [source] = write(tmp_path / "run")
    save_file(to_mae(source), tmp_path / "mae.safetensors")
    for path in (tmp_path / "run", tmp_path / "mae.safetensors"):
        model = make(BASE, seed=99)
        initialise_from(model, path)
        assert same(model, source)
    assert "left as it is" not in caplog.text


def test_initialise_from_an_encoder_keeps_the_decoder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, model, fresh = (make(BASE, seed=seed) for seed in (1, 2, 2))
    weights = {name: value for name, value in to_mae(source).items() if "decoder" not in name and name != "mask_token"}
    save_file(weights, tmp_path / "encoder.safetensors")
    initialise_from(model, str(tmp_path / "encoder.safetensors"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, (source if name.startswith("encoder.") else fresh).state_dict()[name])
    assert "only the model has a decoder" in caplog.text


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(BASE, encoder=VisionTransformer.Config(width=16, depth=3, heads=2)), r"lacks encoder\.blocks\.2"),
        (
            replace(BASE, decoder=SelfAttentionDecoder.Config(width=16, depth=1, heads=2)),
            r"decoder\.embed\.weight as \(8, 16\) instead of",
        ),
        (
            replace(BASE, encoder=VisionTransformer.Config(width=16, depth=2, heads=4)),
            r"encoder\.blocks\.0\.attn has 4 here, 2 there",
        ),
        (
            replace(BASE, tokenizer=Patches.Config(size=2)),
            r"patch_embed\.proj\.weight as \(16, 2, 4, 4\) instead of \(16, 2, 2, 2\)",
        ),
    ],
    ids=["depth", "decoder", "heads", "tokens"],
)
def test_initialise_names_what_differs(tmp_path: Path, other: Config, message: str) -> None:
    write(tmp_path / "run")
    model, before = make(other, seed=5), make(other, seed=5)
    with pytest.raises(ValueError, match=message):
        initialise_from(model, tmp_path / "run")
    assert same(model, before)


def test_initialise_warns_of_unusual_heads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = replace(BASE, encoder=VisionTransformer.Config(width=192, depth=1, heads=4))
    model = make(config, seed=1)
    save_file(to_mae(model), tmp_path / "mae.safetensors")
    initialise_from(model, tmp_path / "mae.safetensors")
    assert "models of width 192 have 3, not {4}" in caplog.text


def test_initialise_needs_an_encoder(tmp_path: Path) -> None:
    write(tmp_path / "run")
    with pytest.raises(ValueError, match="has no encoder: it has weight, bias"):
        initialise_from(torch.nn.Linear(2, 2), tmp_path / "run")


def test_loading_a_run_needs_none_of_the_heavy_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "run")
    for name in ("tyro", "datasets", "accelerate", "av", "decord", "transformers"):
        monkeypatch.setitem(
            sys.modules, name, None
        )  # importing the library now fails; the imports of `import mmm` itself are tested elsewhere
    load(tmp_path / "run")
