"""The process that runs a bundle's programs in order to check them, and the other end of it.

Started by `cutset.launch`, so that it ends with its caller. It reads one `CheckRequest` from its
standard input and answers with messages on its standard output: the steps, each check as it ends,
the report. A message is four bytes with its length and a MessagePack document of one of the types
below; nothing else is ever decoded. Whatever the bundle makes of that process, the one that asked
sees a report:

* the process limits its own memory to what `cutset.bundles.allowance` grants, and is ended when it
  takes more all the same, or longer than is granted;
* when it ends early, by a signal for instance, the check that it was at fails and says so;
* it ends with the process that started it, and on Ctrl-C there.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import IO, TypeAlias

import msgspec
import psutil

from cutset import errors
from cutset.bundles.allowance import Allowance
from cutset.bundles.proof.checks import check_bundle, import_libraries
from cutset.bundles.proof.results import CHECKS, CheckResult, Difference, VerificationReport
from cutset.errors import BundleError, EngineError
from cutset.host import limit_memory
from cutset.processes import LastWords, command_of, encodable, made_environment
from cutset.progress import Progress

_MAX_MESSAGE_BYTES = 64 << 20
_LENGTH_BYTES = 4
_LOOK_EVERY_S = 0.2
_WORDS_CHARS = 300
_END_TIMEOUT_S = 10.0
_STANDARD_INPUT = 0


class CheckRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to check; `directory` is the folder's name as the system has it."""

    directory: bytes
    stages: tuple[int, ...] | None
    backends: tuple[str, ...]
    memory_bytes: int


