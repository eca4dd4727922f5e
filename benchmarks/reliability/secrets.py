"""R18: tests that none of fifteen secrets (in the environment, the command line, URLs, an exception) is written anywhere."""

from __future__ import annotations

import os
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.reliability.harness import start
from benchmarks.reliability.runs import config_of, make_data
from mmm.objectives.masked import MaskedObjective

COUNT, QUICK = 15, 15
NAMES = (
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY"),
    *("AWS_SESSION_TOKEN", "COMET_API_KEY", "NEPTUNE_API_TOKEN", "MLFLOW_TRACKING_PASSWORD", "DB_PASSWORD"),
)
SHAPES = (
    "hf_PLANTEDplanted0123456789",
    "https://me:PLANTEDpassword@host/data",
    "https://host/data?X-Amz-Signature=PLANTEDsignature",
    "Bearer PLANTEDbearer.0123",
)


def run(work: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Tests a successful training, one that ends by an exception with all secrets, and one whose config contains a secret."""
    make_data(work)
    planted = {name: f"PLANTED{draw.getrandbits(64):016x}" for name in NAMES}
    config = config_of(work, steps=6)
    places = {"ended": False, "raised": True}
    codes = {name: start(config, work / name, 1, partial(_plant, planted, raising)).wait() for name, raising in places.items()}
    flags = ["--init", SHAPES[1]]
    codes["refused"] = start(config, work / "refused", 1, partial(_plant, planted, False), flags).wait()
    found = [_found(path, [*planted.values(), "PLANTED"]) for path in work.rglob("*") if path.is_file()]
    wrong = [line for lines in found for line in lines]
    wrong += [f"exit codes {codes}"] * ((codes["ended"], codes["refused"]) != ([0], [2]) or codes["raised"] == [0])
    return {"planted": len(planted) + len(SHAPES), "files searched": len(found), "wrong": wrong}


def _plant(planted: dict[str, str], raising: bool, rank: int) -> None:
    os.environ.update(planted)
    sys.argv = ["recipe", *planted.values(), *SHAPES]
    if raising:

        def failing(*_: Any) -> Any:
            raise ValueError(f"cannot open {' or '.join((*SHAPES, *planted.values()))}")

        MaskedObjective.loss = failing  # type: ignore[method-assign]


def _found(path: Path, secrets: list[str]) -> list[str]:
    content = path.read_bytes()
    return (
        [f"{path.name} holds a secret: {path.read_text(errors='replace')[:300]}"]
        if any(s.encode() in content for s in secrets)
        else []
    )
