"""Command line, save and load of configs: nested frozen dataclasses of plain values, in which parts can be swapped by name.

Flags and YAML go through one reader (`from_dict`), so that both mean the same. tyro draws the help; no other file imports it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import importlib.util
import inspect
import logging
import os
import sys
import time
import types
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from mmm.registry import REGISTRIES, PartConfig, nearest

T = TypeVar("T")
Flags = list[tuple[str, list[str]]]  # name without dashes, and the values that followed it

HELP = ("-h", "--help")
GRACE = 5.0  # seconds that other processes wait for the launcher to end them, once rank 0 has said what is wrong


def main(
    run: Callable[[T], dict[str, Any]],
    *,
    presets: Mapping[str, T] | T | type[T],
    doc: str,
    argv: Sequence[str] | None = None,
    prog: str | None = None,
) -> dict[str, Any]:
    """What a recipe or a task calls: reads the command line, runs, and ends with one line where the user is wrong (exit code 2).

    Args:
        run: the task's.
        presets: named values, the paper's first; `demo` runs where neither a preset nor --data.source is given. Or one
            default; or the config's type, whose own defaults or else --config give the values.
        doc: shown by --help.
        argv: without the program's name; none: the process's own.
        prog: the program as the user calls it; none: the process's own.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    rank = int(os.environ.get("RANK", "0"))
    _show_messages(rank)
    with _plain_errors(rank, running=False):
        config = parse(presets, argv, doc=doc, prog=prog)
        if rank == 0 and _is_demonstration(presets, dict(_group(argv))):
            print(_about_demonstration(presets, prog or sys.argv[0]), flush=True)
    with _plain_errors(rank, running=True):
        return run(config)


def parse(presets: Mapping[str, T] | T | type[T], argv: Sequence[str], *, doc: str = "", prog: str | None = None) -> T:
    """The config of one run: a preset or `--config FILE`, then the parts that are named, then all other flags.

    Raises:
        ValueError: one line that names the flag and the nearest choice.
        SystemExit: after --help.
    """
    flags = _group(token for token in argv if token not in HELP)
    for file in _pull(flags, "use"):
        _use(Path(file))
    config = _swap(_start(presets, flags), flags)
    if set(HELP) & set(argv):
        _help(config, presets, doc, prog)
    return _apply(config, flags)


def save(config: Any, path: str | Path) -> None:
    """Writes a config as YAML, with the name of every part; equal configs give the same bytes.

    Raises:
        ValueError: where the file would not load to an equal object.
    """
    again = from_dict(type(config), to_dict(config))  # also makes a float of an int where the field is one
    if again != config:
        raise ValueError(f"this config would not load to an equal object: {config}")
    Path(path).write_text(yaml.dump(to_dict(again), Dumper=_Dumper, sort_keys=False, width=120), encoding="utf-8")


