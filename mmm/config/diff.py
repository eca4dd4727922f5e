"""Compares the configs of two runs, by dotted names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mmm.core.checks import nearest


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns a nested config into one level of dotted names: {"train.batch_size": 64}."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Returns the names whose values differ, with a line for each: "train.batch_size was 64, is 128"."""
    absent = "not set"
    names = sorted(name for name in before.keys() | now.keys() if before.get(name, absent) != now.get(name, absent))
    return {name: f"{name} was {before.get(name, absent)}, is {now.get(name, absent)}" for name in names}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns the lines of `changes`."""
    return list(changes(before, now).values())


def check_allowed(changed: Mapping[str, str], known: Collection[str], allow: Collection[str]) -> None:
    """Refuses a resume with another config, except for the changes that `--allow` names.

    Args:
        changed: from `changes`.
        known: all names of the config that identify the run.
        allow: names that may differ. They need not differ.

    Raises:
        ValueError: names each change that is not allowed, or a name in `allow` that does not exist.
    """
    for name in allow:
        if name not in known:
            raise ValueError(f"--allow {name} is not an option of this run{nearest(name, known)}")
    if refused := [line for name, line in changed.items() if name not in allow]:
        raise ValueError(f"the options differ from those of the run; --allow NAME accepts a difference: {'; '.join(refused)}")
