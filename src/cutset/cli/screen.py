"""Where words go: answers to stdout, progress to stderr if that is a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from cutset.errors import CutsetError

if TYPE_CHECKING:
    from rich.console import Console

Say = Callable[[str], None]


def stdout() -> Console:
    """The console for answers."""
    from rich.console import Console

    return Console(highlight=False)


@contextlib.contextmanager
def progress() -> Iterator[Say]:
    """Shows on a terminal what is being done; says nothing in a pipe."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _text: None
        return
    with console.status("starting") as status:
        yield lambda text: status.update(escape(text))


@contextlib.contextmanager
def native_output_to_stderr() -> Iterator[None]:
    """Keeps what libraries print to file descriptor 1 away from the answers on stdout.

    gloo announces its connections there with some versions of torch.
    """
    sys.stdout.flush()
    answers = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()  # what a library printed, but for the last buffer
        os.dup2(answers, 1)
        os.close(answers)


def print_json(document: Any) -> None:
    """Prints one JSON document."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


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
