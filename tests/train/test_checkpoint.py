"""A checkpoint is complete or absent, and damage to its files is detected."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

from mmm.train.checkpoint import writer as checkpoint
from mmm.train.config import TrainConfig

TENSORS = {"model": {"weight": torch.arange(64.0)}, "optimizer": {"weight/exp_avg": torch.ones(64)}}


def write(folder, step, keep=None, fill=0.0):
    return checkpoint.write(folder, step, {**TENSORS, "ema": {"weight": torch.full((4,), fill)}}, {"scale": 0.1 + 0.2}, keep)


def test_round_trip(tmp_path):
    path = write(tmp_path, 1000)
    assert path.name == "step_00001000"
    assert sorted(file.name for file in path.iterdir()) == [
        "ema.safetensors", "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json",
    ]  # fmt: skip
    tensors, state = checkpoint.read(path)
    assert torch.equal(tensors["model"]["weight"], torch.arange(64.0))
    assert state == {"step": 1000, "scale": 0.1 + 0.2}


def test_only_the_last_are_kept(tmp_path):
    for step in (5, 10, 15):
        write(tmp_path, step, keep=2)
    assert [path.name for path in checkpoint.found(tmp_path)] == ["step_00000010", "step_00000015"]
    assert len(list(tmp_path.iterdir())) == 2


def test_those_of_every_so_many_updates_stay_for_good(tmp_path):
    for step in range(2, 14, 2):
        checkpoint.write(tmp_path, step, TENSORS, {}, 1, 6)
    checkpoint.write(tmp_path, 13, TENSORS, {}, 1, 6)  # a checkpoint that a signal caused
    assert [checkpoint.step_of(path) for path in checkpoint.found(tmp_path)] == [6, 12, 13]
    with pytest.raises(ValueError, match=r"train\.keep_every 250 is not a multiple of train\.save_every 100; use 200, or none"):
        TrainConfig(batch_size=1, learning_rate=1.0, save_every=100, keep_every=250)


def test_a_file_that_the_manifest_does_not_list_is_not_read(tmp_path):
    path = checkpoint.write(tmp_path, 1, TENSORS, {}, None)
    shutil.copy(path / "model.safetensors", path / "ema.safetensors")
    assert checkpoint.read(path)[0].keys() == {"model", "optimizer"}


def test_a_step_that_is_there_and_whole_stays(tmp_path):
    path = write(tmp_path, 5)
    before = (path / "manifest.json").stat().st_mtime_ns
    assert write(tmp_path, 5) == path
    assert (path / "manifest.json").stat().st_mtime_ns == before


def flip(file):
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)


def truncate(file):
    os.truncate(file, file.stat().st_size - 1)


def empty(file):
    file.write_bytes(b"")


def zero_the_tail(file):
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[: size // 2].ljust(size, b"\0"))


def remove(file):
    file.unlink()


def swap(file):
    file.write_bytes((file.parent.parent / "step_00000001" / file.name).read_bytes())


def test_all_is_on_the_disk_before_the_name_is_and_the_name_before_anything_is_pruned(tmp_path, monkeypatch):
    write(tmp_path, 1)
    done = []
    fsync, rename, rmtree = os.fsync, Path.rename, shutil.rmtree
    monkeypatch.setattr(os, "fsync", lambda at: (done.append(("sync", Path(f"/proc/self/fd/{at}").readlink().name)), fsync(at)))
    monkeypatch.setattr(Path, "rename", lambda a, b: (done.append(("rename", b.name)), rename(a, b))[1])
    monkeypatch.setattr(shutil, "rmtree", lambda path, **options: (done.append(("delete", path.name)), rmtree(path, **options)))
    write(tmp_path, 2, keep=1)
    at = done.index(("rename", "step_00000002"))
    names = {"model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json", "manifest.json", "step_00000002.tmp"}
    assert {("sync", name) for name in names} <= set(done[:at])
    assert done[at + 1 :] == [("sync", tmp_path.name), ("rename", "step_00000001.tmp"), ("delete", "step_00000001.tmp")]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", [flip, truncate, empty, zero_the_tail, remove, swap])
def test_damage_is_found_named_and_passed_over(tmp_path, caplog, harm, name):
    # model and optimizer are equal in both steps, so a swap of their files changes nothing and is not reported as damage
    harmless = harm is swap and name in ("model.safetensors", "optimizer.safetensors")
    first = write(tmp_path, 1, fill=1.0)
    last = write(tmp_path, 2, fill=2.0)
    harm(last / name)
    if name == "manifest.json" and harm in (flip, truncate):
        harmless = checkpoint.damage(last) is None  # the change may be in the white space at the end
    assert checkpoint.newest(tmp_path) == (last if harmless else first)
    if not harmless:
        assert "step_00000002" in caplog.text
        assert name in caplog.text


def test_a_bit_of_a_manifest_counts(tmp_path):
    """A flipped bit is detected, or does not change the values that are read."""
    path = write(tmp_path, 1)
    manifest = path / "manifest.json"
    whole = manifest.read_bytes()
    for position in range(0, len(whole), 3):
        content = bytearray(whole)
        content[position] ^= 1 << position % 8
        manifest.write_bytes(content)
        if checkpoint.damage(path) is None:
            assert json.loads(bytes(content)) == json.loads(whole)


def test_if_all_are_damaged_nothing_starts_from_scratch(tmp_path):
    remove(write(tmp_path, 1) / "state.json")
    truncate(write(tmp_path, 2) / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"every checkpoint.*step_00000002 \(model.safetensors has .*step_00000001 \(state.json is missing"
    ):
        checkpoint.newest(tmp_path)


def test_none_was_ever_written(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "absent") is None


def test_a_damaged_one_is_written_again(tmp_path):
    write(tmp_path, 1)
    flip(write(tmp_path, 2) / "model.safetensors")
    assert checkpoint.damage(write(tmp_path, 2)) is None


def test_a_kill_at_any_line_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    """A child process exits at each line of writer.py in turn, without running `finally` blocks; then the parent saves again."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # needed for a loss of power, not for a kill; takes most of the time
    write(tmp_path / "start", 1)
    crashes = 0
    while True:
        folder = tmp_path / str(crashes)
        shutil.copytree(tmp_path / "start", folder)
        child = os.fork()
        if child == 0:
            _write_until(crashes, folder)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        newest = checkpoint.newest(folder)
        assert newest is not None
        assert newest.name in ("step_00000001", "step_00000002")
        write(folder, 3, keep=1)
        assert [path.name for path in checkpoint.found(folder)] == ["step_00000003"]
        if code == 0:
            break
        crashes += 1
    assert crashes > 30


