"""Answers of the page, without a browser: they show what `mmm reconstruct` computes, and visitors are independent."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from video_files import write

from mmm import Input, MaskedModel, ModelConfig
from mmm.core.mask import Mask
from mmm.data.errors import Unreadable
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import Swin, VisionTransformer
from mmm.evaluate.features.table import inference
from mmm.evaluate.inside.maps import feature_colours, token_attention
from mmm.evaluate.plots.image_grid import to_rgb
from mmm.evaluate.reconstruction.reconstruct import reconstruct_masked
from mmm.maskers import RandomMasker, TubeMasker, UniformMasker, maskers
from mmm.play import player as players
from mmm.play.export import export_space, requirements
from mmm.play.masks import Drawing, config_of, draw, options_of, painted
from mmm.play.models import Models
from mmm.play.pictures import from_png
from mmm.play.player import Player
from mmm.play.sample import builtin, builtin_names, read_sample
from mmm.targets import PixelTarget
from mmm.tokenizers import Patches, Tubes
from tasks import reconstruct

Save = Callable[..., str]


@pytest.fixture
def save(tmp_path: Path, disturb: Callable[..., Any]) -> Save:
    """Returns a function that saves a small model of images of 32 pixels, or of clips, and returns its folder."""

    def make(name: str, size: tuple[int, ...] = (32, 32), **parts: Any) -> str:
        clips = len(size) == 3
        chosen: dict[str, Any] = {
            "tokenizer": Tubes.Config(size=8, frames=2) if clips else Patches.Config(size=4),
            "masker": TubeMasker.Config(ratio=0.7) if clips else RandomMasker.Config(),
            "encoder": VisionTransformer.Config(width=24, depth=2, heads=2),
            "decoder": SelfAttentionDecoder.Config(width=16, depth=1, heads=2),
            "target": PixelTarget.Config(),
        }
        model = disturb(MaskedModel.build(ModelConfig(**chosen | parts), Input(size=size)))
        model.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return make


def photograph(path: Path, seed: int = 0, side: int = 150) -> Path:
    """Writes a JPEG that is reduced while it is decoded, as in an evaluation."""
    tiles = np.random.default_rng(seed).integers(0, 255, (10, 10, 3), dtype=np.uint8)
    Image.fromarray(tiles).resize((side, side + 20), Image.Resampling.BICUBIC).save(path, quality=92)
    return path


def shown(view: dict[str, Any]) -> list[np.ndarray]:
    """Returns the frames of each panel, (T, H, W, 3), from the data addresses that the page gets."""
    panels = [(from_png(panel["picture"]), panel["frames"]) for panel in view["panels"]]
    return [pixels.reshape(count, -1, *pixels.shape[1:]) for pixels, count in panels]


def columns_of(monkeypatch: pytest.MonkeyPatch, folder: Path, model: str, source: Path, *more: Any) -> list[torch.Tensor]:
    """Returns the images, (1, C, s...) each, that `mmm reconstruct` draws for one file."""
    drawn: list[Any] = []
    monkeypatch.setattr("mmm.evaluate.reconstruction.gallery.draw_gallery", lambda shown, *_: drawn.append(shown))
    config = reconstruct.Config(model=model, source=str(source), out=str(folder / "out.png"), workers=0, device="cpu", **dict(more))
    reconstruct.run(config)
    return list(drawn[0].pictures)


# --- what is shown --------------------------------------------------------------------------------------------------------------


def test_it_shows_what_reconstruct_draws_to_the_pixel(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, model = photograph(tmp_path / "photograph.jpg"), save("model")
    player = Player(Models([model]))
    player.open("me", read_sample(path), "model")
    first, table = player.show("me", ["model"])
    player.draw("me", "model", "random", 0.5, 7, {"unit": "2"})
    second, _ = player.show("me", ["model"])
    for view, flags in ((first, ()), (second, (("ratio", 0.5), ("mask_seed", 7)))):
        if view is second:  # units of 2 x 2 tokens are an option of the masker, which `mmm reconstruct` takes from the model
            model = save("squares", masker=RandomMasker.Config(unit=2))
            weights = (tmp_path / "model" / "model.safetensors").read_bytes()
            (tmp_path / "squares" / "model.safetensors").write_bytes(weights)
        wanted = columns_of(monkeypatch, tmp_path, model, path, *flags)
        for frames, pixels in zip(shown(view), wanted, strict=True):
            assert np.array_equal(frames, to_rgb(pixels).numpy())
    assert [panel["title"] for panel in first["panels"]] == ["original", "visible", "predicted", "visible + predicted"]
    assert table.count("<tr") == 7
    assert "the mean of the visible pixels" in table


def test_masks_with_replaced_tokens_are_those_of_reconstruct(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A painted mask does not work for UM-MAE on Swin, so the page shows the model's own mask like `mmm reconstruct`."""
    parts = {
        "tokenizer": Patches.Config(size=8),
        "masker": UniformMasker.Config(),
        "encoder": Swin.Config(size="tiny", width=16, heads=1, stages=(1, 1, 1), window=2, patch=4, expand=True),
    }
    path, model = photograph(tmp_path / "photograph.jpg"), save("uniform", (64, 64), **parts)
    player = Player(Models([model]))
    player.open("me", read_sample(path), "uniform")
    view, _ = player.show("me", ["uniform"])
    for frames, pixels in zip(shown(view), columns_of(monkeypatch, tmp_path, model, path), strict=True):
        assert np.array_equal(frames, to_rgb(pixels).numpy())


