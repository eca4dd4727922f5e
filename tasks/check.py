"""Check your own parts on a small model before training: masks, hidden pixels, gradients, copies and precision.

mmm check my_masker.py

The exit code is 1 if a part breaks a rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmm.config.overrides import use_file
from mmm.contract import KINDS, Finding, check_part
from mmm.core.checks import CheckedConfig
from mmm.core.registry import REGISTRIES

POSITIONAL = "file"


@dataclass(frozen=True, kw_only=True)
class Config(CheckedConfig):
    """Check the parts that a file registers."""

    file: str | None = None
    """A Python file that registers parts, as for --use."""


def run(config: Config) -> dict[str, Any]:
    """Checks every part that a file registers.

    Raises:
        SystemExit: a part breaks a rule; the code is 1.
    """
    found = check(config)
    print(describe(found))
    if any(finding.fault for finding in found):
        raise SystemExit(1)
    return {"checks": len(found)}


def check(config: Config) -> list[Finding]:
    """Imports the file and checks its parts.

    Raises:
        ValueError: no file is given, or it registers no part of a masked model.
    """
    if config.file is None:
        raise ValueError("mmm check needs a Python file that registers parts: mmm check my_masker.py")
    use_file(Path(config.file))
    module = str(Path(config.file).resolve())
    parts = [(kind, name) for kind in KINDS for name, part in REGISTRIES[kind].parts.items() if part.__module__ == module]
    if not parts:
        raise ValueError(f"{config.file} registers no {', '.join(KINDS[:-1])} or {KINDS[-1]}; see docs/adding_a_part.md")
    return [finding for kind, name in parts for finding in check_part(kind, name)]


def describe(found: list[Finding]) -> str:
    """Returns a line for each part and medium, and one for each fault."""
    lines = []
    for part, medium in dict.fromkeys((one.part, one.medium) for one in found):
        own = [one for one in found if (one.part, one.medium) == (part, medium)]
        faults = [f"  {one.check}: {one.fault}" for one in own if one.fault]
        lines += [f"{part}, {medium}: {len(own) - len(faults)} of {len(own)} checks passed", *faults]
    return "\n".join(lines)
