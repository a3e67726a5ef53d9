"""The command about the machine: doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from cutset.cli import options
from cutset.cli.screen import native_output_to_stderr, print_json, progress


def doctor(
    trial: Annotated[
        bool, typer.Option("--try", help="also split, prove and run a small model")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Tell what this machine is and what Cutset can do on it, to paste into a bug report."""
    import msgspec

    from cutset.doctor import describe, examine_machine

    with native_output_to_stderr(), progress() as say:
        say("looking")
        examination = examine_machine(trial=trial)
    if as_json:
        print_json(msgspec.to_builtins(examination))
    else:
        typer.echo(describe(examination))
    if not examination.ok:
        raise typer.Exit(1)
