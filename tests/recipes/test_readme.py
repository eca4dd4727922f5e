"""The README: its Python code runs, its flags parse, and its links lead to files."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, load_recipe

import mmm
from mmm import Input
from mmm.config.cli import parse
from mmm.targets import CodeTarget

README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"^```\w*\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
SHOWN = [line for block in BLOCKS for line in block.splitlines() if "recipes/" in line]
COMMANDS = sorted({line.split("#")[0].split("recipes/")[1].strip().rstrip("\\") for line in SHOWN})


def test_the_python_runs() -> None:
    code, target, *_ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    found: dict[str, Any] = {"mmm": mmm, "steps": 2}
    exec(code, found)
    assert found["features"].shape == (8, 64, 192)
    assert len(code.splitlines()) < 25
    found["model"].target = CodeTarget(
        CodeTarget.Config(codes=4, samples=16), token=(4, 4), data=Input(size=(32, 32)), encoder=None
    )
    before = found["model"].target.vocabulary.centres.clone()
    exec(target, found)
    assert not torch.equal(found["model"].target.vocabulary.centres, before)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_flags_of_its_commands_parse(command: str) -> None:
    file, *flags = shlex.split(command)
    assert (REPOSITORY / "recipes" / file).is_file()
    if not {"--help", "--use", "--config"} & set(flags):
        recipe = load_recipe(file.removesuffix(".py"))
        parse(recipe.PRESETS, flags, doc=recipe.__doc__)


def test_there_are_commands_to_look_at() -> None:
    assert len(COMMANDS) >= 8


def test_its_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (REPOSITORY / link).exists(), link
