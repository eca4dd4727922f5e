"""Configs as plain values and as YAML: nested frozen dataclasses, in which each part is stored with its name.

Flags and YAML files are converted by the same function, `from_dict`, so that both have the same meaning.
"""

from __future__ import annotations

import contextlib
import dataclasses
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from mmm.core.checks import FlagError, arms, in_words, nearest
from mmm.core.registry import REGISTRIES, PartConfig, PartSet

T = TypeVar("T")


def save(config: Any, path: str | Path) -> None:
    """Writes a config as YAML, with the name of every part. Equal configs are written as equal bytes.

    Raises:
        ValueError: the file would not load to an equal object.
    """
    again = from_dict(type(config), to_dict(config))  # also turns an int into a float if the field is a float
    if again != config:
        raise ValueError(f"this config would not load to an equal object: {config}")
    Path(path).write_text(yaml.dump(to_dict(again), Dumper=_Dumper, sort_keys=False, width=120), encoding="utf-8")


def load(kind: type[T], path: str | Path) -> T:
    """Reads a config of this type that `save` wrote. Fields that the file lacks take the type's defaults.

    Raises:
        ValueError: names the file, the field and the nearest choice.
        OSError: the file cannot be read.
    """
    try:
        return from_dict(kind, read_yaml(Path(path).read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_yaml(text: str) -> Any:
    """Reads nested dicts, lists and scalars. Safe for untrusted files.

    Raises:
        yaml.YAMLError: the text is not YAML, names a Python type, repeats values by aliases, or is nested too deeply.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    finally:
        loader.dispose()


def to_dict(config: Any) -> Any:
    """Returns nested dicts, lists and scalars, with the `name` of every part; in a set of parts, the names are the keys."""
    if isinstance(config, PartSet):
        return {part.name: {name: value for name, value in to_dict(part).items() if name != "name"} for part in config}
    if dataclasses.is_dataclass(config):
        name = {"name": config.name} if isinstance(config, PartConfig) else {}
        return name | {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, tuple):
        return [to_dict(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def from_dict(kind: type[T], tree: Any, where: str = "") -> T:
    """Inverts `to_dict`. A scalar may also be text, as it is on the command line.

    Args:
        kind: the config's type.
        tree: its values by name.
        where: prefix of names in messages.

    Raises:
        ValueError: a name is unknown or missing, or a value does not fit its field.
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
    """Converts the value of a field: a part, a nested config, or a plain value."""
    if isinstance(hint, type) and issubclass(hint, PartConfig) and isinstance(value, Mapping):
        if "name" not in value:
            raise ValueError(f"{where}{name}.name is missing")
        assert (hint.kind or name) in REGISTRIES, f"a field that holds a part has the name of the part's kind, {name!r} has not"
        try:
            config = REGISTRIES[hint.kind or name][str(value["name"])].Config
        except ValueError as error:
            raise FlagError(f"{where}{name}.name: {error}") from None
        if not issubclass(config, hint):
            raise ValueError(f"{where}{name}.name: the Config of {value['name']!r} must extend {hint.__qualname__}")
        return from_dict(config, {key: value[key] for key in value if key != "name"}, f"{where}{name}.")
    if isinstance(hint, type) and issubclass(hint, PartSet):
        return _part_set(hint, value, f"{where}{name}.")
    nested = [arm for arm in arms(hint) if dataclasses.is_dataclass(arm)]
    if nested and (value is not None or hint in nested):
        kind: Any = nested[0]
        if hasattr(kind, "variant") and isinstance(value, Mapping):  # data: images or clips, according to the field names
            kind = kind.variant(set(value))
        return from_dict(kind, value, f"{where}{name}.")
    try:
        return _convert(hint, value)
    except (ValueError, TypeError):
        given = " ".join(map(str, value)) if isinstance(value, list) else value
        choices = [choice for arm in arms(hint) if get_origin(arm) is Literal for choice in map(str, get_args(arm))]
        raise FlagError(f"{where}{name}: {given!r} is not {in_words(hint)}{nearest(str(given), choices)}") from None


def _part_set(kind: type[PartSet], value: Any, where: str) -> PartSet:
    """Converts a set of parts, given as their values by name or as their names alone."""
    named = value if isinstance(value, Mapping) else dict.fromkeys([value] if isinstance(value, str) else value or ())
    configs = []
    for name, tree in named.items():
        try:
            config = REGISTRIES[kind.kind][str(name)].Config
        except ValueError as error:
            raise FlagError(f"{where.removesuffix('.')}: {error}") from None
        configs.append(from_dict(config, {} if tree is None else tree, f"{where}{name}."))
    return kind.of(*configs)


def _convert(hint: Any, value: Any) -> Any:
    """Converts a plain value to its annotation. Raises ValueError or TypeError if it does not fit."""
    origin, args = get_origin(hint), get_args(hint)
    if len(arms(hint)) > 1:
        for arm in sorted(args, key=lambda arm: arm is not types.NoneType):  # None first, otherwise `none` would become a text
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


class _Loader(yaml.SafeLoader):
    """Refuses aliases: a dozen lines of them can stand for a billion values, which every message and copy would write out."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases (*{self.peek_event().anchor}) are not supported; write the value itself")
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Writes nested names as blocks and lists in one line."""


_Dumper.add_representer(list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True))
