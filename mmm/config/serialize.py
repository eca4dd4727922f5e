"""Configs as plain values and as YAML: nested frozen dataclasses, in which parts stand with their names.

Flags and YAML go through one reader (`from_dict`), so that both mean the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from mmm.config.reading import read_yaml
from mmm.core.registry import REGISTRIES, PartConfig, PartSet, nearest

T = TypeVar("T")


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
        return from_dict(kind, read_yaml(Path(path).read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def to_dict(config: Any) -> Any:
    """Nested dicts, lists and scalars, with the `name` of every part; in a set of parts, the names are the keys."""
    if isinstance(config, PartSet):
        return {part.name: {name: value for name, value in to_dict(part).items() if name != "name"} for part in config}
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
    if isinstance(hint, type) and issubclass(hint, PartSet):
        return _part_set(hint, value, f"{where}{name}.")
    nested = [arm for arm in arms(hint) if dataclasses.is_dataclass(arm)]
    if nested and (value is not None or hint in nested):
        return from_dict(_variant(nested[0], value), value, f"{where}{name}.")
    try:
        return _convert(hint, value)
    except (ValueError, TypeError):
        given = " ".join(map(str, value)) if isinstance(value, list) else value
        choices = [choice for arm in arms(hint) if get_origin(arm) is Literal for choice in map(str, get_args(arm))]
        raise ValueError(f"{where}{name}: {given!r} is not {in_words(hint)}{nearest(str(given), choices)}") from None


def _part_set(kind: type[PartSet], value: Any, where: str) -> PartSet:
    """A set of parts, from their values by name, or from their names alone."""
    named = value if isinstance(value, Mapping) else dict.fromkeys([value] if isinstance(value, str) else value or ())
    configs = []
    for name, tree in named.items():
        try:
            config = REGISTRIES[kind.kind][str(name)].Config
        except ValueError as error:
            raise ValueError(f"{where.removesuffix('.')}: {error}") from None
        configs.append(from_dict(config, {} if tree is None else tree, f"{where}{name}."))
    return kind.of(*configs)


def _variant(kind: Any, tree: Any) -> Any:
    """Which type a nested config is of: a type with variants (data: of images or of clips) says which knows these names."""
    choose = getattr(kind, "variant", None)
    return kind if choose is None or not isinstance(tree, Mapping) else choose(set(tree))


def _convert(hint: Any, value: Any) -> Any:
    """A plain value as its annotation wants it; ValueError or TypeError where it does not fit."""
    origin, args = get_origin(hint), get_args(hint)
    if len(arms(hint)) > 1:
        for arm in sorted(args, key=lambda arm: arm is not types.NoneType):  # first: else `none` would be a text
            with contextlib.suppress(ValueError, TypeError):
                return _convert(arm, value)
    elif origin is Literal:
        return args[[str(arg) for arg in args].index(str(value))]
    elif origin is tuple:
        values = value if not isinstance(value, str) else [value] if {str, Path} & set(args) else value.split()
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


def arms(hint: Any) -> tuple[Any, ...]:
    """The alternatives of an annotation; itself where it has none."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def in_words(hint: Any) -> str:
    """An annotation in words: "a whole number or none"."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path", types.NoneType: "none"}
    if len(arms(hint)) > 1:
        return " or ".join(map(in_words, arms(hint)))
    if get_origin(hint) is Literal:
        *others, last = map(str, get_args(hint))
        return f"{', '.join(others)} or {last}" if others else last
    if get_origin(hint) is tuple:
        args = get_args(hint)
        return (
            f"a list, each {in_words(args[0])}"
            if args[-1] is Ellipsis
            else f"{len(args)} values ({', '.join(map(in_words, args))})"
        )
    return names.get(hint, str(hint))


class _Dumper(yaml.SafeDumper):
    """Nested names as blocks, lists in one line."""


_Dumper.add_representer(list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True))
