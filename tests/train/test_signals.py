"""After a signal to stop, the current step is saved, all processes stop at the same step, and the resume is exact.

Run as a script, this file starts two processes (`test_two_processes_stop_as_one`). Under `torchrun`, it is one of two.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forked import PYTHONPATH
from test_loop import CONFIG, assert_same, fork_two, lines, loss_of, state, train

from mmm.train.checkpoint import writer as checkpoint
from mmm.train.distributed.preemption import StopAgreement, Stopped, StopSignals

RARE = replace(CONFIG, save_every=1000, log_every=5)  # no checkpoint is due at the steps with signals
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def at(step, number, rank=0):
    """Returns a loss function that sends a signal to its own process in the middle of one step of one rank."""

    def loss(model, batch, now):
        if now == step and int(os.environ.get("RANK", "0")) == rank:
            os.kill(os.getpid(), number)
        return loss_of(model, batch, now)

    return loss


def stop(folder, config=RARE, **choices):
    with pytest.raises(Stopped) as ended:
        train(folder, config, **choices)
    assert ended.value.code == 143
    return [int(path.name.removeprefix("step_")) for path in checkpoint.found(folder / "checkpoints")]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_step_is_saved_and_the_resume_is_exact(tmp_path, number, caplog):
    """The signal comes between two lines of metrics, which the resumed run writes as an uninterrupted run does."""
    before = signal.SIG_DFL if number == signal.SIGUSR1 else signal.getsignal(number)
    signal.signal(number, before)
    assert stop(tmp_path / "parts", loss=at(6, number)) == [7]
    assert f"{number.name} received by rank 0: stopping after step 7" in caplog.text
    # by default, SIGUSR1 would end what follows the training
    assert signal.getsignal(number) is (signal.SIG_IGN if number == signal.SIGUSR1 else before)
    assert not (tmp_path / "parts" / "lock").exists()
    whole = train(tmp_path / "whole", RARE)
    assert_same(state(whole), state(train(tmp_path / "parts", RARE, resume=True)))
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_stopped_at_every_step(tmp_path):
    """One run is stopped and resumed at each step."""
    for step in range(11):
        assert max(stop(tmp_path / "parts", loss=at(step, signal.SIGTERM), resume=step > 0)) == step + 1
    whole = train(tmp_path / "whole", RARE)
    assert_same(state(whole), state(train(tmp_path / "parts", RARE, resume=True)))
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_a_second_signal_while_the_first_is_served(tmp_path, monkeypatch):
    """Sends signals at each flush of a checkpoint to disk."""
    flush = checkpoint._flush

    def disturbed(path):
        for number in SIGNALS:
            os.kill(os.getpid(), number)
        flush(path)

    monkeypatch.setattr(checkpoint, "_flush", disturbed)
    assert stop(tmp_path, loss=at(3, signal.SIGUSR1)) == [4]
    assert checkpoint.damage(tmp_path / "checkpoints" / "step_00000004") is None


def test_the_first_request_is_answered_at_once_and_the_second_ends_the_process(tmp_path):
    """Sends a signal in a very long update, during a single call that does not return to Python."""
    script = [sys.executable, __file__, str(tmp_path), "endless"]

    def act(both):
        wait_for(lambda: (tmp_path / "run" / "endless").exists())
        both.send_signal(signal.SIGINT)
        time.sleep(0.5)
        both.send_signal(signal.SIGTERM)  # as if a launcher forwarded it: this is still the first request
        time.sleep(2.5)
        assert both.poll() is None
        both.send_signal(signal.SIGINT)

    code, output = watch(script, seconds=60, act=act)
    assert code == 143, output
    assert output.count("SIGINT: stopping after this update, about 1 s; send it again to stop now") == 1
    assert "SIGINT received again: stopping now" in output
    assert [path.name for path in checkpoint.found(tmp_path / "run" / "checkpoints")] == ["step_00000002"]
    assert train(tmp_path / "run", RARE, resume=True).step == 12


def endless(model, batch, step):
    """Returns the loss. The third update does not return from C code, like a long backward pass."""
    if step == 2:
        (Path(sys.argv[1]) / "run" / "endless").touch()
        mutex = ctypes.create_string_buffer(64)
        for _ in range(2):  # the second lock waits for the first, and no signal ends this wait
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
    return loss_of(model, batch, step)


def test_a_signal_in_the_last_step(tmp_path):
    """The run is complete, and what would follow it is left to the next start."""
    assert stop(tmp_path, loss=at(11, signal.SIGTERM)) == [12]
    assert [line["step"] for line in lines(tmp_path)] == [5, 10, 12]
    assert train(tmp_path, RARE, resume=True).step == 12


def test_each_run_has_its_own_and_what_was_before_comes_back(request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with StopSignals() as signals:
        assert StopAgreement(SimpleNamespace(num_processes=1, process_index=0), signals, 60).stops(1) is False
        os.kill(os.getpid(), signal.SIGINT)
        with StopSignals() as inner:  # two runs in one process have separate signals
            assert not inner.received
        assert StopAgreement(SimpleNamespace(num_processes=1, process_index=0), signals, 60).stops(1) is True
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("launched", [True, False])
def test_a_launcher_that_is_gone_is_a_signal(launched, monkeypatch):
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    else:
        monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    answers, answer = os.pipe()
    child = os.fork()
    if child == 0:  # the launcher, which starts one process and exits
        began, begin = os.pipe()
        if os.fork() == 0:
            _outlive(answer, begin)
        os.read(began, 1)
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(answers, 2) == bytes([0, signal.SIGTERM if launched else 0])
    os.close(answers)
    os.close(answer)


def _outlive(answer, begin):
    """Records, in the launched process, the signal that is seen while the launcher runs, and after its end."""
    try:
        with StopSignals() as signals:
            launcher, first = os.getppid(), signals.look()
            os.write(begin, b"x")
            while os.getppid() == launcher:
                time.sleep(0.001)
            os.write(answer, bytes([first, signals.look()]))
    finally:
        os._exit(0)


# --- two processes ----------------------------------------------------------------------------------------------------------


def watch(script, *, seconds=200, act=None):
    """Runs a command whose processes all end with it, and returns its exit code and output."""
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    both = subprocess.Popen(script, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        if act is not None:
            act(both)
        output, _ = both.communicate(timeout=seconds)  # the timeout fails the test if a process waits for one that has ended
    finally:
        with suppress(ProcessLookupError):
            os.killpg(both.pid, signal.SIGKILL)
    return both.returncode, output


def test_two_processes_stop_as_one(tmp_path):
    """Either of the two processes may get the signal, and each kind of signal stops both."""
    code, output = watch([sys.executable, __file__, str(tmp_path)])
    assert code == 0, output
    for rank in (0, 1):
        steps = {tuple(json.loads(line)) for line in (tmp_path / f"steps_{rank}").read_text().splitlines()}
        assert steps == {(7,)}  # the signal came in step 6, after 5 updates
    answers = [json.loads((tmp_path / f"answers_{rank}").read_text()) for rank in (0, 1)]
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 1


def one_of_two(folder):
    torch.set_num_threads(1)
    rank = os.environ["RANK"]
    whole = train(folder / "whole", RARE)
    for place, number in enumerate(SIGNALS):
        run = folder / str(place)
        steps = stop(run, loss=at(5, number, rank=place % 2))
        with (folder / f"steps_{rank}").open("a") as file:
            file.write(json.dumps(steps) + "\n")
        assert_same(state(whole), state(train(run, RARE, resume=True)))
        assert lines(folder / "whole") == lines(run)
    stop(folder / "last", loss=at(11, signal.SIGTERM, rank=1))  # both stop, and neither waits for the other
    (folder / f"answers_{rank}").write_text(json.dumps([apart(int(rank), told) for told in range(8)]))


def apart(rank, told):
    """Returns the step at which this process stops. The two processes run at different speeds, and one of them gets a signal."""
    with StopSignals() as signals:
        agreement = StopAgreement(SimpleNamespace(num_processes=2, process_index=rank), signals, 60)
        for step in range(1, 20):
            time.sleep(0.004 * ((step * 7 + rank * 5 + told) % 3))
            if rank == told % 2 and step == told + 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            if agreement.stops(step, last=step == 19):
                return step
    return None


@pytest.mark.slow
def test_torchrun_hands_the_signal_on(tmp_path):
    """Only the launcher gets SIGTERM."""

    def act(both):
        wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists())
        both.send_signal(signal.SIGTERM)

    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", __file__, str(tmp_path)]
    began = time.monotonic()
    code, output = watch(launch, act=act)
    assert code != 0
    assert time.monotonic() - began < 120
    (saved,) = checkpoint.found(tmp_path / "run" / "checkpoints")
    assert checkpoint.damage(saved) is None, output
    assert f"SIGTERM received by rank {0}" in output or "SIGTERM received by rank 1" in output


def wait_for(there, seconds=150):
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.1)


def slowly(model, batch, step):
    time.sleep(0.05)
    return loss_of(model, batch, step)


if __name__ == "__main__":
    if sys.argv[2:] == ["endless"]:
        logging.basicConfig()
        train(Path(sys.argv[1]) / "run", replace(RARE, save_every=2), loss=endless)
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        train(Path(sys.argv[1]) / "run", replace(RARE, steps=100_000), loss=slowly)
    else:
        fork_two(Path(sys.argv[1]), one_of_two)
