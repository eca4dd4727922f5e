"""Parts by name: each part has a frozen `Config`, and each kind of part has a registry. Needs only the standard library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from functools import cache
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

from mmm.core.checks import CheckedConfig, nearest

T = TypeVar("T")
Part = TypeVar("Part", bound=type)

REGISTRIES: dict[str, Registry[Any]] = {}
"""Every registry by its kind ("masker"). The command line finds the choices for a part of a config here."""


@dataclass(frozen=True, kw_only=True)
class PartConfig(CheckedConfig):
    """Base of every part's `Config`, which contains the options of the part. Registering the part sets its name and kind.

    Every value is checked against its field's annotation: the type, a `Literal`'s choices, a range (`mmm.core.checks`).
    """

    name: ClassVar[str] = ""
    kind: ClassVar[str] = ""

    @property
    def flag(self) -> str:
        """The name of the group of flags, for messages."""
        return self.kind or type(self).__qualname__


class PartSet:
    """Several parts of one kind as one value of a config: a frozen dataclass with one field per part, named after the part.

    Each kind derives its own class, which is the annotation of a config's field:

    >>> class Lamps(PartSet):
    ...     kind = "lamp"
    >>> Lamps.of(DeskLamp.Config(watts=9)).desk.watts
    9
    """

    kind: ClassVar[str]

    @classmethod
    def of(cls, *configs: PartConfig) -> Self:
        """Returns the set of these parts, in this order.

        Raises:
            ValueError: a part occurs twice.
        """
        names = [config.name for config in configs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]} is named twice; each {cls.kind} is used once")
        declared = cls if "kind" in cls.__dict__ else cls.__base__  # so that `of` of an existing set also works
        return cast(Self, _set_of(cast(Any, declared), tuple(map(type, configs)))(*configs))

    def __iter__(self) -> Iterator[PartConfig]:
        return (getattr(self, name) for name in self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parts, in order."""
        return tuple(own.name for own in fields(self))  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[Any, ...]:  # needed because pickle cannot find a class that is made at run time
        return _restore_set, (type(self).__base__, *self)


@cache
def _set_of(kind: type[PartSet], configs: tuple[type[PartConfig], ...]) -> Any:
    """Returns the class of sets of these parts. Sets of the same parts have the same class, so that they can be equal."""
    parts = [(config.name, config, field(default_factory=config)) for config in configs]
    return make_dataclass(kind.__name__, parts, bases=(kind,), frozen=True)


def _restore_set(kind: type[PartSet], *configs: PartConfig) -> PartSet:
    return kind.of(*configs)


class Registry(Generic[T]):
    """The parts of one kind, by name.

    A part is a class with a nested `Config` and an `__init__(self, config, *, ...)` whose keyword arguments are determined by
    the other parts:

    >>> lamps = Registry("lamp")
    >>> @lamps.register("desk")
    ... class DeskLamp:
    ...     @dataclass(frozen=True, kw_only=True)
    ...     class Config(PartConfig):
    ...         watts: int = 7
    ...     def __init__(self, config, *, volts):
    ...         self.config, self.volts = config, volts
    >>> lamps.build(DeskLamp.Config(watts=9), volts=230).config
    DeskLamp.Config(watts=9)
    """

    def __init__(self, kind: str) -> None:
        """Creates an empty registry. `kind` is also the name of a task's field for such a part, and therefore of its flag."""
        assert kind not in REGISTRIES, f"two registries of kind {kind!r}"
        self.kind = kind
        self.parts: dict[str, type[T]] = {}
        REGISTRIES[kind] = self

    def register(self, name: str) -> Callable[[Part], Part]:
        """Returns a decorator that registers a class under this name.

        Raises:
            ValueError: the name is taken, a method is missing, the class has no `Config` of its own, or its `Config` is not valid.
        """

        def add(part: Part) -> Part:
            if name in self.parts:
                raise ValueError(
                    f"two parts are registered as {self.kind} {name!r}: {self.parts[name].__qualname__}, {part.__qualname__}"
                )
            missing = [one for one in dir(part) if getattr(getattr(part, one), "__isabstractmethod__", False)]
            if missing:
                raise ValueError(f"{part.__qualname__} lacks the methods {', '.join(missing)}; see docs/adding_a_part.md")
            config = _own_config(part)
            config.name, config.kind = name, self.kind
            self.parts[name] = part
            return part

        return add

    def __getitem__(self, name: str) -> type[T]:
        """Returns the part with this name.

        Raises:
            ValueError: there is none; the message contains all names and the most similar one.
        """
        if name not in self.parts:
            hint = nearest(name, self.parts) or "; to use your own, give the file that registers it with --use"
            raise ValueError(f"no {self.kind} is called {name!r}; choose from {', '.join(sorted(self.parts))}{hint}")
        return self.parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def build(self, config: PartConfig, **context: Any) -> T:
        """Builds the part that this config belongs to; `context` contains values determined by other parts (widths, the grid)."""
        return self[config.name](config, **context)  # type: ignore[call-arg]


def _own_config(part: type) -> type[PartConfig]:
    """Returns the part's own nested config. An inherited config would change the name of the part that defined it."""
    config = part.__dict__.get("Config")
    if not (isinstance(config, type) and issubclass(config, PartConfig) and "__dataclass_fields__" in config.__dict__):
        raise ValueError(f"{part.__qualname__} needs a nested `class Config(PartConfig)` of its own, a frozen kw_only dataclass")
    if config.__post_init__ is not CheckedConfig.__post_init__:
        raise ValueError(
            f"{config.__qualname__} has a `__post_init__`, which would skip the checks of its fields; call it `validate`"
        )
    for own in fields(config):
        if own.name == "name":
            raise ValueError(f"{config.__qualname__}.name: `name` is reserved for the part's name; rename the field")
        if own.default is MISSING and own.default_factory is MISSING:
            raise ValueError(f"{config.__qualname__}.{own.name} needs a default, so that the part can be chosen by its name alone")
    return config
