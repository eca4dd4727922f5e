"""The command line of every recipe and task, and configs saved and loaded. The help is tyro's; no other file imports it."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from mmm.config.overrides import (
    about_demonstration,
    apply_flags,
    group_flags,
    is_demonstration,
    parts_of,
    pull,
    sets_of,
    starting_point,
    swap_parts,
    use_file,
)
from mmm.config.serialize import from_dict, load, save, to_dict
from mmm.core.registry import REGISTRIES
from mmm.system.redact import Redacting, redact

__all__ = ["from_dict", "load", "main", "parse", "save", "to_dict"]

T = TypeVar("T")

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
    with plain_errors(rank, running=False):
        config = parse(presets, argv, doc=doc, prog=prog)
        if rank == 0 and is_demonstration(presets, dict(group_flags(argv))):
            print(about_demonstration(presets, prog or sys.argv[0]), flush=True)
    with plain_errors(rank, running=True):
        return run(config)


def parse(presets: Mapping[str, T] | T | type[T], argv: Sequence[str], *, doc: str = "", prog: str | None = None) -> T:
    """The config of one run: a preset or `--config FILE`, then the parts that are named, then all other flags.

    Raises:
        ValueError: one line that names the flag and the nearest choice.
        SystemExit: after --help.
    """
    flags = group_flags(token for token in argv if token not in HELP)
    for file in pull(flags, "use"):
        use_file(Path(file))
    config = swap_parts(starting_point(presets, flags), flags)
    if set(HELP) & set(argv):
        _help(config, presets, doc, prog)
    return apply_flags(config, flags)


def _help(config: Any, presets: Any, doc: str, prog: str | None) -> NoReturn:
    """Shows the flags of the chosen parts, and ends."""
    import tyro  # here: reading a saved config must not need it

    lines = [inspect.cleandoc(doc), "", "What to start from:"]
    if isinstance(presets, Mapping):
        demo = "; with neither one nor --data.source: demo" if "demo" in presets else ""
        lines.append(f"  --preset {{{','.join(presets)}}}: named values; the first is the paper's and the default{demo}")
    lines += ["  --config FILE: a saved config.yaml; other flags win over it"]
    lines += ["  --folder RUN --resume: the config of that run; flags that change what it computes need --allow"]
    lines += ["  --use FILE: a Python file that registers parts of your own; may be repeated"]
    lines += ["", "Parts; choosing one brings its own flags, shown below for those chosen now:"]
    for path, part in parts_of(config).items():
        lines.append(f"  --{path}.name {{{','.join(sorted(REGISTRIES[part.kind].parts))}}} (now: {part.name})")
    for path, parts in sets_of(config).items():
        lines.append(
            f"  --{path} [{{{','.join(sorted(REGISTRIES[parts.kind].parts))}}} ...] (now: {' '.join(parts.names) or 'none'})"
        )
    lines += [
        "",
        "`none` unsets what may be None. MMM_DEBUG=1 shows an error's traceback. Values below are those that other flags change.",
    ]
    with closed_output_ends_quietly():
        tyro.cli(
            type(config),
            default=config,
            args=["--help"],
            prog=prog,
            description="\n".join(lines),
            use_underscores=True,
            config=(tyro.conf.AvoidSubcommands,),  # what may be none (a second source) is shown as it is now
            console_outputs=os.environ.get("RANK", "0") == "0",
        )
    raise AssertionError("tyro ends after its help")


@contextlib.contextmanager
def closed_output_ends_quietly() -> Iterator[None]:
    """Ends the process without a traceback where the reader of its output, for instance `head`, reads no further."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's own flush at its end
        sys.exit(1)


def _show_messages(rank: int) -> None:
    """Shows what the library and the tasks log: all of rank 0, of the others warnings."""
    logging.basicConfig(format="%(message)s" if rank == 0 else f"rank {rank}: %(message)s")
    for handler in logging.getLogger().handlers:  # a filter of a logger would not see what its children log
        if not any(isinstance(own, Redacting) for own in handler.filters):
            handler.addFilter(Redacting())
    for name in ("mmm", "tasks"):
        logging.getLogger(name).setLevel(logging.INFO if rank == 0 else logging.WARNING)


@contextlib.contextmanager
def plain_errors(rank: int, *, running: bool) -> Iterator[None]:
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
            print(f"error{f' on rank {rank}' if rank else ''}: {redact(' '.join(said.split()))}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
