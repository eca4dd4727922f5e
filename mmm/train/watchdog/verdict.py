"""Which of several processes ended a run, from what they said of themselves last; see `ranks.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

SILENCE = 3.0  # seconds without a word after which a process is gone, once a collective failed

# begins: not heard of yet. cut: lost a collective, by another's fault. told: knows the verdict, and will end
State = Literal["begins", "runs", "told", "cut", "failed", "done"]


@dataclass(frozen=True)
class Beat:
    """The report of a process about itself.

    Attributes:
        number: grows with each.
        step: that it computes, counted from 0.
        cause: of the states cut and failed.
    """

    number: int = 0
    step: int = 0
    state: State = "begins"
    cause: str = ""


@dataclass(frozen=True)
class Verdict:
    """The rank that ended the run, none where all lost each other; and what to say, in a line."""

    rank: int | None
    said: str


def about_lives(beats: Sequence[Beat], silent: Sequence[float], limit: float) -> Verdict | None:
    """Whether a process failed, or is gone.

    Args:
        beats: of each rank, the last.
        silent: seconds since.
        limit: seconds after which a silent one is gone.
    """
    for rank, beat in enumerate(beats):
        if beat.state == "failed":
            return Verdict(rank, f"rank {rank} ended with an error at step {beat.step}: {beat.cause}")
    running = [rank for rank, beat in enumerate(beats) if beat.state == "runs" and silent[rank] > limit]
    if not running:
        return None
    rank = max(running, key=lambda one: silent[one])
    missed = [f"; rank {other} missed it at step {beat.step}" for other, beat in enumerate(beats) if beat.state == "cut"]
    said = f"rank {rank} is gone: not heard of for {silent[rank]:.0f} s, last at step {beats[rank].step}"
    return Verdict(rank, said + "".join(missed[:1]))


def about_answers(beats: Sequence[Beat], cut: float, timeout: float) -> Verdict | None:
    """Which process lives and does not answer, where nobody is gone.

    Args:
        cut: seconds since the first process lost a collective.
        timeout: seconds that it waited.
    """
    if cut < SILENCE + 1:
        return None
    lost = [(rank, beat) for rank, beat in enumerate(beats) if beat.state == "cut"]
    running = [rank for rank, beat in enumerate(beats) if beat.state == "runs"]
    if running:
        rank = min(running, key=lambda one: beats[one].step)
        return Verdict(rank, f"rank {rank} lives and has not answered within {timeout:g} s, at step {beats[rank].step}")
    said = "; ".join(f"rank {rank} at step {beat.step}: {beat.cause}" for rank, beat in lost[:1])
    return Verdict(None, f"the processes lost each other, {said}")