def _write_until(lines, folder):
    """Writes a checkpoint in the child process, which exits with 9 after `lines` lines of writer.py, or with 0 at the end."""
    left = lines

    def trace(frame, event, argument):
        nonlocal left
        if frame.f_code.co_filename != checkpoint.__file__:
            return None
        if event == "line":
            if left == 0:
                os._exit(9)
            left -= 1
        return trace

    sys.settrace(trace)
    try:
        write(folder, 2, keep=1)
        os._exit(0)
    finally:
        os._exit(1)


# --- a disk that is full, or fails ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["fails", "is full"])
def test_an_error_at_any_line_costs_this_checkpoint_only(tmp_path, monkeypatch, what):
    """The previous checkpoint is complete, no partial file is left, and the next checkpoint is written as usual."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    write(tmp_path / "start", 1)
    raised = line = 0
    while True:
        folder = tmp_path / str(line)
        shutil.copytree(tmp_path / "start", folder)
        error = _write_with_error(line, folder, 5 if what == "fails" else 28)
        assert checkpoint.newest(folder).name in ("step_00000001", "step_00000002")
        write(folder, 3, keep=1)
        assert [path.name for path in folder.iterdir()] == ["step_00000003"]
        shutil.rmtree(folder)
        if error is None:
            break
        line, raised = line + 1, raised + 1
    assert raised > 30


def _write_with_error(lines, folder, number):
    """Writes a checkpoint with an OSError after `lines` lines of writer.py. Returns the error, or None if the write ended first."""
    left = lines

    def trace(frame, event, argument):
        nonlocal left
        if frame.f_code.co_filename != checkpoint.__file__:
            return None
        if event == "line":
            if left == 0:
                sys.settrace(None)
                left = -1
                raise OSError(number, os.strerror(number))
            left -= 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        write(folder, 2, keep=1)
    except OSError as error:
        return error
    finally:
        sys.settrace(before)
    return None


@pytest.mark.parametrize("room", [0, 100, 400, 2000])
def test_a_file_that_has_no_room(tmp_path, room):
    """The operating system refuses to write more than `room` bytes to a file, for tensors and JSON alike."""
    write(tmp_path, 1)
    child = os.fork()
    if child == 0:
        _write_into(tmp_path, room)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (0 if room == 2000 else 27)  # file too large
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step_00000001", "step_00000002"][: 1 + (room == 2000)]
    assert checkpoint.damage(tmp_path / "step_00000001") is None


def _write_into(folder, room):
    """Saves in the child process, which exits with the number of the system's error, or with 0."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    code = 1
    try:
        write(folder, 2)
        code = 0
    except OSError as error:
        code = error.errno
    finally:
        os._exit(code)
