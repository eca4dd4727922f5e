"""The documentation: every command parses, every link has a target, and the tutorials run from top to bottom."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY, load_recipe
from PIL import Image

from mmm.config.cli import parse
from mmm.targets import targets
from tasks.__main__ import main, summaries

DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
TRAINING = ("pretrain", "finetune")
QUICK = [
    "--train.steps",
    "2",
    "--train.batch_size",
    "4",
    "--train.warmup_steps",
    "0",
    "--train.log_every",
    "1",
    "--data.workers",
    "0",
]


def blocks(page: Path) -> list[tuple[str, str]]:
    """Returns the fenced blocks of a page: the text after each opening fence, and the content."""
    return re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """Yields the words of each `mmm` and recipe command in a block, as `mmm` takes them."""
    for line in text.replace("\\\n", " ").splitlines():
        if not line.startswith(("mmm ", "python ")):
            continue
        words = shlex.split(line, comments=True)
        if words[:1] == ["mmm"]:
            yield words[1:]
        elif words[:1] == ["python"] and words[1].startswith("recipes/"):
            name = words[1].removeprefix("recipes/").removesuffix(".py")
            yield [type(next(iter(load_recipe(name).PRESETS.values()))).__module__.removeprefix("tasks."), name, *words[2:]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_links_and_tasks_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert link.startswith("http") or (page.parent / link).exists(), link
    known = summaries(REPOSITORY / "tasks")
    for kind, text in blocks(page):
        if not kind:
            for words in commands(text):
                assert words[0] in known, words
                if words[0] == "pretrain" and words[1:2] and not words[1].startswith("-") and "--config" not in words:
                    flags = [word for word in words[2:] if word != "..."]
                    if not {"--use", "--resume"} & set(flags):
                        parse(load_recipe(words[1]).PRESETS, flags)


def test_the_reference_lists_what_the_examples_import() -> None:
    """Each imported name exists and is listed on the page of the reference."""
    pages = [*PAGES, REPOSITORY / "README.md"]
    texts = [text for page in pages for kind, text in blocks(page) if kind.startswith("python")]
    found = [node for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    names = {f"{node.module}.{name.name}" for node in found for name in node.names if (node.module or "").split(".")[0] == "mmm"}
    listed = re.findall(r"^::: (\S+)$", (DOCS / "reference.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert names
    assert not sorted(names - set(listed))
    for module, _, name in (name.rpartition(".") for name in listed):
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_every_page_is_in_the_navigation() -> None:
    text = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES:
        assert f": {page.relative_to(DOCS)}" in text, page


def write_files(folder: Path) -> None:
    """Writes the folder `my_images` of the tutorials, with two classes."""
    draw = np.random.default_rng(0)
    for number in range(16):
        path = folder / "my_images" / ("cats", "dogs")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(path)


def write_videos(folder: Path) -> None:
    pytest.importorskip("av")
    from video_files import write

    for name in ("a.mp4", "run/b.mp4", "run/c.mp4", "jump/d.mp4", "jump/e.mp4"):
        path = folder / "my_videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, count=34, size=(48, 64))


def write_weights(folder: Path) -> None:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    decoder = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = ViTMAEConfig(**sizes, **decoder, decoder_intermediate_size=128, image_size=32, patch_size=8)
    ViTMAEForPreTraining(config).save_pretrained(folder / "weights" / "mae")


def quick(words: list[str]) -> list[str]:
    """Returns the command, with flags that shorten it if it trains."""
    return [*words, *QUICK] if words[0] in TRAINING and "--resume" not in words else words


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_tutorial_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path)
    if page.stem == "own_videos":
        write_videos(tmp_path)
    if page.stem == "published_weights":
        write_weights(tmp_path)
    monkeypatch.chdir(tmp_path)
    known = set(targets.parts)
    names: dict[str, Any] = {}
    ran = 0
    try:
        for kind, text in blocks(page):
            if title := re.search(r'title="([^"]+)"', kind):
                Path(title[1]).write_text(text, encoding="utf-8")
            elif kind.startswith("python"):
                exec(compile(text, str(page), "exec"), names)
                ran += 1
            elif not kind:
                for words in commands(text):
                    assert main(quick(words)) == 0, words
                    ran += 1
    finally:
        for name in set(targets.parts) - known:
            targets.parts.pop(name)
    assert ran >= 3
    assert os.getcwd() == str(tmp_path)
