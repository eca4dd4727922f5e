"""The page in a real browser: a visitor's actions, and pixels equal to those of `mmm reconstruct`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from conftest import load_recipe, reset_accelerate
from PIL import Image
from video_files import write

from mmm import Input, MaskedModel, ModelConfig
from mmm.config.cli import main
from mmm.decoders import SelfAttentionDecoder
from mmm.encoders import VisionTransformer
from mmm.evaluate.plots.image_grid import to_rgb
from mmm.maskers import RandomMasker, TubeMasker
from mmm.play.pictures import from_png
from mmm.play.sample import builtin
from mmm.targets import PixelTarget
from mmm.tokenizers import Patches, Tubes
from tasks import reconstruct

pytestmark = pytest.mark.slow
gradio = pytest.importorskip("gradio", reason="the page needs gradio: pip install 'masked-modelling[play]'")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright: pip install playwright")
CHROMIUM = os.environ.get("CHROMIUM", shutil.which("chromium") or shutil.which("google-chrome") or "")
if not CHROMIUM:
    pytest.skip("no browser here: install chromium, or name it in CHROMIUM", allow_module_level=True)
OFF = ("background-networking", "component-update", "sync", "quic", "gpu")
FLAGS = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in OFF)]
WAIT = 30_000  # milliseconds for the answer of a busy machine


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a folder with two image models, one clip model, a run of three steps, a photograph and a video."""
    folder = tmp_path_factory.mktemp("page")
    for name, size, patch in (("small", (32, 32), 4), ("coarse", (32, 32), 8), ("clips", (4, 32, 32), 8)):
        parts = ModelConfig(
            tokenizer=Tubes.Config(size=patch, frames=2) if len(size) == 3 else Patches.Config(size=patch),
            masker=TubeMasker.Config(ratio=0.5) if len(size) == 3 else RandomMasker.Config(),
            encoder=VisionTransformer.Config(width=24, depth=3, heads=2),
            decoder=SelfAttentionDecoder.Config(width=16, depth=1, heads=2),
            target=PixelTarget.Config(standardise="none"),
        )
        MaskedModel.build(parts, Input(size=size, stride=2 if len(size) == 3 else None), seed=1).save_pretrained(folder / name)
    recipe = load_recipe("image_mae")
    saving = ["--train.steps", "3", "--train.save_every", "1", "--train.keep_every", "1", "--train.batch_size", "8"]
    flags = ["--preset", "demo", *saving, "--evaluate", "masked_loss", "--folder", str(folder / "run")]
    main(recipe.pretrain.run, presets=recipe.PRESETS, doc="", argv=flags)
    reset_accelerate()
    (folder / "images").mkdir()
    tiles = np.random.default_rng(0).integers(0, 255, (10, 10, 3), dtype=np.uint8)
    photograph = Image.fromarray(tiles).resize((150, 170), Image.Resampling.BICUBIC)
    photograph.save(folder / "images" / "photograph.jpg", quality=92)
    Image.fromarray(builtin("coffee").source[0]).save(folder / "images" / "coffee.png")
    write(folder / "video.mp4", count=24)
    return folder


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[tuple[str, Any, Path]]:
    """Yields the address of the page, its player, and the folder of its uploads."""
    os.environ["GRADIO_TEMP_DIR"] = str(place / "uploads")
    from mmm.play.models import Models
    from mmm.play.page import serve
    from mmm.play.player import Player

    player = Player(Models([str(place / name) for name in ("small", "coarse", "clips", "run")]), [str(place / "images")])
    page, address = serve(player, block=False)
    yield address, player, place / "uploads"
    page.close(verbose=False)
    del os.environ["GRADIO_TEMP_DIR"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as player:
        opened = player.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, served: tuple[str, Any, Path]) -> Iterator[Any]:
    """Yields the page in the state that a new visitor gets."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, reduced_motion="reduce")
    yield enter(context, served[0])
    context.close()


def enter(context: Any, address: str) -> Any:
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(address)
    page.get_by_text("Reconstructed in").wait_for()
    return page


def settled(page: Any, act: Any) -> str:
    """Performs an action, waits for the answer, and returns the status."""
    turn = page.get_attribute("#status p", "data-turn")
    act()
    page.wait_for_function(
        "turn => document.querySelector('#status p').dataset.turn !== turn",
        arg=turn,
    )
    page.wait_for_timeout(150)  # images follow in the same answer
    assert not page.problems
    return page.inner_text("#status")


def picture(page: Any, alt: str, where: str = "#view") -> np.ndarray:
    return from_png(page.get_attribute(f"{where} img[alt='{alt}']", "src"))


def choose(page: Any, label: str, option: str) -> None:
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


def reconstructed(monkeypatch: pytest.MonkeyPatch, place: Path, model: str, source: Path, **more: Any) -> list[torch.Tensor]:
    """Returns the images that `mmm reconstruct` draws for one file."""
    drawn: list[Any] = []
    monkeypatch.setattr("mmm.evaluate.reconstruction.gallery.draw_gallery", lambda shown, *_: drawn.append(shown))
    config: Any = {"model": str(place / model), "source": str(source), "out": str(place / "out.png"), "workers": 0, "device": "cpu"}
    reconstruct.run(reconstruct.Config(**config | more))
    return list(drawn[0].pictures)


def board(page: Any) -> dict[str, float]:
    return page.locator("#board canvas").bounding_box()


def drag(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drags over the board; positions are fractions of its width and height."""
    page.locator("#board canvas").scroll_into_view_if_needed()
    box = board(page)
    (x, y), (to_x, to_y) = ((box["x"] + at[0] * box["width"], box["y"] + at[1] * box["height"]) for at in (start, end))
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(to_x, to_y, steps=4)
    page.mouse.up()