def test_it_shows_of_a_film_what_reconstruct_draws(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    video, model = write(tmp_path / "video.mp4", count=24), save("clips", (4, 16, 16))
    player = Player(Models([model]))
    board = player.open("me", read_sample(video), "clips")
    assert (board["grid"], board["frames"]) == ([2, 2, 2], 4)
    view, _ = player.show("me", ["clips"])
    for frames, pixels in zip(shown(view), columns_of(monkeypatch, tmp_path, model, video), strict=True):
        assert np.array_equal(frames, np.concatenate([to_rgb(pixels[:, :, t]).numpy() for t in range(4)]))
    assert view["labels"] == [f"frame {t} of 4" for t in (1, 2, 3, 4)]


def test_a_painted_mask_is_what_is_hidden(save: Save) -> None:
    player = Player(Models([save("a"), save("b", tokenizer=Patches.Config(size=8))]))
    board = player.open("me", builtin("chelsea"), "a")
    hidden = torch.zeros(8, 8, dtype=torch.bool)
    hidden[2:5, 1:4] = True
    player.paint("me", "a", "".join("1" if one else "0" for one in hidden.flatten().tolist()))
    model = player.models.load("a")
    x = builtin("chelsea").prepare(model.data)
    mask = Mask((~hidden).flatten().nonzero().T, hidden.flatten().nonzero().T)
    with inference(model):
        wanted = reconstruct_masked(model, x, model.data, mask)
    view, table = player.show("me", ["a", "b"])  # the second model gets the same mask on its grid
    for frames, pixels in zip(shown(view)[:4], wanted.pictures, strict=True):
        assert np.array_equal(frames, to_rgb(pixels).numpy())
    assert [panel["group"] for panel in view["panels"]] == ["a"] * 4 + ["b"] * 4
    assert table.count('scope="col"') == 2
    assert board["picture"] == player.board("me", "a")["picture"]
    for wrong, why in (("1" * 64, "hide 64 of 64"), ("0" * 64, "hide 0 of 64"), ("01", "another picture")):
        with pytest.raises(ValueError, match=why):
            (player.paint("me", "a", wrong), player.show("me", ["a"]))


def test_masks_fit_other_grids() -> None:
    hidden = torch.zeros(1, 4, 4, dtype=torch.bool)
    hidden[:, :2, :2] = True
    assert torch.equal(painted(hidden).fitted((2, 2, 2)).hidden.view(2, 2, 2)[1], hidden[0, ::2, ::2])
    assert painted(hidden).fitted((1, 8, 8)).hidden.sum() == 16
    assert torch.equal(painted(hidden).fitted((1, 8, 8)).fitted((1, 4, 4)).hidden, hidden.flatten())
    scattered = painted(torch.arange(16).view(1, 4, 4) % 3 > 0)  # in each token of the coarse grid, half or more is hidden
    assert scattered.fitted((1, 2, 2)).hidden.sum() == 2


def test_maskers_draw_as_they_do_elsewhere() -> None:
    """A whole clip gets the mask of a run; frame by frame, each frame gets the mask of an image."""
    config = config_of("block", 0.5, {"smallest": "0.1"})
    whole = draw(config, (3, 4, 4), 5)
    assert torch.equal(whole.hidden.view(3, 16)[0], whole.hidden.view(3, 16)[2])
    each = draw(config, (3, 4, 4), 5, frame_by_frame=True).hidden.view(3, 16)
    assert torch.equal(each[0], draw(config, (4, 4), 5).hidden)
    assert not torch.equal(each[0], each[1])
    assert each.sum(1).tolist() == [8, 8, 8]
    with pytest.raises(ValueError, match="masker.smallest"):
        config_of("block", 0.5, {"smallest": "much"})


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("multi_block", {"targets": "65"}, r"masker\.targets 65 is above 64, the number of tokens"),
        ("block_union", {"blocks": "63 2"}, r"masker\.blocks 63 2, in total 65, is above 64"),
        ("block_union", {"blocks": "1 " * 65, "scale": "0.1 " * 65}, r"masker\.blocks 1 1 .*, in total 65, is above 64"),
        ("inverse_block", {"side": "65"}, r"masker\.side 65 is above 64"),
    ],
)
def test_counts_above_the_number_of_tokens_are_refused(name: str, options: dict[str, str], words: str, save: Save) -> None:
    """The memory for 20,000,000 blocks is not asked for; seeds, ratios of sides and defaults may be larger than the grid."""
    player = Player(Models([save("a")]))
    player.open("me", builtin("coffee"), "a")
    with pytest.raises(ValueError, match=words):
        player.draw("me", "a", name, 0.75, 0, options)
    player.draw("me", "a", "multi_block", 0.9, 10**12, {"targets": "64", "aspect": "0.5 200"})
    assert draw(config_of("block_union", None, {}), (3, 3), 0).hidden.any()
    for name in ("block_union", "uniform"):  # their options define the ratio, and the page always has one
        assert config_of(name, 0.6, {}) == maskers[name].Config()


