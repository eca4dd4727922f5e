"""The Dockerfile: it is built where a Docker daemon answers; on every machine, the files that it copies exist and are sent."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from conftest import REPOSITORY

TEXT = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
KNOWN = {"FROM", "RUN", "WORKDIR", "COPY", "ENTRYPOINT", "CMD", "ENV"}


def instructions() -> list[list[str]]:
    lines = [line for line in TEXT.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    return [line.split() for line in lines]


def test_it_is_well_formed_and_copies_what_the_package_needs() -> None:
    found = instructions()
    assert found[0][0] == "FROM"
    assert {words[0] for words in found} <= KNOWN
    copied = {name for words in found if words[0] == "COPY" for name in words[1:-1]}
    assert {"pyproject.toml", "setup.py", "mmm", "tasks", "recipes"} <= copied
    sent = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for name in copied:
        assert (REPOSITORY / name).exists(), name
        assert f"!{name}" in sent, name


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_is_built_and_answers() -> None:
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no Docker daemon answers")
    subprocess.run(["docker", "build", "-t", "mmm-test", str(REPOSITORY)], check=True)
    shown = subprocess.run(["docker", "run", "--rm", "mmm-test", "--version"], check=True, capture_output=True, text=True)
    assert shown.stdout.strip()
