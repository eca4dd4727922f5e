"""R18: tests that none of fifteen secrets (in the environment, the command line, URLs, an exception) is written anywhere."""

from __future__ import annotations

import os
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.reliability.harness import start
from benchmarks.reliability.runs import make_config, make_data
from mmm.objectives.masked import MaskedObjective

COUNT, QUICK = 15, 15
PART = "PLANTED"  # part of every secret
VARIABLES = (
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY"),
    *("AWS_SESSION_TOKEN", "COMET_API_KEY", "NEPTUNE_API_TOKEN", "MLFLOW_TRACKING_PASSWORD", "DB_PASSWORD"),
)
ARGUMENTS = (
    f"hf_{PART}planted0123456789",
    f"https://me:{PART}password@host/data",
    f"https://host/data?X-Amz-Signature={PART}signature",
    f"Bearer {PART}bearer.0123",
)


def run(work: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Tests a successful training, one that ends by an exception with all secrets, and one whose config contains a secret."""
    make_data(work)
    variables = {name: f"{PART}{rng.getrandbits(64):016x}" for name in VARIABLES}
    config = make_config(work, steps=6)
    raises = {"ended": False, "raised": True, "refused": False}
    flags = {"refused": ["--init", ARGUMENTS[1]]}
    codes = {
        name: start(config, work / name, 1, partial(_plant, variables, raising), flags.get(name, ())).wait()
        for name, raising in raises.items()
    }
    files = [path for path in work.rglob("*") if path.is_file()]
    failures = [
        f"{path.name} contains a secret: {path.read_text(errors='replace')[:300]}"
        for path in files
        if PART.encode() in path.read_bytes()
    ]
    failures += [f"exit codes {codes}"] * ((codes["ended"], codes["refused"]) != ([0], [2]) or codes["raised"] == [0])
    return {"planted": len(VARIABLES) + len(ARGUMENTS), "files searched": len(files), "failures": failures}


def _plant(variables: dict[str, str], raising: bool, rank: int) -> None:
    """Puts the secrets into the environment and the command line, and into an exception if the run shall raise one."""
    os.environ.update(variables)
    sys.argv = ["recipe", *variables.values(), *ARGUMENTS]
    if raising:

        def loss(*_: Any) -> Any:
            raise ValueError(f"cannot open {' or '.join((*ARGUMENTS, *variables.values()))}")

        MaskedObjective.loss = loss  # type: ignore[method-assign]
