"""`train.strict` gives the same bits on 1, 2 and 4 processes, also if 1 or 4 resume a run of 2; by default, runs agree to rounding.

Run as a script, this file starts the runs on several processes.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forked import ends, fork_ranks, watch
from test_loop import CONFIG, Net, Plain, lines, table, train
from torch import Tensor, nn

from mmm.train.deterministic import FixedOrderGradients
from mmm.train.distributed.setup import prepare_strict
from mmm.train.schedule import make_plan

# twelve micro-batches: six on each of two processes, three on each of four
LOOSE = replace(CONFIG, batch_size=12, micro_batch_size=1, steps=6, log_every=1, save_every=4)
STRICT = replace(LOOSE, strict=True)
FILES = ("model", "optimizer", "ema")


def teach(folder: Path, config: Any = STRICT, **choices: Any) -> None:
    torch.set_num_threads(1)
    train(folder, config, net=Plain, **choices)


def poisoned() -> Tensor:
    """Returns the data with one non-finite sample, so that four of six updates are skipped."""
    data = table()
    data[3, 0] = float("inf")
    return data


def content(run: Path) -> dict[str, Any]:
    """Returns the results of a run: checkpoint files as bytes, metrics, and skipped updates."""
    last = run / "checkpoints" / "step_00000006"
    skipped = run / "skipped.jsonl"
    files = {file: (last / f"{file}.safetensors").read_bytes() for file in FILES if (last / f"{file}.safetensors").exists()}
    return {**files, "lines": lines(run), "skipped": skipped.read_text() if skipped.exists() else ""}


# --- several processes ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of runs on one, two and four processes."""
    folder = tmp_path_factory.mktemp("strict")
    code, output = watch([sys.executable, __file__, str(folder), "several"])
    assert code == 0, output
    return folder


@pytest.mark.parametrize("run", ["strict_2", "strict_4", "stopped_1", "stopped_4"])
def test_the_same_bits_on_any_processes(runs: Path, run: str) -> None:
    """Weights, optimizer, average and metrics are equal, also for a run that two processes began and one or four ended."""
    expected = content(runs / "strict_1")
    assert set(FILES) < expected.keys()
    assert [line["step"] for line in expected["lines"]] == [1, 2, 3, 4, 5, 6]
    assert content(runs / run) == expected


def test_without_it_they_agree_to_rounding(runs: Path) -> None:
    """Their bits differ, so the test above can fail. Strict also differs from the default by rounding."""
    one, *others = (lines(runs / name) for name in ("loose_1", "loose_2", "loose_4", "strict_1"))
    for other in others:
        assert other[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-6)
        assert [line["loss"] for line in other] == pytest.approx([line["loss"] for line in one], rel=1e-3)
    assert content(runs / "loose_1") != content(runs / "loose_4")


def test_a_loss_that_is_not_finite_is_left_out_by_all(runs: Path) -> None:
    one, two = content(runs / "poisoned_1"), content(runs / "poisoned_2")
    assert [json.loads(line)["samples"] for line in one["skipped"].splitlines()] == [[3]] * 4
    assert one == two


@pytest.mark.slow
def test_in_bf16(tmp_path: Path) -> None:
    code, output = watch([sys.executable, __file__, str(tmp_path), "bf16"])
    assert code == 0, output
    assert content(tmp_path / "bf16_1") == content(tmp_path / "bf16_2") == content(tmp_path / "bf16_4")


def several(folder: Path) -> None:
    def start(name: str, count: int, config: Any = STRICT, **choices: Any) -> list[int]:
        run = folder / f"{name}_{count}"
        return fork_ranks(count, partial(teach, run, config, **choices), folder / "log")

    pids = fork_ranks(2, partial(teach, folder / "begun", until=4), folder / "log")
    for count in (1, 2, 4):
        pids += start("strict", count) + start("loose", count, LOOSE)
        pids += start("poisoned", count, data=poisoned()) if count < 4 else []
    well(pids, folder)
    for count in (1, 4):
        shutil.copytree(folder / "begun", folder / f"stopped_{count}")
    well([pid for count in (1, 4) for pid in start("stopped", count, resume=True)], folder)


def in_bf16(folder: Path) -> None:
    config = replace(STRICT, precision="bf16")
    pids = [fork_ranks(n, partial(teach, folder / f"bf16_{n}", config), folder / "log") for n in (1, 2, 4)]
    well([pid for started in pids for pid in started], folder)


def well(pids: list[int], folder: Path) -> None:
    codes = ends(pids, 120)
    assert [codes.get(pid) for pid in pids] == [0] * len(pids), (folder / "log").read_text()


# --- what cannot be promised ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "processes", "said"),
    [
        ({"micro_batch_size": None}, 1, "train.micro_batch_size None follows from the machine; give a number"),
        ({}, 3, "3 is not a power of two; start 2, 4 or 8"),
        ({"compile": True}, 1, "train.compile .* leave it out with train.strict"),
        ({"threads": None}, 1, "train.threads none .* train.strict needs a number"),
    ],
)
def test_what_rounds_differently_elsewhere_is_refused(change: dict[str, Any], processes: int, said: str) -> None:
    found = SimpleNamespace(num_processes=processes, device=torch.device("cpu"))
    with pytest.raises(ValueError, match=said):
        prepare_strict(replace(STRICT, **change), found)  # type: ignore[arg-type]


def test_running_values_in_the_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"running values \(calls\)"):
        train(tmp_path, STRICT, net=Net)


def test_a_task_with_micro_batches_of_its_own_is_refused() -> None:
    plan = replace(make_plan(STRICT, samples=20, processes=1), micro_batch_size=12, accumulation=1)
    with pytest.raises(ValueError, match="computes 12 samples together"):
        FixedOrderGradients(SimpleNamespace(unwrapped=nn.Linear(2, 2)), plan, STRICT)  # type: ignore[arg-type]


if __name__ == "__main__":
    {"several": several, "bf16": in_bf16}[sys.argv[2]](Path(sys.argv[1]))