def load(kind: type[T], path: str | Path) -> T:
    """The config of this type that `save` wrote. Fields that the file lacks take the type's own defaults.

    Raises:
        ValueError: naming the file, the field and the nearest choice.
        OSError: where the file cannot be read.
    """
    try:
        return from_dict(kind, yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def to_dict(config: Any) -> Any:
    """Nested dicts, lists and scalars, with the `name` of every part."""
    if dataclasses.is_dataclass(config):
        name = {"name": config.name} if isinstance(config, PartConfig) else {}
        return name | {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, tuple):
        return [to_dict(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def from_dict(kind: type[T], tree: Any, where: str = "") -> T:
    """The inverse of `to_dict`. A scalar may also be text, as the command line has it.

    Args:
        kind: the config's type.
        tree: its values by name.
        where: put before names in messages.

    Raises:
        ValueError: for an unknown or a missing name, or a value that does not fit its field.
    """
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where.rstrip('.') or 'the config'}: expected names and values, not {tree!r}")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    for name in tree:
        if name not in fields:
            raise ValueError(f"{where}{name} is not known{nearest(str(name), fields)}")
    for name, field in fields.items():
        if name not in tree and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}{name} is missing")
    return kind(**{name: _value(hints[name], value, name, where) for name, value in tree.items()})


def _value(hint: Any, value: Any, name: str, where: str) -> Any:
    """The value of a field: a part, a nested config, or a plain value."""
    if isinstance(hint, type) and issubclass(hint, PartConfig) and isinstance(value, Mapping):
        if "name" not in value:
            raise ValueError(f"{where}{name}.name is missing")
        assert (hint.kind or name) in REGISTRIES, f"a field that holds a part bears its kind's name, {name!r} does not"
        try:
            config = REGISTRIES[hint.kind or name][str(value["name"])].Config
        except ValueError as error:
            raise ValueError(f"{where}{name}.name: {error}") from None
        if not issubclass(config, hint):
            raise ValueError(f"{where}{name}.name: the Config of {value['name']!r} must extend {hint.__qualname__}")
        return from_dict(config, {key: value[key] for key in value if key != "name"}, f"{where}{name}.")
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, f"{where}{name}.")  # type: ignore[arg-type]
    try:
        return _convert(hint, value)
    except (ValueError, TypeError):
        given = " ".join(map(str, value)) if isinstance(value, list) else value
        choices = [choice for arm in _arms(hint) if get_origin(arm) is Literal for choice in map(str, get_args(arm))]
        raise ValueError(f"{where}{name}: {given!r} is not {_say(hint)}{nearest(str(given), choices)}") from None


def _convert(hint: Any, value: Any) -> Any:
    """A plain value as its annotation wants it; ValueError or TypeError where it does not fit."""
    origin, args = get_origin(hint), get_args(hint)
    if len(_arms(hint)) > 1:
        for arm in sorted(args, key=lambda arm: arm is not types.NoneType):  # first: else `none` would be a text
            with contextlib.suppress(ValueError, TypeError):
                return _convert(arm, value)
    elif origin is Literal:
        return args[[str(arg) for arg in args].index(str(value))]
    elif origin is tuple:
        values = [value] if isinstance(value, str) else value
        each = args[:1] * len(values) if args[-1] is Ellipsis else args
        return tuple(_convert(arg, item) for arg, item in zip(each, values, strict=True))
    elif hint is types.NoneType and (value is None or str(value).lower() == "none"):
        return None
    elif hint is bool:
        return ("false", "true").index(str(value).lower()) == 1
    elif hint is int and type(value) in (int, str):
        return int(value)
    elif hint is float and type(value) in (int, float, str):  # YAML reads 1e-6, without a point, as text
        return float(value)
    elif hint in (str, Path) and isinstance(value, str):
        return hint(value)
    raise TypeError(hint)


def _arms(hint: Any) -> tuple[Any, ...]:
    """The alternatives of an annotation; itself where it has none."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _say(hint: Any) -> str:
    """An annotation in words: "a whole number or none"."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path", types.NoneType: "none"}
    if len(_arms(hint)) > 1:
        return " or ".join(map(_say, _arms(hint)))
    if get_origin(hint) is Literal:
        return ", ".join(map(str, get_args(hint)[:-1])) + f" or {get_args(hint)[-1]}"
    if get_origin(hint) is tuple:
        args = get_args(hint)
        return f"a list, each {_say(args[0])}" if args[-1] is Ellipsis else f"{len(args)} values ({', '.join(map(_say, args))})"
    return names.get(hint, str(hint))


class _Dumper(yaml.SafeDumper):
    """Nested names as blocks, lists in one line."""


_Dumper.add_representer(list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True))


def _group(tokens: Iterable[str]) -> Flags:
    """Each flag with its values; `--a.b=c` is `--a.b c`, and hyphens in names are underscores."""
    flags: Flags = []
    for token in tokens:
        if token.startswith("--"):
            name, equals, value = token[2:].partition("=")
            flags.append((name.replace("-", "_"), [value] if equals else []))
        elif flags:
            flags[-1][1].append(token)
        else:
            raise ValueError(f"{token!r} belongs to no flag; flags begin with --, and --help lists them")
    return flags