class Step(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What is done now, and for which check."""

    check: str
    words: str


class Checked(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A check has ended."""

    result: CheckResult


class RaisedError(msgspec.Struct, frozen=True, kw_only=True):
    """A `BundleError`: name of its class, message, and those of its attributes that are strings."""

    kind: str
    message: str
    details: dict[str, str]


class Done(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The fields of a `VerificationReport`."""

    checks: tuple[CheckResult, ...]
    max_abs_error: float | None
    bit_exact: bool
    differences: tuple[Difference, ...]
    comparisons: tuple[Difference, ...]
    error: RaisedError | None
    not_run: tuple[str, ...]


Message: TypeAlias = Step | Checked | Done


def check_in_child(
    directory: Path,
    *,
    stages: tuple[int, ...] | None,
    backends: Collection[str],
    allowance: Allowance,
    num_threads: int,
    progress: Progress,
    command: tuple[str, ...] | None = None,
) -> VerificationReport:
    """Checks a bundle in a process of its own; its end, however it comes, is in the report.

    Args:
        directory: the bundle's folder.
        stages: indices of the stages to look at; None for all.
        backends: as for `verify_bundle`.
        allowance: what the process may take.
        num_threads: threads to compute with.
        progress: called with a few words before each step.
        command: the command line of the process; None for the one of this module.

    Raises:
        BundleError: no process can be started.
    """
    try:
        # This interpreter and a fixed program; what is asked goes through the pipe.
        process = subprocess.Popen(  # noqa: S603
            command or command_of("verification", caller=os.getpid(), control=_STANDARD_INPUT),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=made_environment(num_threads),
        )
    except (OSError, EngineError) as error:
        raise BundleError(f"{directory}: no process can be started to check it: {error}") from error
    request = CheckRequest(
        directory=os.fsencode(directory.absolute()),
        stages=stages,
        backends=tuple(backends),
        memory_bytes=allowance.memory_bytes,
    )
    return _Child(process, allowance, progress).report_on(request)


class _Overrun(Exception):  # ends the reading; never leaves this module
    """The process took more than it may, in words."""


class _Child:
    """The caller's end of one such process."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        allowance: Allowance,
        progress: Progress,
    ) -> None:
        self._process = process
        self._allowance = allowance
        self._progress = progress
        self._deadline_s = time.monotonic() + allowance.time_s
        self._has_spoken = False
        self._base_bytes: int | None = None
        self._buffer = bytearray()
        self._check = CHECKS[-1]
        self._ended: dict[str, CheckResult] = {}
        assert process.stderr is not None
        self._words = LastWords(process.stderr, f"checking-{process.pid}")

    def report_on(self, request: CheckRequest) -> VerificationReport:
        try:
            self._ask(request)
            while (message := self._next()) is not None:
                self._has_spoken = True
                if isinstance(message, Done):
                    return _report_of(message)
                if isinstance(message, Step):
                    self._check = message.check
                    self._progress(message.words)
                else:
                    self._ended[message.result.name] = message.result
            why = self._last_words()
        except _Overrun as overrun:
            why = str(overrun)
        except (msgspec.MsgspecError, ValueError) as error:
            why = f"said what no checking process says ({error})"
        finally:
            self._end()
        return self._broken(f"the process that runs the bundle's programs {why}")

    def _ask(self, request: CheckRequest) -> None:
        assert self._process.stdin is not None
        # A process that is gone already says why through its other pipes.
        with contextlib.suppress(OSError):
            _write(self._process.stdin, msgspec.msgpack.encode(request))

    def _next(self) -> Message | None:
        """The next message; None where the process has closed its end."""
        head = self._take(_LENGTH_BYTES)
        if head is None:
            return None
        length = int.from_bytes(head, "little")
        if length > _MAX_MESSAGE_BYTES:
            raise ValueError(f"a message of {length} bytes")
        data = self._take(length)
        return None if data is None else msgspec.msgpack.decode(data, type=Message)

    def _take(self, num_bytes: int) -> bytes | None:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while len(self._buffer) < num_bytes:
            self._watch()
            if not select.select([descriptor], [], [], _LOOK_EVERY_S)[0]:
                continue
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                return None
            self._buffer += piece
        taken = bytes(self._buffer[:num_bytes])
        del self._buffer[:num_bytes]
        return taken

    def _watch(self) -> None:
        if time.monotonic() > self._deadline_s:
            raise _Overrun(
                f"was ended after {self._allowance.time_s:.0f} s, which is all that its stated work"
                " allows"
            )
        with contextlib.suppress(psutil.Error):
            held_bytes = psutil.Process(self._process.pid).memory_info().rss
            if self._base_bytes is None:
                # Its libraries are loaded when it first speaks.
                self._base_bytes = held_bytes if self._has_spoken else None
            elif held_bytes - self._base_bytes > self._allowance.memory_bytes:
                raise _Overrun(
                    f"was ended: it took more than the {self._allowance.memory_bytes:,} bytes of"
                    " memory that the bundle's stated sizes allow"
                )

    def _last_words(self) -> str:
        """How the process ended that closed its end of the pipe."""
        try:
            code = self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "closed its connection and did not end"
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            how = f"was ended by {name}"
        else:
            how = f"left with exit status {code}"
        words = self._words.last(_END_TIMEOUT_S)
        return how + (f"; its last words: {words[:_WORDS_CHARS]}" if words else "")

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()

    def _broken(self, what: str) -> VerificationReport:
        """The report on a bundle whose check did not come to its end."""
        checks = [
            self._ended.get(name)
            or CheckResult(
                name=name,
                ok=False,
                detail=what if name == self._check else f"not checked: see {self._check}",
            )
            for name in CHECKS
        ]
        return VerificationReport(checks=tuple(checks), max_abs_error=None, bit_exact=False)


def _report_of(done: Done) -> VerificationReport:
    return VerificationReport(
        checks=done.checks,
        max_abs_error=done.max_abs_error,
        bit_exact=done.bit_exact,
        differences=done.differences,
        comparisons=done.comparisons,
        error=None if done.error is None else _rebuilt(done.error),
        not_run=done.not_run,
    )


def _rebuilt(refusal: RaisedError) -> BundleError:
    """The error that the process met, as an object of its class."""
    kind = getattr(errors, refusal.kind, BundleError)
    if isinstance(kind, type) and issubclass(kind, BundleError):
        with contextlib.suppress(TypeError):
            return kind(refusal.message, **refusal.details)
    return BundleError(refusal.message, path=refusal.details.get("path"))


def _write(stream: IO[bytes], data: bytes) -> None:
    stream.write(len(data).to_bytes(_LENGTH_BYTES, "little") + data)
    stream.flush()


# -- in the process ------------------------------------------------------------------------------


def main() -> None:
    """Answers one request."""
    # What libraries print must not come between the messages.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    source = sys.stdin.buffer
    length = source.read(_LENGTH_BYTES)
    if len(length) < _LENGTH_BYTES:
        raise SystemExit("nothing was asked")  # whoever started it is gone
    data = source.read(int.from_bytes(length, "little"))
    request = msgspec.msgpack.decode(data, type=CheckRequest)
    directory = os.fsdecode(request.directory)
    import_libraries(directory)
    limit_memory(request.memory_bytes)

    def tell(message: Message) -> None:
        try:
            data = msgspec.msgpack.encode(message)
        except UnicodeEncodeError:
            data = msgspec.msgpack.encode(encodable(msgspec.to_builtins(message)))
        _write(answers, data)

    try:
        report = check_bundle(
            directory,
            stages=request.stages,
            backends=request.backends,
            on_step=lambda check, words: tell(Step(check=check, words=words)),
            on_check=lambda result: tell(Checked(result=result)),
        )
        tell(_done(report))
    except MemoryError:
        sys.stderr.write(
            f"it needs more than the {request.memory_bytes:,} bytes of memory that the bundle's"
            " stated sizes allow\n"
        )
        sys.stderr.flush()
        os._exit(1)
    # Libraries of backends may still have threads; nothing is left to be written.
    os._exit(0)


def _done(report: VerificationReport) -> Done:
    error = report.error
    details = {} if error is None else vars(error)
    return Done(
        checks=report.checks,
        max_abs_error=report.max_abs_error,
        bit_exact=report.bit_exact,
        differences=report.differences,
        comparisons=report.comparisons,
        not_run=report.not_run,
        error=None
        if error is None
        else RaisedError(
            kind=type(error).__name__,
            message=str(error),
            details={key: text for key, text in details.items() if isinstance(text, str)},
        ),
    )
