"""Checkpoints are written during training, with the tensors of their own step, one at a time, and without losing errors."""

from __future__ import annotations

import threading

import pytest
from test_loop import assert_same, lines, state, train

from mmm.train.checkpoint import writer as checkpoint


def content(folder, step):
    tensors, saved = checkpoint.read(folder / "checkpoints" / f"step_{step:08d}")
    return {f"{file}/{name}": value for file, values in tensors.items() for name, value in values.items()}, saved["metrics"]


def test_the_training_goes_on_and_what_is_written_is_of_its_step(tmp_path, monkeypatch):
    """The checkpoint of step 9 is delayed until two more updates are made, and still contains the state of step 9."""
    whole = train(tmp_path / "whole")
    go, save, seen = threading.Event(), checkpoint._save_tensors, []

    def held(path, tensors):
        assert "step_00000009" not in str(path) or go.wait(60)
        save(path, tensors)

    def look(training):
        seen.append((tmp_path / "parts" / "checkpoints" / "step_00000009").exists())
        if training.step == 11:
            go.set()

    monkeypatch.setattr(checkpoint, "_save_tensors", held)
    parts = train(tmp_path / "parts", between=look)
    assert seen[:11] == [False] * 11
    assert_same(state(whole), state(parts))
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    for step in (9, 12):
        (a, begun), (b, other) = content(tmp_path / "whole", step), content(tmp_path / "parts", step)
        assert_same(a, b)
        assert begun == other


def test_the_next_waits_for_the_one_before(tmp_path, monkeypatch):
    writing, most, save = [], [], checkpoint._save_tensors

    def watched(path, tensors):
        writing.append(path)
        most.append(len({one.parent for one in writing}))
        save(path, tensors)
        writing.remove(path)

    monkeypatch.setattr(checkpoint, "_save_tensors", watched)
    train(tmp_path)
    assert len(most) == 12  # three files of four checkpoints
    assert max(most) == 1


def test_an_error_that_is_no_disk_s_is_raised_when_the_next_is_due(tmp_path, monkeypatch):
    save = checkpoint._save_tensors

    def broken(path, tensors):
        if "step_00000003" in str(path):
            raise KeyError("a mistake of ours")
        save(path, tensors)

    monkeypatch.setattr(checkpoint, "_save_tensors", broken)
    with pytest.raises(KeyError, match="a mistake of ours"):
        train(tmp_path)


def test_what_is_due_at_the_end_is_there_when_the_run_ends(tmp_path, monkeypatch):
    found = []
    train(tmp_path, between=lambda training: found.append((tmp_path / "checkpoints" / "step_00000012").exists()))
    assert found == [False] * 11 + [True]
