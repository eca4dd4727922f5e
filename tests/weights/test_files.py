"""Untrusted files: harmless content is read, nothing in a file is ever run, and each refusal is one clear line."""

from __future__ import annotations

import argparse
import os
import pathlib
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_load_mae import assert_same, encoder_file

from mmm.weights.formats.timm import to_timm
from mmm.weights.load import load
from mmm.weights.safe_load import Inert, read_weights

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(2)}


class Hostile:
    """Unpickles as a function call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def refused(path: Path) -> str:
    """Returns the line with which a file is refused, and asserts that none of torch's own advice is shown with it."""
    with pytest.raises(ValueError, match=path.name) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "weights_only" not in message
    assert caught.value.__context__ is None or "weights_only" not in str(caught.value.__context__)
    return message


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("place", ["args", "model", "whole"])
def test_hostile_pickle_is_refused_and_not_run(tmp_path: Path, place: str, new_format: bool) -> None:
    canary = tmp_path / "canary"
    hostile = Hostile(os.system, f"touch {canary}")
    saved: object = {"model": WEIGHTS, "args": hostile}
    if place == "model":
        saved = {"model": WEIGHTS | {"b": hostile}}
    elif place == "whole":
        saved = hostile
    torch.save(saved, tmp_path / "hostile.pth", _use_new_zipfile_serialization=new_format)
    message = refused(tmp_path / "hostile.pth")
    assert "system, which only running the file's own code could rebuild; refused" in message
    assert not canary.exists()
    torch.load(tmp_path / "hostile.pth", weights_only=False)  # without the check, the file does run its code
    assert canary.exists()


@pytest.mark.parametrize(
    "hostile",
    [
        Hostile(eval, "1 + 1"),
        Hostile(getattr, argparse.Namespace, "__init__"),
        Hostile(exec, "import os"),
        Hostile(argparse.FileType, "w"),
        Hostile(pathlib.Path.touch, Path("canary")),
        torch.nn.Linear(2, 2),
    ],
    ids=["eval", "getattr", "exec", "file", "touch", "module"],
)
def test_anything_but_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hostile: object) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": WEIGHTS, "args": hostile}, tmp_path / "hostile.pth")
    assert "refused" in refused(tmp_path / "hostile.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.pth"]


def test_namespace_may_not_reach_a_hidden_object(tmp_path: Path) -> None:
    inside = argparse.Namespace(model="vit", hook=Hostile(os.system, f"touch {tmp_path / 'canary'}"))
    torch.save({"model": WEIGHTS, "args": inside}, tmp_path / "hostile.pth")
    assert "system" in refused(tmp_path / "hostile.pth")
    assert not (tmp_path / "canary").exists()


def test_options_of_a_training_script_are_read_as_nothing(tmp_path: Path) -> None:
    options = argparse.Namespace(lr=0.1, output_dir=Path("runs"), sizes=[1, (2, 3)], nested=argparse.Namespace(table=torch.ones(2)))
    for new_format in (True, False):
        torch.save({"model": WEIGHTS, "epoch": 3, "args": options}, tmp_path / "a.pth", _use_new_zipfile_serialization=new_format)
        found = read_weights(tmp_path / "a.pth")
        assert found.keys() == WEIGHTS.keys()
        assert all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"state_dict": weights, "epoch": 3},
        lambda weights: {"model": {"state_dict": weights}},
        lambda weights: {"state_dict": {f"module.{name}": value for name, value in weights.items()}},
        lambda weights: {"model": {f"_orig_mod.{name}": value for name, value in weights.items()}},
        lambda weights: {f"_orig_mod.module.{name}": value for name, value in weights.items()},
    ],
    ids=["state_dict", "nested", "ddp", "compiled", "both"],
)
def test_wrappings_of_training_scripts_are_taken_off(tmp_path: Path, wrap: Callable[[object], object]) -> None:
    torch.save(wrap(WEIGHTS), tmp_path / "a.pth")
    found = read_weights(tmp_path / "a.pth")
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


def test_a_folder_with_pytorch_model_bin_is_read(tmp_path: Path) -> None:
    weights = encoder_file()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    assert_same(to_timm(load(tmp_path, heads=2)), weights)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_weights_are_refused(tmp_path: Path, value: float) -> None:
    weights = encoder_file()
    weights["blocks.1.norm1.bias"][3] = value
    torch.save(weights, tmp_path / "nan.pth")
    with pytest.raises(ValueError, match=r"NaN or infinity in blocks\.1\.norm1\.bias"):
        load(tmp_path / "nan.pth", heads=2)


def test_options_in_place_of_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"model": WEIGHTS | {"args": argparse.Namespace()}}, tmp_path / "a.pth")
    assert "holds an object that is not read under 'args'" in refused(tmp_path / "a.pth")
    torch.save(argparse.Namespace(a=1), tmp_path / "b.pth")
    assert "holds no weights by name" in refused(tmp_path / "b.pth")


def test_what_is_allowed_is_allowed_only_while_reading(tmp_path: Path) -> None:
    torch.save({"model": WEIGHTS, "args": argparse.Namespace(a=1)}, tmp_path / "a.pth")
    before = set(torch.serialization.get_safe_globals())
    read_weights(tmp_path / "a.pth")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pth", weights_only=True)


def test_inert_keeps_nothing() -> None:
    inert = Inert("a", 1)
    inert.__setstate__({"b": 2})
    assert not hasattr(inert, "__dict__")


def test_unreadable_files_are_refused_in_words(tmp_path: Path) -> None:
    torch.save({"model": WEIGHTS}, tmp_path / "whole.pth")
    torch.save({"model": WEIGHTS}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(WEIGHTS, tmp_path / "whole.safetensors")
    for name in ("whole.pth", "old.pth", "whole.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for part in (0, 4, len(whole) // 2, len(whole) - 5):
            cut = tmp_path / f"cut_{part}_{name}"
            cut.write_bytes(whole[:part])
            assert "cannot be read" in refused(cut)
    (tmp_path / "page.pth").write_bytes(b"<html>404</html>")
    assert "cannot be read" in refused(tmp_path / "page.pth")
    (tmp_path / "page.safetensors").write_bytes(b"<html>404</html>")
    assert "cannot be read" in refused(tmp_path / "page.safetensors")


def test_other_things_are_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert "is not a checkpoint by its name" in refused(tmp_path / "notes.txt")
    assert "does not exist" in refused(tmp_path / "nowhere.pth")
    (tmp_path / "folder").mkdir()
    assert "config.yaml" in refused(tmp_path / "folder")
    for name, value, said in (
        ("list", [1], "type list"),
        ("empty", {}, "empty"),
        ("number", {"model": {"lr": 1}}, "type int under 'lr'"),
    ):
        torch.save(value, tmp_path / f"{name}.pth")
        assert said in refused(tmp_path / f"{name}.pth")


@pytest.mark.parametrize(
    ("names", "seen"),
    [
        (["a.weight", "b.weight"], "no known format"),
        (["vit.embeddings.cls_token"], "transformers"),
        (["encoder.patch_embed.proj.weight", "decoder.embed.weight"], "a run without its config.yaml"),
    ],
)
def test_layouts_that_are_not_read_are_named(tmp_path: Path, names: list[str], seen: str) -> None:
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "other.safetensors")
    message = refused(tmp_path / "other.safetensors")
    assert seen in message
    assert names[0] in message
