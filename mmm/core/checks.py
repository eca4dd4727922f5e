"""Checks of a config against the annotations of its fields: types, choices and ranges. Needs only the standard library.

A range is part of the annotation, `depth: Positive = 8`, so that no part has to check it.
"""

from __future__ import annotations

import difflib
import sys
import traceback
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


class FlagError(ValueError):
    """Error for a flag, name or value that does not exist or is not allowed. Detecting it needs no library."""


@dataclass(frozen=True)
class Limit:
    """The numbers that an annotation allows.

    Attributes:
        words: the words after "a number" or "a whole number" in messages.
        holds: returns whether a number is allowed; NaN is never allowed.
    """

    words: str
    holds: Callable[[float], bool]


Positive = Annotated[int, Limit("of at least 1", lambda value: value >= 1)]
Count = Annotated[int, Limit("of at least 0", lambda value: value >= 0)]
AboveZero = Annotated[float, Limit("above 0", lambda value: value > 0)]
NonNegative = Annotated[float, Limit("of at least 0", lambda value: value >= 0)]
Rate = Annotated[float, Limit("from 0 to below 1", lambda value: 0 <= value < 1)]
ZeroToOne = Annotated[float, Limit("from 0 to 1", lambda value: 0 <= value <= 1)]
Fraction = Annotated[float, Limit("between 0 and 1", lambda value: 0 < value < 1)]
Share = Annotated[float, Limit("above 0, at most 1", lambda value: 0 < value <= 1)]


@dataclass(frozen=True, kw_only=True)
class CheckedConfig:
    """Base of configs whose values are checked against the annotations of their fields."""

    def __post_init__(self) -> None:
        check_fields(self, self.flag)
        self.validate()

    @property
    def flag(self) -> str:
        """The prefix of the fields' names in flags and messages; empty for the flags of a task itself."""
        return ""

    def validate(self) -> None:
        """Raises ValueError if values are inconsistent; called after each value was checked separately."""


def check_fields(config: Any, kind: str) -> None:
    """Checks every field of a dataclass against its annotation.

    Args:
        config: the dataclass.
        kind: the prefix of the fields' names in messages, as in flags; may be empty.

    Raises:
        ValueError: a value is not allowed; the message names the field, the value and the allowed values.
    """
    hints = _hints(config.__class__)
    for field in fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        if not fits(hint, value):
            choices = [str(choice) for arm in arms(hint) if get_origin(arm) is Literal for choice in get_args(arm)]
            given = f"{value:g}" if isinstance(value, float) else type(value).__qualname__ if is_dataclass(value) else repr(value)
            name = f"{kind}.{field.name}" if kind else f"--{field.name}"
            raise FlagError(f"{name} {given} is not {in_words(hint)}{nearest(str(value), choices)}")


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def fits(hint: Any, value: Any) -> bool:
    """Returns whether a value has the annotated type, is one of its choices, and lies in its range."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = [limit for limit in args[1:] if isinstance(limit, Limit)]
        return fits(args[0], value) and all(limit.holds(value) for limit in limits)
    if len(arms(hint)) > 1:
        return any(fits(arm, value) for arm in args)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        each = args[:1] * len(value) if args[-1] is Ellipsis else args
        return len(each) == len(value) and all(map(fits, each, value))
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return not isinstance(hint, type) or isinstance(value, hint)


def arms(hint: Any) -> tuple[Any, ...]:
    """Returns the alternatives of an annotation, or the annotation itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def in_words(hint: Any) -> str:
    """Returns a description of an annotation: "a whole number or none"."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path", types.NoneType: "none"}
    origin, args = get_origin(hint), get_args(hint)
    if len(arms(hint)) > 1:
        return " or ".join(map(in_words, args))
    if origin is Annotated:
        return " ".join([in_words(args[0]), *(limit.words for limit in args[1:] if isinstance(limit, Limit))])
    if origin is Literal:
        *others, last = map(str, args)
        return f"{', '.join(others)} or {last}" if others else last
    if origin is tuple:
        return (
            f"a list, each {in_words(args[0])}"
            if args[-1] is Ellipsis
            else f"{len(args)} values ({', '.join(map(in_words, args))})"
        )
    return names.get(hint, hint.__qualname__ if isinstance(hint, type) else str(hint))


def nearest(word: str, choices: Iterable[str]) -> str:
    """Returns the end of an error message, "; did you mean 'block'?", or an empty string if no choice is similar."""
    near = difflib.get_close_matches(word, list(choices), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def suggest(word: str, choices: Iterable[str]) -> str:
    """Returns the end of an error message when there are few choices, "; did you mean 'train'? There are: train, val"."""
    choices = list(choices)
    near = nearest(word, choices)
    return f"{near} There are: {', '.join(choices)}" if near else f"; there are: {', '.join(choices) or 'none'}"


def one_line(error: BaseException) -> str:
    """Returns the type and the text of an error in one line, and the line of the user's file (`--use`) that raised it."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in sys.modules]  # named after its file
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


def check_width(kind: str, width: int, heads: int) -> None:
    """Raises ValueError if a transformer of this `kind` cannot have this width: it is odd, or not a multiple of the heads."""
    if width % 2:
        raise ValueError(f"{kind}.width {width} is odd, but sines and cosines need an even width; use {width + 1}")
    if width % heads:
        raise ValueError(f"{kind}.heads {heads} do not divide {kind}.width {width}; choose a divisor")
