"""Where words go: answers to stdout, progress to stderr if that is a terminal.

All that the commands print passes here, and here names from outside lose their power over the
terminal (`cutset.printable`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from cutset.errors import CutsetError
from cutset.printable import printable, printable_json, printable_lines
from cutset.progress import Progress, no_progress

if TYPE_CHECKING:
    from rich.console import Console

    from cutset.planning.watch import Standing

_PIPE_COLUMNS = 100_000

NOTE = "%(topmost)s: %(message)s"
"""How a log record looks where nobody asked for logs."""


def stdout() -> Console:
    """The console for answers."""
    from cutset.report.text import PlainConsole

    # In a pipe nothing is folded, so that `grep` finds every name; COLUMNS asks for a width there.
    folds = sys.stdout.isatty() or "COLUMNS" in os.environ
    return PlainConsole(highlight=False, emoji=False, width=None if folds else _PIPE_COLUMNS)


@contextlib.contextmanager
def show_progress() -> Iterator[Progress]:
    """Shows on a terminal what is being done; says nothing in a pipe."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    if not console.is_terminal:
        yield no_progress
        return
    with console.status("starting") as status:
        yield lambda text: status.update(escape(printable(text)))


def planning_teller(progress: Progress, objective: str) -> Callable[[Standing], None]:
    """Says how planning stands, as `watching` tells it; in a pipe as well, in lines.

    Args:
        progress: as `show_progress` gives it.
        objective: ``"throughput"``, ``"latency"`` or ``"pareto"``.
    """
    from rich.console import Console

    shown = progress if Console(stderr=True).is_terminal else lambda line: tell(line, err=True)
    best_of = "one micro-batch alone" if objective == "latency" else "a micro-batch"

    def tell_standing(standing: Standing) -> None:
        line = f"planning for {standing.elapsed_s:.0f} s"
        if objective != "pareto":
            best_s, gap = standing.best_s, standing.gap
            line += ": no plan yet" if best_s is None else f": {best_s:.4g} s for {best_of}"
            line += "" if gap is None else f", at most {gap:.2%} above the least"
        shown(line)

    return tell_standing


@contextlib.contextmanager
def native_output_to_stderr() -> Iterator[None]:
    """Keeps what libraries print to file descriptor 1 away from the answers on stdout."""
    sys.stdout.flush()
    answers = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()  # what a library printed, but for the last buffer
        os.dup2(answers, 1)
        os.close(answers)


def tell(line: str, *, err: bool = False) -> None:
    """Prints a line."""
    typer.echo(printable(line), err=err)


def print_json(document: Any) -> None:
    """Prints one JSON document."""
    print_json_text(json.dumps(document, indent=2, ensure_ascii=False))


def print_json_text(text: str) -> None:
    """Prints a JSON document that is text already."""
    typer.echo(printable_json(text))


class LogFormatter(logging.Formatter):
    """Formats records for people: what a record says stays in its line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line."""
        record.message = printable(record.message)
        record.topmost = printable(record.name.partition(".")[0])
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """The traceback, a line for each of its own."""
        return printable_lines(super().formatException(ei))


def show_logs(*, verbose: bool) -> None:
    """Prints warnings to stderr from now on, or everything of interest."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter("%(name)s: %(message)s" if verbose else NOTE))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])


def show_traceback(
    kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    """What Python prints of an error that nobody caught; for `sys.excepthook`."""
    text = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write(printable_lines(text))


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all.

    Raises:
        CutsetError: the file cannot be written.
    """
    half = path.with_name(f".{path.name}.half")
    try:
        half.write_text(text, encoding="utf-8")
        half.replace(path)
    except OSError as error:
        raise CutsetError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            half.unlink(missing_ok=True)


def usage_error(text: str) -> NoReturn:
    """Ends the command as wrongly used (exit code 2)."""
    raise typer.BadParameter(text)