@pytest.mark.parametrize("name", sorted(maskers.parts))
def test_every_masker_has_its_options_on_the_page(name: str) -> None:
    options = options_of(name)
    assert all(option.text for option in options)
    assert {"ratio", "predict", "masks"}.isdisjoint(option.name for option in options)
    texts = {option.name: "none" if option.value is None else option.value for option in options}
    assert config_of(name, None, texts) == maskers[name].Config()


def test_encoders_without_decoder_say_so(save: Save) -> None:
    model = MaskedModel.from_pretrained(save("whole"))
    model.decoder = None
    folder = Path(save("whole")).with_name("encoder")
    model.save_pretrained(folder)
    player = Player(Models([str(folder)]))
    player.open("me", builtin("coffee"), "encoder")
    view, table = player.show("me", ["encoder"])
    assert [panel["title"] for panel in view["panels"]] == ["original"]
    assert "features only" in view["notes"][0]
    assert not table
    assert len(player.look("me", "encoder", 1, None)["panels"]) == 4


# --- inside ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relative", ["none", "blocks"])
def test_looking_inside_agrees_with_the_measures(relative: Any, save: Save) -> None:
    player = Player(Models([save("a", encoder=VisionTransformer.Config(width=24, depth=2, heads=2, relative_bias=relative))]))
    player.open("me", builtin("rocket"), "a")
    view = player.look("me", "a", 2, None, token=19)
    assert view["panels"][0]["title"] == "the token: row 3, column 4"
    found, model = player.visit("me").inside["a"], player.models.load("a")
    x = player.visit("me").prepared["a"]
    with inference(model):
        last, _ = token_attention(model, x, 19)
        tokens = model.encode(x).tokens
    mean = found.attention(2, None, 19)
    assert torch.allclose(mean / mean.sum(), last[0], atol=1e-6)
    assert torch.allclose(torch.stack([found.attention(2, head, 19) for head in (1, 2)]).mean(0), mean, atol=1e-6)
    assert torch.allclose(found.similarity(19), torch.cosine_similarity(tokens[0], tokens[0, 19:20]), atol=1e-5)
    assert torch.equal(found.colours(), feature_colours(tokens, centre_places=False)[0])
    assert player.board("me", "a")["token"] == 19


def test_the_nearest_image_of_a_folder(save: Save, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for seed in range(4):
        photograph(folder / f"{seed}.jpg", seed)
    player = Player(Models([save("a")]), [str(folder)])
    player.open("me", read_sample(folder / "2.jpg"), "a")
    titles = [panel["title"] for panel in player.neighbours("me", "a", "folder", 2)["panels"]]
    assert titles[0] == "1.00 2.jpg"
    assert len(titles) == 2
    with pytest.raises(ValueError, match="--folders"):
        player.neighbours("me", "a", "/etc")


# --- files and visits -----------------------------------------------------------------------------------------------------------


def test_uploads_are_read_by_content_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = photograph(tmp_path / "photograph.jpg")
    assert not read_sample(path.rename(tmp_path / "video.mp4"), "mine").video
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 99)
    (tmp_path / "words.mp4").write_text("no video")
    (tmp_path / "empty.jpg").touch()
    for name in ("broken.png", "words.mp4", "empty.jpg"):
        with pytest.raises(Unreadable):
            read_sample(tmp_path / name)
    monkeypatch.setattr("mmm.play.sample.MAX_BYTES", 1000)
    with pytest.raises(Unreadable, match="MB are accepted"):
        read_sample(tmp_path / "video.mp4")


