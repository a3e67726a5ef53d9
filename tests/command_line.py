"""Calls the command within this process: importing torch anew for each call would take minutes."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from cutset.cli import main


class Outcome(NamedTuple):
    """How the command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    @property
    def error_lines(self) -> list[str]:
        return self.err.strip().splitlines()


Cutset = Callable[..., Outcome]


def call_cutset(*arguments: object) -> Outcome:
    """What ``cutset ARGUMENTS`` prints on 80 columns that are no terminal."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cutset", *map(str, arguments)])
        patch.setenv("COLUMNS", "80")
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 0
        finally:
            for each, handler in handlers.items():
                signal.signal(each, handler)
    return Outcome(code, out.getvalue(), err.getvalue())
