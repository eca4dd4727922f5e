"""Parts by name: a part's own frozen `Config`, and one registry for each kind of part. The standard library is all it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from functools import cache
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

from mmm.core.checks import CheckedConfig, nearest

T = TypeVar("T")
Part = TypeVar("Part", bound=type)

REGISTRIES: dict[str, Registry[Any]] = {}
"""Every registry by its kind ("masker"): how the command line finds the choices for a part that a config holds."""


@dataclass(frozen=True, kw_only=True)
class PartConfig(CheckedConfig):
    """Base of every part's `Config`: what a user chooses of it. Registering the part fills in name and kind.

    Every value is checked against its field's annotation: the type, a `Literal`'s choices, a range (`mmm.core.checks`).
    """

    name: ClassVar[str] = ""
    kind: ClassVar[str] = ""

    @property
    def flag(self) -> str:
        """The name of its flags' group, for messages."""
        return self.kind or type(self).__qualname__


class PartSet:
    """Several parts of one kind as one value of a config: a frozen dataclass whose fields are their configs, under their names.

    A kind derives a class of its own, with which a config's field is annotated:

    >>> class Lamps(PartSet):
    ...     kind = "lamp"
    >>> Lamps.of(DeskLamp.Config(watts=9)).desk.watts
    9
    """

    kind: ClassVar[str]

    @classmethod
    def of(cls, *configs: PartConfig) -> Self:
        """The set of these parts, in this order.

        Raises:
            ValueError: where one is there twice.
        """
        names = [config.name for config in configs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]} is named twice; each {cls.kind} is used once")
        declared = cls if "kind" in cls.__dict__ else cls.__base__  # not the class of a set that is there already
        return cast(Self, _set_of(cast(Any, declared), tuple(map(type, configs)))(*configs))

    def __iter__(self) -> Iterator[PartConfig]:
        return (getattr(self, name) for name in self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parts, in their order."""
        return tuple(own.name for own in fields(self))  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[Any, ...]:  # the class is made at run time, so that pickle cannot find it
        return _restore_set, (type(self).__base__, *self)


@cache
def _set_of(kind: type[PartSet], configs: tuple[type[PartConfig], ...]) -> Any:
    """The class of sets of these parts; sets of the same parts are of the same class, and can be equal."""
    parts = [(config.name, config, field(default_factory=config)) for config in configs]
    return make_dataclass(kind.__name__, parts, bases=(kind,), frozen=True)


def _restore_set(kind: type[PartSet], *configs: PartConfig) -> PartSet:
    return kind.of(*configs)


class Registry(Generic[T]):
    """The parts of one kind, by name.

    A part is a class with its own nested `Config` and an `__init__(self, config, *, ...)` whose keyword arguments are what the
    other parts dictate:

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
        """An empty registry of this kind, which is also the name of a task's field, and so of the flag, for such a part."""
        assert kind not in REGISTRIES, f"two registries of kind {kind!r}"
        self.kind = kind
        self.parts: dict[str, type[T]] = {}
        REGISTRIES[kind] = self

    def register(self, name: str) -> Callable[[Part], Part]:
        """A decorator that gives a class this name.

        Raises:
            ValueError: where the name is taken, or the class has no `Config` of its own, or that cannot stand alone.
        """

        def add(part: Part) -> Part:
            if name in self.parts:
                raise ValueError(f"two parts are {self.kind} {name!r}: {self.parts[name].__qualname__}, {part.__qualname__}")
            config = _own_config(part)
            config.name, config.kind = name, self.kind
            self.parts[name] = part
            return part

        return add

    def __getitem__(self, name: str) -> type[T]:
        """The part of this name.

        Raises:
            ValueError: where there is none; it names all and the nearest.
        """
        if name not in self.parts:
            hint = nearest(name, self.parts) or "; one of your own: --use the file that registers it"
            raise ValueError(f"no {self.kind} is called {name!r}; choose from {', '.join(sorted(self.parts))}{hint}")
        return self.parts[name]

    def build(self, config: PartConfig, **context: Any) -> T:
        """The part that this config belongs to; `context` is what the other parts dictate (widths, the grid)."""
        return self[config.name](config, **context)  # type: ignore[call-arg]


def _own_config(part: type) -> type[PartConfig]:
    """The part's nested config; not an inherited one, which would lose its first owner's name."""
    config = part.__dict__.get("Config")
    if not (isinstance(config, type) and issubclass(config, PartConfig) and "__dataclass_fields__" in config.__dict__):
        raise ValueError(f"{part.__qualname__} needs a nested `class Config(PartConfig)` of its own, a frozen kw_only dataclass")
    if config.__post_init__ is not CheckedConfig.__post_init__:
        raise ValueError(
            f"{config.__qualname__} has a `__post_init__`, which would skip the checks of its fields; call it `validate`"
        )
    for own in fields(config):
        if own.name == "name":
            raise ValueError(f"{config.__qualname__}.name: `name` is the part's own, call the field otherwise")
        if own.default is MISSING and own.default_factory is MISSING:
            raise ValueError(f"{config.__qualname__}.{own.name} needs a default, so that the part can be chosen by its name alone")
    return config