def test_long_and_large_films_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    video = write(tmp_path / "video.mp4", count=12)
    assert read_sample(video).video
    monkeypatch.setattr("mmm.play.sample.MAX_FRAMES", 11)
    with pytest.raises(Unreadable, match="12 frames"):
        read_sample(video)
    monkeypatch.undo()
    monkeypatch.setattr("mmm.play.sample.MAX_FRAME_PIXELS", 100)
    with pytest.raises(Unreadable, match="pixels"):
        read_sample(video)


def test_visitors_share_nothing_and_leave_nothing(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    player = Player(Models([save("a")]))
    one = player.open("one", builtin("coffee"), "a")
    other = player.open("other", builtin("rocket"), "a")
    player.paint("one", "a", "1" * 10 + "0" * 54)
    assert one["picture"] != other["picture"]
    assert player.board("one", "a")["hidden"] != player.board("other", "a")["hidden"] == other["hidden"]
    player.leave("one")
    with pytest.raises(ValueError, match="no picture"):
        player.show("one", ["a"])
    monkeypatch.setattr(players, "VISITS", 2)
    for session in "xy":
        player.visit(session)
    assert list(player.visits) == ["x", "y"]


def test_every_builtin_sample_serves_every_model(save: Save) -> None:
    player = Player(Models([save("a"), save("clips", (4, 16, 16)), save("grey", (16, 16))]))
    for name in builtin_names()[::3]:
        for model in player.models.names:
            board = player.open("me", builtin(name), model)
            assert len(board["hidden"]) == np.prod(board["grid"])
    with pytest.raises(ValueError, match="there are"):
        builtin("nothing")


# --- models ---------------------------------------------------------------------------------------------------------------------


def test_the_steps_of_a_run(run_recipe: Callable[..., Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_recipe("image_mae", "--folder", str(run), "--train.save_every", "1", "--train.keep_every", "1")
    models = Models([str(run), str(run / "checkpoints" / "step_00000001")])
    assert models.names == ["run, step 2", "run, step 1", "run, step 1 (2)"]
    player = Player(models)
    player.open("me", builtin("coffee"), "run, step 2")
    video = player.steps("me", "run, step 2")
    assert [label.split(":")[0] for label in video["labels"]][::2] == ["step 1", "step 2"]
    last, _ = player.show("me", ["run, step 2"])
    assert np.array_equal(shown(video)[1][-1], shown(last)[2][0])


def test_a_model_without_steps_and_no_model(save: Save) -> None:
    player = Player(Models([save("a")]))
    player.open("me", builtin("coffee"), "a")
    with pytest.raises(ValueError, match="no other checkpoints"):
        player.steps("me", "a")
    with pytest.raises(ValueError, match="no model is named"):
        Models([])
    with pytest.raises(ValueError, match="does not exist"):
        Models(["/nowhere/at/all"]).check()
    assert Drawing((1, 1, 2), torch.tensor([0])).mask(blank=True).blank is not None


def test_the_space(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test in tests/play/test_page.py starts the page of the Space."""
    monkeypatch.setattr("mmm.play.export.metadata.version", lambda _: "6.31.0")
    folder = export_space([save("a")], tmp_path / "space")
    head = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert (head["sdk"], head["app_file"], head["sdk_version"]) == ("gradio", "app.py", "6.31.0")
    names = [node.value for node in ast.parse((folder / "app.py").read_text()).body if isinstance(node, ast.Assign)]
    assert ast.literal_eval(names[1]) == ["models/1-a"]
    assert (folder / "models" / "1-a" / "model.safetensors").is_file()
    assert (folder / "mmm" / "play" / "board.js").is_file()
    assert {one.split(">")[0] for one in requirements()} >= {"gradio", "torch", "av", "simplejpeg"}
    assert (folder / "requirements.txt").read_text().split("\n")[:-1] == requirements()
    with pytest.raises(ValueError, match="is not empty"):
        export_space([save("b")], folder)
