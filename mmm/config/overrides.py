"""Applies command-line flags to a config: they choose its starting point, swap its parts and set its values."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from mmm.config.serialize import from_dict, load, to_dict
from mmm.core.checks import FlagError, arms, in_words, nearest, one_line
from mmm.core.registry import REGISTRIES, PartConfig, PartSet

T = TypeVar("T")
Flags = list[tuple[str, list[str]]]  # name without dashes, and the values that followed it


def group_flags(tokens: Iterable[str]) -> Flags:
    """Groups command-line words into flags with their values. `--a.b=c` equals `--a.b c`; hyphens in names become underscores."""
    flags: Flags = []
    for token in tokens:
        if token.startswith("--"):
            name, equals, value = token[2:].partition("=")
            flags.append((name.replace("-", "_"), [value] if equals else []))
        elif flags:
            flags[-1][1].append(token)
        else:
            raise FlagError(f"{token!r} belongs to no flag; flags begin with --, and --help_all lists them")
    return flags


def pull(flags: Flags, name: str) -> list[str]:
    """Removes every flag of this name, and returns their values."""
    found = [values for flag, values in flags if flag == name]
    flags[:] = [(flag, values) for flag, values in flags if flag != name]
    for values in found:
        if len(values) != 1:
            files = [value for value in values if value.endswith(".py")]
            repeated = " ".join([*(value for value in values if value not in files), *(f"--{name} {file}" for file in files)])
            advice = f"; write {repeated}" if name == "use" and files else ""
            raise FlagError(f"--{name} takes one value, not {' '.join(values) or 'none'}{advice}")
    return [values[0] for values in found]


def use_file(path: Path, *, short: bool = False) -> None:
    """Imports a user's file, which registers parts. `short`: reports an error in the file as one line without a traceback."""
    name = str(path.resolve())  # name of the module, distinct for files of the same name in two folders
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, name)
    if spec is None or spec.loader is None:
        raise ValueError(f"--use {path}: not a Python file; its name must end in .py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)  # before it runs: annotations are looked up here
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        line = one_line(error)
        del sys.modules[name]
        if isinstance(error, SyntaxError):  # its traceback would show files of mmm and not those of the user
            raise ValueError(f"--use {path}: {error.msg} ({error.filename}, line {error.lineno})") from None
        if short and isinstance(error, Exception) and not isinstance(error, (ValueError, OSError)):
            raise ValueError(f"{path}: {line}") from error
        raise


def is_demonstration(presets: Any, flags: Mapping[str, list[str]]) -> bool:
    """True if the flags name neither a starting point nor data, so that the preset `demo` runs."""
    named = any(flag in flags for flag in ("preset", "config", "data.source")) or resumed_config(flags) is not None
    return isinstance(presets, Mapping) and "demo" in presets and not named


def resumed_config(flags: Mapping[str, list[str]]) -> Path | None:
    """Returns the saved config of the run that the flags resume. None: they resume no run, or name a preset or another config."""
    folder, resume = flags.get("folder"), flags.get("resume", ["false"])
    if not folder or resume == ["false"] or "preset" in flags or "config" in flags:
        return None
    path = Path(folder[-1]) / "config.yaml"
    return path if path.is_file() else None


def about_demonstration(presets: Any, prog: str) -> str:
    """Returns one line that names the demonstration, and the command for the publication's setting."""
    command = f"python {prog}" if prog.endswith(".py") else prog
    return (
        f"No --data.source was given, so this is the demonstration on {presets['demo'].data.source}, which needs no download. "
        f"On your own data: {command} --data.source FOLDER (preset {next(iter(presets))})"
    )


def starting_point(presets: Any, flags: Flags) -> Any:
    """Returns the config that the other flags change: a saved config, a preset, or the only default."""
    demonstration, resumed = is_demonstration(presets, dict(flags)), resumed_config(dict(flags))
    names = pull(flags, "preset") if isinstance(presets, Mapping) else []
    files = pull(flags, "config")
    if names and files:
        raise FlagError("--preset and --config both say what to start from; give one of them")
    default = next(iter(presets.values())) if isinstance(presets, Mapping) else presets
    kind = default if isinstance(default, type) else type(default)
    if files or resumed is not None:
        return load(kind, resumed or files[-1])
    if kind is default:
        try:
            return from_dict(kind, {})
        except ValueError as error:
            raise ValueError(f"{error}; start from a saved config: --config FILE") from None
    if not names:
        return presets["demo"] if demonstration else default
    if names[-1] not in presets:
        raise FlagError(
            f"--preset: no preset is called {names[-1]!r}; choose from {', '.join(presets)}{nearest(names[-1], presets)}"
        )
    return presets[names[-1]]


def walk(config: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields every value of a config with its dotted name and its annotation; a nested config precedes its own values."""
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        yield where + field.name, hints[field.name], value
        if dataclasses.is_dataclass(value):
            yield from walk(value, f"{where}{field.name}.")


def part_configs(config: Any) -> dict[str, PartConfig]:
    """Returns the config of every part by its dotted name, except for parts in a set, whose names are fixed."""
    sets = set_members(config)
    return {path: value for path, _, value in walk(config) if isinstance(value, PartConfig) and path not in sets}


def sets_of(config: Any) -> dict[str, PartSet]:
    """Returns every set of parts by its dotted name."""
    return {path: value for path, _, value in walk(config) if isinstance(value, PartSet)}


def set_members(config: Any) -> set[str]:
    """Returns the dotted names of the parts in sets."""
    return {f"{path}.{name}" for path, value in sets_of(config).items() for name in value.names}


def _replace(config: T, values: Mapping[str, Any]) -> T:
    """Returns a copy of a config with other values, given by dotted name and as YAML represents them."""
    tree = to_dict(config)
    for path, value in values.items():
        *outer, name = path.split(".")
        functools.reduce(dict.__getitem__, outer, tree)[name] = value
    return from_dict(type(config), tree, "--")


def swap_parts(config: T, flags: Flags) -> T:
    """Replaces parts by those that the flags name. A part that the config already has keeps its values."""
    for path, parts in sets_of(config).items():  # `--evaluate features knn` names the parts of the set
        named = [values for flag, values in flags if flag == path]
        if named:
            flags[:] = [(flag, values) for flag, values in flags if flag != path]
            known = to_dict(parts)
            return swap_parts(_replace(config, {path: {name: known.get(name) for name in named[-1]}}), flags)
    for path, part in part_configs(config).items():
        names = pull(flags, f"{path}.name")
        if names:  # starts again, because the new part may contain other parts
            return swap_parts(config if names[-1] == part.name else _replace(config, {path: {"name": names[-1]}}), flags)
    return config


def apply_flags(config: T, flags: Flags) -> T:
    """Sets the values of the flags. The last one counts if a flag is given twice."""
    hints = {path: hint for path, hint, value in walk(config) if not dataclasses.is_dataclass(value)}
    return _replace(config, dict(_meaning(flag, values, hints, config) for flag, values in flags))


def _meaning(flag: str, values: list[str], hints: dict[str, Any], config: Any) -> tuple[str, Any]:
    """Returns the name and the value, as YAML represents it, that a flag sets."""
    group, dot, name = flag.rpartition(".")
    negated = f"{group}{dot}{name.removeprefix('no_')}"
    if flag not in hints and hints.get(negated) is bool and not values:
        return negated, False
    if flag not in hints:
        raise FlagError(f"there is no flag --{flag}{_elsewhere(flag, config) or _nearest_flag(flag, hints, config)}")
    allowed = arms(hints[flag])
    if not values and bool in allowed:
        return flag, True
    if not values and not any(get_origin(arm) is tuple for arm in allowed):
        raise FlagError(f"--{flag} needs a value: {in_words(hints[flag])}")
    return flag, values[0] if len(values) == 1 else values


def _elsewhere(flag: str, config: Any) -> str:
    """Returns the end of an error message if another part of the same kind has the flag, else an empty text."""
    path, _, name = flag.rpartition(".")
    for where, parts in sets_of(config).items():
        name_of, _, _ = flag.removeprefix(f"{where}.").partition(".")
        if flag.startswith(f"{where}.") and name_of in REGISTRIES[parts.kind].parts and name_of not in parts.names:
            return f", because {name_of} is not chosen; to add it: --{where} {' '.join((*parts.names, name_of))}"
    part = part_configs(config).get(path)
    others = REGISTRIES[part.kind].parts if part else {}
    having = sorted(other for other in others if name in {field.name for field in dataclasses.fields(others[other].Config)})
    return f" for {path} {part.name}; {' and '.join(having)} has it: --{path}.name {having[0]}" if part and having else ""


def _nearest_flag(flag: str, hints: dict[str, Any], config: Any) -> str:
    """Returns the end of an error message. A flag without a dot is compared with the last parts of names: --steps finds
    --train.steps."""
    parts = [f"{path}.name" for path in part_configs(config)]
    if f"{flag}.name" in parts:
        return f"; did you mean '--{flag}.name'?"
    spellings = {name if "." in flag else name.rpartition(".")[2]: name for name in ("config", "use", *parts, *hints)}
    near = difflib.get_close_matches(flag, spellings, n=1)
    return f"; did you mean '--{spellings[near[0]]}'?" if near else "; --help_all lists all"
