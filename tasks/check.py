"""Check your own parts, evaluations and formats of weights on a small model before they are used.

mmm check my_masker.py

The exit code is 1 if a part breaks a rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmm.config.overrides import use_file
from mmm.contract import KINDS, Finding, check_part
from mmm.core.checks import CheckedConfig
from mmm.core.registry import REGISTRIES
from mmm.evaluate.check import check_evaluator, check_format
from mmm.weights.formats import FORMATS

POSITIONAL = "file"


@dataclass(frozen=True, kw_only=True)
class Config(CheckedConfig):
    """Check what a file registers."""

    file: str | None = None
    """A Python file that registers parts, as for --use."""


def run(config: Config) -> dict[str, Any]:
    """Checks every part that a file registers.

    Raises:
        SystemExit: a part breaks a rule; the code is 1.
    """
    found = check(config)
    print(describe(found))
    if any(finding.fault and not finding.skipped for finding in found):
        raise SystemExit(1)
    return {"checks": sum(not finding.skipped for finding in found)}


def check(config: Config) -> list[Finding]:
    """Imports the file and checks its parts.

    Raises:
        ValueError: no file is given, or it registers nothing.
    """
    if config.file is None:
        raise ValueError("mmm check needs a Python file that registers parts: mmm check my_masker.py")
    use_file(Path(config.file), short=True)
    module = str(Path(config.file).resolve())
    found = [one for kind, name in own(KINDS, module) for one in check_part(kind, name)]
    found += [one for _, name in own(("evaluator",), module) for one in check_evaluator(name)]
    found += [one for form in FORMATS.values() if type(form).__module__ == module for one in check_format(form)]
    if not found:
        raise ValueError(
            f"{config.file} registers no {', '.join(KINDS)}, evaluation or format of weights; see docs/adding_a_part.md"
        )
    return found


def own(kinds: Sequence[str], module: str) -> list[tuple[str, str]]:
    """Returns kind and name of the parts that a module registers."""
    return [(kind, name) for kind in kinds for name, part in REGISTRIES[kind].parts.items() if part.__module__ == module]


def describe(found: list[Finding]) -> str:
    """Returns a line for each part and medium, and one for each fault."""
    lines = []
    for part, medium in dict.fromkeys((one.part, one.medium) for one in found):
        ran = [one for one in found if (one.part, one.medium) == (part, medium)]
        if ran[0].skipped:
            lines.append(f"{part}, {medium}: not checked: {ran[0].fault}")
            continue
        faults: dict[str, list[str]] = {}
        for one in ran:
            if one.fault:
                faults.setdefault(one.fault, []).append(one.check)
        lines.append(f"{part}, {medium}: {len(ran) - sum(map(len, faults.values()))} of {len(ran)} checks passed")
        lines += [f"  {'; '.join(checks)}: {fault}" for fault, checks in faults.items()]
    return "\n".join(lines)
