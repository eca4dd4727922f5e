"""Finds the process that ended a run from the last heartbeats of all processes; see `watchdog.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

SILENCE = 3.0  # seconds without a heartbeat after which a process counts as gone, after a collective failed

# starting: no heartbeat yet. lost_collective: a collective failed because of another process. notified: has the failure report
# and is about to end
State = Literal["starting", "running", "notified", "lost_collective", "failed", "done"]


@dataclass(frozen=True)
class Heartbeat:
    """The state that a process reports.

    Attributes:
        number: number of the heartbeat.
        step: current step, counted from 0.
        state: state of the process.
        cause: the error, in the states lost_collective and failed.
    """

    number: int = 0
    step: int = 0
    state: State = "starting"
    cause: str = ""


@dataclass(frozen=True)
class FailureReport:
    """The process that ended the run.

    Attributes:
        rank: rank of the process. None: all processes lost each other.
        message: one line.
    """

    rank: int | None
    message: str


def find_lost_process(heartbeats: Sequence[Heartbeat], silent: Sequence[float], limit: float) -> FailureReport | None:
    """Returns the process that failed or is gone, or None.

    Args:
        heartbeats: the last heartbeat of each rank.
        silent: seconds since each of these heartbeats.
        limit: seconds after which a silent process counts as gone.
    """
    for rank, heartbeat in enumerate(heartbeats):
        if heartbeat.state == "failed":
            return FailureReport(rank, f"rank {rank} ended with an error at step {heartbeat.step}: {heartbeat.cause}")
    running = [rank for rank, heartbeat in enumerate(heartbeats) if heartbeat.state == "running" and silent[rank] > limit]
    if not running:
        return None
    rank = max(running, key=lambda one: silent[one])
    waiting = [(other, heartbeat.step) for other, heartbeat in enumerate(heartbeats) if heartbeat.state == "lost_collective"]
    missed = [f"; rank {other} missed it at step {step}" for other, step in waiting]
    message = f"rank {rank} is gone: no heartbeat for {silent[rank]:.0f} s, last at step {heartbeats[rank].step}"
    return FailureReport(rank, message + "".join(missed[:1]))


def find_unresponsive_process(heartbeats: Sequence[Heartbeat], since: float, timeout: float) -> FailureReport | None:
    """Returns the process that sends heartbeats but does not answer in a collective, or None.

    Args:
        heartbeats: the last heartbeat of each rank.
        since: seconds since the first process lost a collective.
        timeout: seconds that this process waited.
    """
    if since < SILENCE + 1:
        return None
    lost = [(rank, heartbeat) for rank, heartbeat in enumerate(heartbeats) if heartbeat.state == "lost_collective"]
    running = [rank for rank, heartbeat in enumerate(heartbeats) if heartbeat.state == "running"]
    if running:
        rank = min(running, key=lambda one: heartbeats[one].step)
        return FailureReport(
            rank, f"rank {rank} is running but has not responded for {timeout:g} s, at step {heartbeats[rank].step}"
        )
    message = "; ".join(f"rank {rank} at step {heartbeat.step}: {heartbeat.cause}" for rank, heartbeat in lost[:1])
    return FailureReport(None, f"the processes lost each other, {message}")
