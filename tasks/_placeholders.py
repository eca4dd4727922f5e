"""Placeholders for torch and other libraries, with which the flags of a command can be read without importing them.

Flags are the fields of configs. Configs are declared in the files of tasks, recipes and parts, next to code that imports torch, and
torch takes several times as long to import as all of these files. None of them computes anything when it is imported, so that the
configs are the same with placeholders, which support every attribute, call and subclass.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

OWN = ("mmm", "tasks", "recipes")
REAL = {*sys.stdlib_module_names, *OWN, "yaml", "_yaml"}  # yaml reads saved configs


@contextmanager
def placeholders() -> Iterator[None]:
    """Imports placeholders instead of libraries inside the `with` block. Then removes them and all modules that imported them."""
    before, finder = set(sys.modules), _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in OWN or isinstance(sys.modules[name], _Placeholder):
                del sys.modules[name]


class _Placeholder(ModuleType):
    """A module, class, function or value of a library."""

    __iter__ = None  # otherwise `__getitem__` would make it an endless sequence

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Placeholder(name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return args[0] if args and callable(args[0]) else self  # as a decorator, it returns the function or class

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return ()

    def __getitem__(self, key: Any) -> Any:
        return self

    def __or__(self, other: Any) -> Any:
        return self

    __ror__ = __or__


class _Finder(MetaPathFinder, Loader):
    """Finds a placeholder for each module that belongs neither to mmm nor to the standard library."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return None if name.partition(".")[0] in REAL else ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Placeholder(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Does nothing, because a placeholder has no code."""