def _pull(flags: Flags, name: str) -> list[str]:
    """Takes every flag of this name out, and gives their values."""
    found = [values for flag, values in flags if flag == name]
    flags[:] = [(flag, values) for flag, values in flags if flag != name]
    for values in found:
        if len(values) != 1:
            raise ValueError(f"--{name} takes one value, not {' '.join(values) or 'none'}")
    return [values[0] for values in found]


def _use(path: Path) -> None:
    """Imports a user's file, which registers parts."""
    name = str(path.resolve())  # a module's name: files of the same name in two folders are two modules
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--use {path}: not a Python file; its name must end in .py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)  # before it runs: annotations are looked up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _is_demonstration(presets: Any, flags: Container[str]) -> bool:
    """Whether the user says neither what to start from nor where data is, so that the preset `demo` runs."""
    return isinstance(presets, Mapping) and "demo" in presets and not any(f in flags for f in ("preset", "config", "data.source"))


def _about_demonstration(presets: Any, prog: str) -> str:
    command = f"accelerate launch {prog}" if prog.endswith(".py") else prog
    return (
        f"No --data.source was given: this is the demonstration, on {presets['demo'].data.source}, which comes with a dependency. "
        f"The real thing: {command} --data.source FOLDER (preset {next(iter(presets))})"
    )


def _start(presets: Any, flags: Flags) -> Any:
    """What the flags change: a saved config, a preset, or the one default."""
    demonstration = _is_demonstration(presets, dict(flags))
    names = _pull(flags, "preset") if isinstance(presets, Mapping) else []
    files = _pull(flags, "config")
    if names and files:
        raise ValueError("--preset and --config both say what to start from; give one of them")
    default = next(iter(presets.values())) if isinstance(presets, Mapping) else presets
    kind = default if isinstance(default, type) else type(default)
    if files:
        return load(kind, files[-1])
    if kind is default:
        try:
            return from_dict(kind, {})
        except ValueError as error:
            raise ValueError(f"{error}; start from a saved config: --config FILE") from None
    if not names:
        return presets["demo"] if demonstration else default
    if names[-1] not in presets:
        raise ValueError(f"--preset: none is called {names[-1]!r}; choose from {', '.join(presets)}{nearest(names[-1], presets)}")
    return presets[names[-1]]


