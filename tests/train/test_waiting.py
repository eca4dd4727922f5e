"""The time that a training waits for data is measured, written with the metrics, and reported at the end with advice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from time import sleep

import pytest
import torch
from test_loop import table, train

from mmm.train.metrics import ADVICE, DataWait

PAUSE = 0.02  # seconds


class Slow:
    """A table that pauses before it returns rows."""

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        sleep(PAUSE)
        return table()[rows]


def test_a_run_says_how_long_it_waited(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        train(tmp_path, data=Slow(), between=lambda _: sleep(3 * PAUSE))  # this time does not count
    written = [json.loads(line)["clock"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < clock["data_wait"] < 1 for clock in written)
    seconds = sum(
        clock["data_wait"] * 8 * steps / clock["samples_per_second"]
        for clock, steps in zip(written, (3, 2, 1, 3, 1, 2), strict=True)
    )
    assert seconds >= 12 * PAUSE
    (last,) = [record.getMessage() for record in caplog.records if "waited for data" in record.getMessage()]
    assert last.endswith(ADVICE)
    assert "of the time waiting for data" in caplog.text


def test_a_terminal_without_columns_gets_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tqdm shows nothing on a terminal without columns, for example a pseudo-terminal whose size is not set."""
    _, terminal = os.openpty()
    with open(terminal, "w") as stream, caplog.at_level("INFO"):
        monkeypatch.setattr("sys.stderr", stream)
        train(tmp_path)
        monkeypatch.undo()
    assert "step 12/12" in caplog.text


def test_no_minute_passes_without_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmm.train.progress.SILENCE", 0.0)
    with caplog.at_level("INFO"):
        train(tmp_path)
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("step ")]
    assert len(said) == 12
    assert said[0].startswith("step 1/12, ")


def test_advice_comes_only_where_it_helps() -> None:
    little, much = DataWait(), DataWait()
    little.add({"samples_per_second": 10.0, "data_wait": 0.04}, 100)
    much.add({"samples_per_second": 10.0, "data_wait": 0.04}, 100)
    much.add({"samples_per_second": 5.0, "data_wait": 0.4}, 100)
    assert str(little) == "the training waited for data 4.0% of its time"
    assert str(much) == f"the training waited for data 28.0% of its time. {ADVICE}"