def hidden(page: Any, player: Any) -> torch.Tensor:
    """Returns the mask of the only visitor."""
    (visit,) = player.visits.values()
    return visit.drawing.hidden.view(visit.drawing.grid)


def left_over(uploads: Path) -> list[Path]:
    """Returns the remaining files of visitors, without the empty unnamed file that gradio writes beside each upload."""
    return [path for path in uploads.rglob("*") if path.is_file() and path.stat().st_size]


@pytest.fixture(autouse=True)
def _visitors_leave(served: tuple[str, Any, Path]) -> Iterator[None]:
    yield
    for _ in range(100):
        if not served[1].visits:
            return
        time.sleep(0.1)
    raise AssertionError(f"visits that did not end: {list(served[1].visits)}")


# --- a visitor ------------------------------------------------------------------------------------------------------------------


def test_upload_and_draw_show_what_reconstruct_draws(page: Any, served: Any, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photograph = place / "images" / "photograph.jpg"
    said = settled(page, lambda: page.set_input_files("#root input[type=file], input[type=file]", str(photograph)))
    assert "Reconstructed" in said
    for seed in (0, 5):
        if seed:
            page.get_by_text("Draw the mask by a masker").click()
            page.get_by_label("Seed").fill("5")
            page.get_by_label("Seed").press("Tab")
            settled(page, lambda: page.click("#draw"))
        expected = reconstructed(monkeypatch, place, "small", photograph, mask_seed=seed)
        for alt, pixels in zip(("original", "visible", "predicted", "visible + predicted"), expected, strict=True):
            assert np.array_equal(picture(page, alt), to_rgb(pixels)[0].numpy())
    assert page.locator("#figures tr").count() == 5
    assert not left_over(served[2])


def test_options_of_a_masker(page: Any, served: Any) -> None:
    page.get_by_text("Draw the mask by a masker").click()
    page.get_by_label("unit: ").fill("4")
    settled(page, lambda: page.click("#draw"))
    squares = hidden(page, served[1]).view(2, 4, 2, 4).transpose(1, 2).flatten(2)
    assert torch.equal(squares.any(-1), squares.all(-1))
    choose(page, "Masker", "block")
    page.get_by_label("smallest: ").fill("nonsense")
    assert "masker.smallest" in settled(page, lambda: page.click("#draw"))


def test_painting(page: Any, served: Any) -> None:
    settled(page, lambda: page.get_by_role("button", name="Show all").click())
    assert "hide 0 of 64 tokens" in page.inner_text("#status")
    settled(page, lambda: drag(page, (0.06, 0.06), (0.94, 0.06)))
    assert hidden(page, served[1])[0].nonzero().tolist() == [[0, column] for column in range(8)]
    page.get_by_role("radio", name="Block").click()
    settled(page, lambda: drag(page, (0.3, 0.3), (0.6, 0.7)))
    assert hidden(page, served[1])[0, 2:6, 2:5].all()
    page.get_by_role("radio", name="Show", exact=True).click()
    settled(page, lambda: drag(page, (0.06, 0.06), (0.4, 0.06)))
    assert hidden(page, served[1])[0, 0].tolist() == [False] * 4 + [True] * 4
    settled(page, lambda: page.get_by_role("button", name="Undo").click())
    assert hidden(page, served[1])[0, 0].all()
    seen = (~hidden(page, served[1])).double().mean().item()
    nothing = (picture(page, "visible") == (205, 212, 226)).all(-1).mean()
    assert nothing == pytest.approx(1 - seen, abs=0.02)


def test_the_keyboard_paints_too(page: Any, served: Any) -> None:
    settled(page, lambda: page.get_by_role("button", name="Show all").click())
    plane = page.get_by_role("application")
    plane.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        plane.press(key)
    assert page.inner_text("#board .mmm-said") == "row 2 of 8, column 3 of 8, visible"
    settled(page, lambda: plane.press("Enter"))
    assert hidden(page, served[1]).nonzero().tolist() == [[0, 1, 2]]
    plane.press("l")
    settled(page, lambda: plane.press(" "))
    assert page.locator("#inside figcaption").first.inner_text() == "the token: row 2, column 3"


def test_two_models_and_the_steps_of_a_run(page: Any, place: Path) -> None:
    settled(page, lambda: choose(page, "Beside it", "coarse"))
    assert page.locator("#view h4").all_inner_texts() == ["small", "coarse"]
    assert page.locator("#figures th[scope=col]").all_inner_texts() == ["small", "coarse"]
    both = [picture(page, f"predicted, {name}") for name in ("small", "coarse")]
    assert not np.array_equal(*both)
    settled(page, lambda: choose(page, "Model", "run, step 3"))
    settled(page, lambda: page.get_by_role("button", name="Animation of the steps").click())
    slider = page.locator("#animation input[type=range]")
    assert slider.get_attribute("max") == "2"
    slider.fill("2")
    assert page.inner_text("#animation .mmm-label").startswith("step 3: ")
    shown = picture(page, "predicted", "#animation").reshape(3, 32, 32, 3)
    assert np.array_equal(shown[2], picture(page, "predicted, run, step 3"))


def test_a_token_is_clicked(page: Any) -> None:
    page.get_by_role("radio", name="Look").click()
    settled(page, lambda: drag(page, (0.3, 0.55), (0.3, 0.55)))
    titles = page.locator("#inside figcaption").all_inner_texts()
    assert titles[0] == "the token: row 5, column 3"
    assert titles[1:] == ["where it looks: block 3, mean of all heads", "tokens with the nearest features", "PCA of the features"]
    before = page.get_attribute("#inside img >> nth=1", "src")
    settled(page, lambda: choose(page, "Head", "head 2"))
    assert page.locator("#inside figcaption").all_inner_texts()[1] == "where it looks: block 3, head 2"
    assert page.get_attribute("#inside img >> nth=1", "src") != before
    settled(page, lambda: page.get_by_role("button", name="Show the nearest").click())
    assert page.locator("#near img").count() == 2


def test_a_film(page: Any, served: Any, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled(page, lambda: choose(page, "Model", "clips"))
    settled(page, lambda: page.set_input_files("input[type=file]", str(place / "video.mp4")))
    page.get_by_text("Draw the mask by a masker").click()
    choose(page, "Masker", "tube")
    settled(page, lambda: page.click("#draw"))
    expected = reconstructed(monkeypatch, place, "clips", place / "video.mp4", ratio=0.75)
    shown = picture(page, "visible + predicted").reshape(4, 32, 32, 3)
    assert np.array_equal(shown, np.stack([to_rgb(expected[3][:, :, t])[0].numpy() for t in range(4)]))
    page.locator("#view input[type=range]").fill("3")
    assert page.inner_text("#view .mmm-label") == "frame 4 of 4"
    settled(page, lambda: page.get_by_role("button", name="Show all").click())
    page.get_by_label("through time").check()
    settled(page, lambda: drag(page, (0.1, 0.1), (0.1, 0.1)))
    assert hidden(page, served[1]).nonzero().tolist() == [[0, 0, 0], [1, 0, 0]]
    page.get_by_label("through time").uncheck()
    page.locator("#board input.mmm-frame").fill("3")
    settled(page, lambda: drag(page, (0.9, 0.9), (0.9, 0.9)))
    assert hidden(page, served[1]).nonzero().tolist() == [[0, 0, 0], [1, 0, 0], [1, 3, 3]]


def test_broken_and_huge_files_are_said(page: Any, served: Any, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = picture(page, "original")
    (place / "broken.jpg").write_bytes((place / "images" / "photograph.jpg").read_bytes()[:700])
    assert "cannot be read" in settled(page, lambda: page.set_input_files("input[type=file]", str(place / "broken.jpg")))
    with (place / "huge.mp4").open("wb") as file:
        file.truncate(65 * 2**20)
    page.set_input_files("input[type=file]", str(place / "huge.mp4"))
    page.get_by_text("exceed the maximum allowed size").first.wait_for()
    assert np.array_equal(picture(page, "original"), before)
    assert not left_over(served[2])
    settled(page, lambda: choose(page, "Or a built-in one", "rocket"))  # the page still works
    assert not np.array_equal(picture(page, "original"), before)


def test_two_visitors_at_once(browser: Any, served: Any) -> None:
    contexts = [browser.new_context(reduced_motion="reduce") for _ in "ab"]
    one, other = (enter(context, served[0]) for context in contexts)
    settled(one, lambda: choose(one, "Or a built-in one", "coffee"))
    settled(other, lambda: choose(other, "Or a built-in one", "rocket"))
    settled(one, lambda: one.get_by_role("button", name="Invert").click())
    assert len(served[1].visits) == 2
    pixels = [picture(page, "original") for page in (one, other)]
    assert not np.array_equal(*pixels)
    settled(other, lambda: other.get_by_role("button", name="Invert").click())
    assert np.array_equal(picture(one, "original"), pixels[0])
    for context in contexts:
        context.close()


def test_labels_themes_and_a_narrow_window(browser: Any, served: Any) -> None:
    backgrounds = []
    for scheme in ("light", "dark"):
        context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme=scheme)
        page = enter(context, served[0])
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        backgrounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        nameless = """() => [...document.querySelectorAll('button, input, select, textarea, img')].filter(node =>
            node.offsetParent && !(node.getAttribute('aria-label') || node.title || node.alt || node.innerText ||
            node.labels?.length || node.getAttribute('aria-labelledby'))).map(node => node.outerHTML.slice(0, 120))"""
        assert page.evaluate(nameless) == []
        context.close()
    assert backgrounds[0] != backgrounds[1]


# --- the server -----------------------------------------------------------------------------------------------------------------


def test_it_listens_on_this_machine_only(served: Any) -> None:
    port = int(served[0].rstrip("/").rpartition(":")[2])
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:] if sys.platform.startswith("linux") else []
    listening = {line.split()[1] for line in lines if line.split()[3] == "0A"}
    assert {address for address in listening if address.endswith(f":{port:04X}")} <= {f"0100007F:{port:04X}"}


def test_the_space_starts(place: Path, tmp_path: Path) -> None:
    """The Space uses only the files in its folder and the libraries in requirements.txt."""
    from mmm.play.export import export_space

    folder = export_space([str(place / "small")], tmp_path / "space")
    text = (folder / "app.py").read_text().replace("port=7860", "port=7963").replace("0.0.0.0", "127.0.0.1")
    (folder / "app.py").write_text(text)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    started = subprocess.Popen([sys.executable, "app.py"], cwd=folder, env=environment, stderr=subprocess.PIPE)
    try:
        for _ in range(120):
            time.sleep(0.5)
            assert started.poll() is None, started.stderr.read().decode() if started.stderr else ""
            try:
                with urlopen("http://127.0.0.1:7963/") as answer:
                    assert answer.status == 200
                    return
            except OSError:
                continue
        raise AssertionError("the Space did not answer")
    finally:
        started.kill()
        started.wait()
