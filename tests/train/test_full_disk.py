"""If the disk is full, checkpoints or metrics are not written, and the run continues."""

from __future__ import annotations

import os

import pytest
from test_loop import assert_same, lines, state, train

from mmm.system.files import Journal
from mmm.train.checkpoint import writer as checkpoint


def full(path):
    raise OSError(28, os.strerror(28), str(path))


def names(folder):
    return [path.name for path in sorted((folder / "checkpoints").iterdir())]


@pytest.mark.parametrize("call", ["begin", "_save_tensors", "_write_json", "_flush"])
def test_the_run_goes_on_and_saves_when_there_is_room_again(tmp_path, monkeypatch, caplog, call):
    whole = train(tmp_path / "whole")
    write, seen = getattr(checkpoint, call), []

    def at_times(path, *values):
        if any(f"step_{step:08d}" in str(path) or values == (step,) for step in (6, 9)):
            full(path)
        return write(path, *values)

    monkeypatch.setattr(checkpoint, call, at_times)

    def look(training):
        training.wait_for_checkpoint()
        seen.append(names(tmp_path / "parts") if training.step > 2 else [])

    parts = train(tmp_path / "parts", between=look)
    assert_same(state(whole), state(parts))
    assert seen[2:11] == [["step_00000003"]] * 9
    assert names(tmp_path / "parts") == ["step_00000003", "step_00000012"]
    assert "checkpoint of step 9 was not written; the run continues until the next one: [Errno 28] No space left" in caplog.text
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_the_last_one_is_needed(tmp_path, monkeypatch):
    """If the last checkpoint cannot be written, the run ends with an error."""
    save = checkpoint._save_tensors
    monkeypatch.setattr(checkpoint, "_save_tensors", lambda path, all: full(path) if "00012" in str(path) else save(path, all))
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path)
    monkeypatch.undo()
    assert_same(state(train(tmp_path / "whole")), state(train(tmp_path, resume=True)))


def test_lines_wait_until_there_is_room(tmp_path, caplog):
    folder = os.open("/dev/full", os.O_RDONLY)  # every write to this file fails; not all systems have it
    os.close(folder)
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append({"step": 1})
    path, journal.path = journal.path, tmp_path / "full"
    journal.path.symlink_to("/dev/full")
    journal.append({"step": 2})
    journal.append({"step": 3})
    assert "No space left" in caplog.text
    journal.path = path
    journal.append({"step": 4})
    assert path.read_text().splitlines() == [f'{{"step": {step}}}' for step in (1, 2, 3, 4)]
