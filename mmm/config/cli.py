"""The command line of every recipe and task: turns flags into a config, runs the task, and reports a mistake in one line."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mmm.config.overrides import (
    about_demonstration,
    apply_flags,
    group_flags,
    is_demonstration,
    pull,
    starting_point,
    swap_parts,
    use_file,
)
from mmm.system.redact import Redacting, redact

T = TypeVar("T")

HELP, HELP_ALL = {"-h", "--help"}, {"--help_all", "--help-all"}
GRACE = 5.0  # seconds that other processes wait for the launcher to end them, after rank 0 has printed the error


def main(
    run: Callable[[T], dict[str, Any]],
    *,
    presets: Mapping[str, T] | T | type[T],
    doc: str,
    argv: Sequence[str] | None = None,
    prog: str | None = None,
) -> dict[str, Any]:
    """Reads the command line and runs a task. A mistake of the user ends the process with one line and exit code 2.

    Args:
        run: the task.
        presets: configs by name, that of the publication first; `demo` runs if neither a preset nor --data.source is given. Or
            one default config. Or the config's type: the values are then its defaults or those of --config.
        doc: shown by --help.
        argv: arguments without the program's name. None: those of this process.
        prog: the command as the user types it, without flags. None: that of this process.

    Returns:
        The task's results.
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
    """Returns the config of one run: a preset or `--config FILE`, changed by the flags that name parts, then by all other flags.

    Raises:
        ValueError: one line that names the flag and the nearest choice.
        SystemExit: after --help.
    """
    flags = group_flags(token for token in argv if token not in HELP | HELP_ALL)
    for file in pull(flags, "use"):
        use_file(Path(file))
    config = swap_parts(starting_point(presets, flags), flags)
    if (HELP | HELP_ALL) & set(argv):
        from mmm.config.help import help_text

        text = help_text(config, presets, doc, prog or sys.argv[0], everything=bool(HELP_ALL & set(argv)))
        if os.environ.get("RANK", "0") == "0":
            with closed_output_ends_quietly():
                print(text)
        sys.exit(0)
    return apply_flags(config, flags)


@contextlib.contextmanager
def closed_output_ends_quietly() -> Iterator[None]:
    """Ends the process without a traceback if the reader of its output, for instance `head`, stops reading."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more when it exits
        sys.exit(1)


def _show_messages(rank: int) -> None:
    """Shows the log messages of the library and the tasks: all of rank 0, warnings of the other ranks."""
    logging.basicConfig(format="%(message)s" if rank == 0 else f"rank {rank}: %(message)s")
    for handler in logging.getLogger().handlers:  # a filter of a logger does not get the messages of its child loggers
        if not any(isinstance(own, Redacting) for own in handler.filters):
            handler.addFilter(Redacting())
    for name in ("mmm", "tasks"):
        logging.getLogger(name).setLevel(logging.INFO if rank == 0 else logging.WARNING)


@contextlib.contextmanager
def plain_errors(rank: int, *, running: bool) -> Iterator[None]:
    """Ends the process with exit code 2 and one line after a ValueError, or an OSError that names a file.

    A launcher ends all processes when the first one ends, so the other ranks wait until rank 0 has printed its line. All ranks
    find the same mistake in a command line. While `running`, a mistake that only another rank finds is printed by that rank.
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
