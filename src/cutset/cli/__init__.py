"""The command line: parse, call one library function, print, exit code.

Answers go to stdout, all else to stderr. Heavy libraries are imported inside the commands, so
that ``cutset --help`` answers at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import types
from collections.abc import Iterator
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from cutset.cli import bundle_commands, hosts, machine, model_commands, reporting, serving
from cutset.cli.screen import show_logs, show_traceback
from cutset.errors import CutsetError
from cutset.extras import naming_extras
from cutset.printable import printable
from cutset.version import __version__


class _Commands(TyperGroup):
    """The commands; what the parser says of a wrong argument cannot steer the terminal."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _plain_words():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _plain_words():
            return super().invoke(ctx)


@contextlib.contextmanager
def _plain_words() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message"):  # the parser's own, which typer does not name
            error.message = printable(error.message)  # type: ignore[attr-defined]
        raise


app = typer.Typer(
    name="cutset",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Split a trained PyTorch model where its architecture allows, prove the pieces equal "
    "to the whole, and run them as a pipeline.",
)
for command in (
    model_commands.inspect,
    model_commands.profile,
    model_commands.plan,
    model_commands.split,
    bundle_commands.verify,
    bundle_commands.run,
    bundle_commands.bench,
    serving.serve,
    reporting.report,
    machine.doctor,
    machine.probe,
):
    app.command()(command)
app.add_typer(bundle_commands.app, name="bundle")
app.add_typer(hosts.app, name="hosts")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"cutset {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(help="show the traceback of an error")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="log to stderr")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_version, is_eager=True, help="print and leave"),
    ] = False,
) -> None:
    # `main` looks at --debug itself: an error must be shown whatever state the parser is in.
    del debug
    show_logs(verbose=verbose)


class _Interrupted(BaseException):
    """Ctrl-C or SIGTERM: every `finally` runs, so that no process and no half-written file stay."""


def _interrupt(number: int, _frame: types.FrameType | None) -> NoReturn:
    # A second signal must not interrupt the clean-up that the first one began.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise _Interrupted(number)


def main() -> None:
    """Runs the command line and leaves with its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    # torch would warn of every address without a name, as most of a small cluster's are.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        with naming_extras():
            app()
    except CutsetError as error:
        if "--debug" in sys.argv:
            sys.excepthook = show_traceback
            raise
        # One line: a message from below may have several.
        sys.stderr.write(f"cutset: {printable(' '.join(str(error).split()))}\n")
        raise SystemExit(error.exit_code) from None
    except Exception:
        sys.excepthook = show_traceback
        raise
    except _Interrupted as interrupted:
        sys.stderr.write("cutset: interrupted\n")
        raise SystemExit(128 + interrupted.args[0]) from None
