"""Hostile inputs, given to the calls that a user makes: none of their code runs, and no file outside their folder is opened.

The inputs and the monitors are those of `python -m benchmarks.reliability hostile`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

import pytest

from benchmarks.reliability.corpus import CASES
from benchmarks.reliability.hostile import FEWEST, check_file, make_bait
from benchmarks.reliability.watch import Audit, Bait

if not sys.platform.startswith("linux"):
    pytest.skip("the kernel's watch is Linux's", allow_module_level=True)


@pytest.fixture(scope="module")
def bait(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile") / "bait"
    make_bait(folder)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(bait, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(bait.parent / "cache"))


def test_there_are_many():
    assert len(CASES) >= FEWEST


@pytest.mark.parametrize("name", sorted(CASES))
def test_it_is_refused_or_read_as_data(name, tmp_path, bait):
    said, wrong = check_file(name, tmp_path / "case", bait)
    assert not wrong, wrong
    assert said.startswith(("refused", "read"))


# --- the hook detects accesses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "act",
    [
        lambda outside: (outside / "text.txt").read_text(),
        lambda outside: os.open(outside / "text.txt", os.O_RDONLY),
        lambda outside: (outside / "new.txt").write_text("x"),
        lambda outside: os.system("true"),
        lambda outside: subprocess.run(["true"]),
        lambda outside: __import__("socket").create_connection(("127.0.0.1", 9), 1),
        lambda outside: __import__("pickle").loads(b"cposix\nsystem\n(Vtrue\ntR."),
        lambda outside: os.remove(outside / "text.txt"),
    ],
)
def test_the_hook_sees_it(act, tmp_path):
    (tmp_path / "root").mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "text.txt").write_text("x")
    with Audit.installed().over(tmp_path / "root") as seen, suppress(OSError):
        act(outside)
    assert seen


def test_the_hook_lets_a_user_work(tmp_path):
    with Audit.installed().over(tmp_path) as seen:
        (tmp_path / "x").write_text("x")
        (tmp_path / "x").read_text()
        import colorsys  # noqa: F401
    assert not seen


def test_the_kernel_sees_what_the_hook_does_not(tmp_path):
    (tmp_path / "text.txt").write_text("x")
    watched = Bait(tmp_path)
    assert not watched.touched()
    subprocess.run(["cat", str(tmp_path / "text.txt")], check=True, capture_output=True)
    assert watched.touched()
    assert not watched.touched()
    watched.close()
