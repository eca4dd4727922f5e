"""The text that `--help` prints: the starting point of a config, its parts, and its flags with their values and descriptions."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin

from mmm.config.overrides import part_configs, sets_of, walk
from mmm.config.serialize import to_dict
from mmm.core.checks import arms
from mmm.core.registry import REGISTRIES

# the flags that `--help` shows if a config has them; `--help_all` shows every flag
COMMON = (
    *("model", "source", "data.source", "second.data.source", "data.image_size", "data.workers", "masker.ratio", "encoder.size"),
    *("train.epochs", "train.steps", "train.batch_size", "train.micro_batch_size", "train.learning_rate"),
    *("evaluate", "folder", "resume", "dry_run"),
)
FEW = 25  # a config with at most this number of flags is shown completely


def help_text(config: Any, presets: Any, doc: str, prog: str, *, everything: bool) -> str:
    """Returns the help of a command.

    Args:
        config: the config after the flags that choose its starting point and its parts, but not those that set single values.
        presets: see `mmm.config.cli.main`.
        doc: text that is printed first, with its own line breaks.
        prog: the command without its flags.
        everything: list all flags, and not only the most used ones.
    """
    flags = {path: (hint, value) for path, hint, value in walk(config) if not dataclasses.is_dataclass(value)}
    chosen = set(flags) if everything or len(flags) <= FEW else set(COMMON) & set(flags)
    title = "Flags:" if chosen == set(flags) else f"Most used flags (--help_all lists all {len(flags)}):"
    lines = [
        f"usage: {prog} [--FLAG VALUE ...]",
        "",
        doc.strip(),
        "",
        "Starting point:",
        *_starting_points(presets, runs={"folder", "resume"} <= flags.keys()),
    ]
    texts = field_texts(config)
    if parts := part_configs(config):
        lines += ["", "Parts. Choosing another part changes which flags exist; the flags below are those of the current ones:"]
        lines += [f"  --{path}.name {part.name}  {_choices(sorted(REGISTRIES[part.kind].parts))}" for path, part in parts.items()]
    for path, chosen_parts in sets_of(config).items():
        choices = _choices(sorted(REGISTRIES[chosen_parts.kind].parts))
        lines += _entry(f"--{path} {' '.join(chosen_parts.names)}  {choices}", texts.get(path, ""))
    lines += ["", title]
    for path in flags:
        if path in chosen:
            lines += _flag(path, *flags[path], texts.get(path, ""))
    return "\n".join([*lines, "", "`none` unsets a value. The environment variable MMM_DEBUG=1 shows the traceback of an error."])


def _starting_points(presets: Any, *, runs: bool) -> Iterator[str]:
    """Yields the flags that choose the config which the other flags change.

    Args:
        presets: see `mmm.config.cli.main`.
        runs: whether the task makes runs, which can be resumed.
    """
    if isinstance(presets, Mapping):
        demo = " Default without --data.source: demo." if "demo" in presets else ""
        yield from _entry(f"--preset {_choices(list(presets))}", f"Named values; the first are those of the publication.{demo}")
    yield from _entry("--config FILE", "A saved config.yaml.")
    if runs:
        yield from _entry("--folder RUN --resume", "Continue this run with its config.")
    yield from _entry("--use FILE", "A Python file that registers your own parts. May be repeated.")


def _flag(path: str, hint: Any, value: Any, text: str) -> Iterator[str]:
    """Yields the lines of one flag: its value, its choices if there are any, and its description."""
    plain = to_dict(value)
    shown = (
        " ".join(map(str, plain)) if isinstance(plain, list) else str(plain).lower() if plain in (None, True, False) else str(plain)
    )
    options = [str(choice) for arm in arms(hint) for choice in _literals(arm)]
    yield from _entry(f"--{path} {shown}".rstrip() + (f"  {_choices(options)}" if options else ""), text)


def _literals(hint: Any) -> tuple[Any, ...]:
    """Returns the choices of a Literal, or of a list of Literals."""
    if get_origin(hint) is tuple:
        return _literals(get_args(hint)[0])
    return get_args(hint) if get_origin(hint) is Literal else ()


def _choices(names: list[str]) -> str:
    return "{" + ", ".join(names) + "}"


def _entry(flag: str, text: str) -> Iterator[str]:
    yield f"  {flag}"
    width = min(shutil.get_terminal_size((120, 24)).columns, 132)
    yield from textwrap.wrap(text, max(width, 40), initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False)


def field_texts(config: Any, where: str = "") -> dict[str, str]:
    """Returns the text under each field of a config's class, by the dotted name of the field. Needs the source of the class."""
    texts: dict[str, str] = {}
    for kind in reversed(type(config).__mro__):
        if "__dataclass_fields__" in kind.__dict__:
            try:
                source = inspect.getsource(kind)
            except OSError:
                continue
            for field, text in pairwise(ast.parse(textwrap.dedent(source)).body[0].body):  # type: ignore[attr-defined]
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                    texts[f"{where}{ast.unparse(field.target)}"] = " ".join(str(text.value.value).split())
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            texts |= field_texts(value, f"{where}{field.name}.")
    return texts
