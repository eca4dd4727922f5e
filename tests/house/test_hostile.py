"""Hostile inputs, given to the calls that a user makes: none of their code runs, and no file outside their folder is opened.

The inputs and the monitors are those of `python -m benchmarks.reliability hostile`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

import pytest

from benchmarks.reliability.audit import Audit, CanaryWatch
from benchmarks.reliability.corpus import CASES
from benchmarks.reliability.hostile import MIN_INPUTS, check_input, write_canaries

if not sys.platform.startswith("linux"):
    pytest.skip("the kernel's watch is Linux's", allow_module_level=True)


@pytest.fixture(scope="module")
def canaries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile") / "canaries"
    write_canaries(folder)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(canaries, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(canaries.parent / "cache"))


def test_there_are_many_inputs():
    assert len(CASES) >= MIN_INPUTS


@pytest.mark.parametrize("name", sorted(CASES))
def test_it_is_refused_or_read_as_data(name, tmp_path, canaries):
    outcome, failures = check_input(name, tmp_path / "case", canaries)
    assert not failures, failures
    assert outcome.startswith(("refused", "read"))


# --- the hook detects accesses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "action",
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
def test_the_hook_records_it(action, tmp_path):
    (tmp_path / "root").mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "text.txt").write_text("x")
    with Audit.installed().record(tmp_path / "root") as recorded, suppress(OSError):
        action(outside)
    assert recorded


def test_the_hook_allows_what_a_user_does(tmp_path):
    with Audit.installed().record(tmp_path) as recorded:
        (tmp_path / "x").write_text("x")
        (tmp_path / "x").read_text()
        import colorsys  # noqa: F401
    assert not recorded


def test_the_kernel_reports_what_the_hook_does_not(tmp_path):
    (tmp_path / "text.txt").write_text("x")
    watch = CanaryWatch(tmp_path)
    assert not watch.opened()
    subprocess.run(["cat", str(tmp_path / "text.txt")], check=True, capture_output=True)
    assert watch.opened()
    assert not watch.opened()
    watch.close()