def _walk(config: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every value in a config: its dotted name, its annotation, itself; a nested config comes before what it holds."""
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        yield where + field.name, hints[field.name], value
        if dataclasses.is_dataclass(value):
            yield from _walk(value, f"{where}{field.name}.")


def _parts(config: Any) -> dict[str, PartConfig]:
    """Every part's config by its dotted name."""
    return {path: value for path, _, value in _walk(config) if isinstance(value, PartConfig)}


def _replace(config: T, values: Mapping[str, Any]) -> T:
    """A copy in which these dotted names have other values, given as YAML has them."""
    tree = to_dict(config)
    for path, value in values.items():
        *outer, name = path.split(".")
        functools.reduce(dict.__getitem__, outer, tree)[name] = value
    return from_dict(type(config), tree, "--")


def _swap(config: T, flags: Flags) -> T:
    """Puts the parts in that are named; one that is there already keeps the values that it has."""
    for path, part in _parts(config).items():
        names = _pull(flags, f"{path}.name")
        if names:  # again from the start: the new part may hold parts of its own
            return _swap(config if names[-1] == part.name else _replace(config, {path: {"name": names[-1]}}), flags)
    return config


def _apply(config: T, flags: Flags) -> T:
    """The config with the flags' values; of a flag that is given twice, the last."""
    hints = {path: hint for path, hint, value in _walk(config) if not dataclasses.is_dataclass(value)}
    return _replace(config, dict(_meaning(flag, values, hints, config) for flag, values in flags))


def _meaning(flag: str, values: list[str], hints: dict[str, Any], config: Any) -> tuple[str, Any]:
    """Which value a flag sets, and to what, as YAML would have it."""
    group, dot, name = flag.rpartition(".")
    negated = f"{group}{dot}{name.removeprefix('no_')}"
    if flag not in hints and hints.get(negated) is bool and not values:
        return negated, False
    if flag not in hints:
        raise ValueError(f"there is no flag --{flag}{_elsewhere(flag, config) or _nearest_flag(flag, hints, config)}")
    arms = _arms(hints[flag])
    if not values and bool in arms:
        return flag, True
    if not values and not any(get_origin(arm) is tuple for arm in arms):
        raise ValueError(f"--{flag} needs a value: {_say(hints[flag])}")
    return flag, values[0] if len(values) == 1 else values


def _elsewhere(flag: str, config: Any) -> str:
    """The end of an error, where another part of the same kind has the flag."""
    path, _, name = flag.rpartition(".")
    part = _parts(config).get(path)
    others = REGISTRIES[part.kind].parts if part else {}
    having = sorted(other for other in others if name in {field.name for field in dataclasses.fields(others[other].Config)})
    return f" of {path} {part.name}; {' and '.join(having)} would have it: --{path}.name {having[0]}" if part and having else ""


def _nearest_flag(flag: str, hints: dict[str, Any], config: Any) -> str:
    """The end of an error; a flag without a dot is compared with the last names, so that --steps finds --train.steps."""
    parts = [f"{path}.name" for path in _parts(config)]
    if f"{flag}.name" in parts:
        return f"; did you mean '--{flag}.name'?"
    spellings = {name if "." in flag else name.rpartition(".")[2]: name for name in ("config", "use", *parts, *hints)}
    near = difflib.get_close_matches(flag, spellings, n=1)
    return f"; did you mean '--{spellings[near[0]]}'?" if near else "; --help lists all"


def _help(config: Any, presets: Any, doc: str, prog: str | None) -> NoReturn:
    """Shows the flags of the chosen parts, and ends."""
    import tyro  # here: reading a saved config must not need it

    lines = [inspect.cleandoc(doc), "", "What to start from:"]
    if isinstance(presets, Mapping):
        demo = "; with neither one nor --data.source: demo" if "demo" in presets else ""
        lines.append(f"  --preset {{{','.join(presets)}}}: named values; the first is the paper's and the default{demo}")
    lines += ["  --config FILE: a saved config.yaml; other flags win over it"]
    lines += ["  --use FILE: a Python file that registers parts of your own; may be repeated"]
    lines += ["", "Parts; choosing one brings its own flags, shown below for those chosen now:"]
    for path, part in _parts(config).items():
        lines.append(f"  --{path}.name {{{','.join(sorted(REGISTRIES[part.kind].parts))}}} (now: {part.name})")
    lines += [
        "",
        "`none` unsets what may be None. MMM_DEBUG=1 shows an error's traceback. Values below are those that other flags change.",
    ]
    tyro.cli(
        type(config),
        default=config,
        args=["--help"],
        prog=prog,
        description="\n".join(lines),
        use_underscores=True,
        console_outputs=os.environ.get("RANK", "0") == "0",
    )
    raise AssertionError("tyro ends after its help")


def _show_messages(rank: int) -> None:
    """Shows what the library and the tasks log: all of rank 0, of the others warnings."""
    logging.basicConfig(format="%(message)s" if rank == 0 else f"rank {rank}: %(message)s")
    for name in ("mmm", "tasks"):
        logging.getLogger(name).setLevel(logging.INFO if rank == 0 else logging.WARNING)


@contextlib.contextmanager
def _plain_errors(rank: int, *, running: bool) -> Iterator[None]:
    """Ends with exit code 2 and one line where the user is wrong: a ValueError, or a file that cannot be had.

    A launcher ends all processes when the first goes, so the others wait until rank 0 has spoken. On the command line all find
    the same; what only another rank finds while `running`, it says after the wait.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        of_a_file = isinstance(error, OSError) and error.filename is not None
        if os.environ.get("MMM_DEBUG") == "1" or (isinstance(error, OSError) and not of_a_file):
            raise
        said = f"{error.filename}: {error.strerror}" if of_a_file else str(error)  # type: ignore[union-attr]
        time.sleep(GRACE if rank else 0)
        if rank == 0 or running:
            print(f"error{f' on rank {rank}' if rank else ''}: {' '.join(said.split())}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
