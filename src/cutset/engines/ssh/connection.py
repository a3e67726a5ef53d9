"""The caller's end of a connection to a board: calls with limits, files, a worker's messages."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cutset.bundles.file_entries import FileEntry
from cutset.cluster.devices import Cluster
from cutset.engines.control import ControlPipes
from cutset.engines.local import ended_by
from cutset.engines.protocol import Command, Event
from cutset.engines.remote_host import (
    ANSWER_TIMEOUT_S,
    HostAwayError,
    HostEndedError,
    RemoteHost,
    require_same_version,
)
from cutset.engines.ssh.board_calls import GREETING, HERE_EVERY_S, BoardAnswer, BoardCall
from cutset.engines.ssh.client import Target
from cutset.engines.ssh.troubles import Trouble, trouble_of
from cutset.errors import BundleError, EngineError
from cutset.processes import LastWords

_TICK_S = 0.25
_REAP_S = 5.0
_PIECE_BYTES = 256 << 10
_MOST_LINES_BEFORE = 1000
_NEVER = float("inf")
_SSH_FAILED = 255
_BY_SIGNAL = 128


class TroubleError(HostAwayError):
    """The device cannot be used; says why and what to do."""

    def __init__(self, device: str, trouble: Trouble) -> None:
        super().__init__(f"{device}: {trouble}")
        self.trouble = trouble


class SshHost(RemoteHost):
    """A process of ssh whose other end is a `cutset.engines.ssh.board.Board`, or a worker.

    Args:
        target: the device.
        ended: set when it is not wanted any more.
        timeout_s: how long it may take until the board greets.

    Raises:
        TroubleError: it does not, or is another version; says why.
        HostEndedError: it is not wanted any more.
        EngineError: the program ssh cannot be started.
    """

    def __init__(self, target: Target, ended: threading.Event, *, timeout_s: float) -> None:
        self.device = target.device.name
        self.ended = ended
        self._target = target
        self._until_s = time.monotonic() + timeout_s
        self._is_late = False
        try:
            self._process = subprocess.Popen(  # noqa: S603  # the command line is `Target`'s own
                target.board_command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,  # Ctrl-C at a terminal is for the caller
            )
        except OSError as error:
            raise EngineError(f"ssh cannot be started: {error}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._words = LastWords(self._process.stderr, str(self._process.pid))
        # Of our own, so that they are closed when nobody reads or writes.
        reading = os.dup(self._process.stdout.fileno())
        writing = os.dup(self._process.stdin.fileno())
        self._process.stdout.close()
        self._process.stdin.close()
        self._reader = threading.Lock()
        self._control = ControlPipes(reading, writing, msgspec.json.Decoder(BoardAnswer))
        threading.Thread(target=self._watch, name="cutset-ssh-watch", daemon=True).start()
        try:
            self.about = self._greeted()
            self._until_s = _NEVER
            require_same_version(self.about, self.device)
        except EngineError as error:
            self.kill()
            mend = "`cutset hosts install --cluster FILE`"
            trouble = Trouble(kind="version", text=str(error), mend=mend)
            raise TroubleError(self.device, trouble) from error
        except BaseException:
            self.kill()
            raise
        self.address = target.device.listen or self.about["server"]

    def _greeted(self) -> dict[str, str]:
        """What the board says of itself, after whatever the login shell had to say."""
        with self._reader:
            for number, line in enumerate(self._control.lines()):
                if line.startswith(GREETING):
                    return msgspec.json.decode(line[len(GREETING) :], type=dict[str, str])
                if number > _MOST_LINES_BEFORE:
                    break
        raise self._away()

    # --- calls

    def ask(
        self,
        method: str,
        *arguments: object,
        group: str = "commands",  # noqa: ARG002  # there is one order here
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Any:
        """Makes a call and waits for its answer; see `RemoteHost.ask`."""
        try:
            self._until_s = time.monotonic() + timeout_s
            with contextlib.suppress(OSError):  # the end of its answers says why
                self._control.send(BoardCall(method=method, arguments=arguments))
            return self._answer()
        finally:
            self._until_s = _NEVER

    def _answer(self) -> Any:
        with self._reader:
            answer = next(self._control.messages(), None)
        if answer is None:
            raise self._away()
        if answer.kind:
            raise BundleError(f"on {self.device}: {answer.message}")
        return answer.value

    def send_file(self, folder: Path, entry: FileEntry) -> None:
        """Sends one file; see `RemoteHost.send_file`."""
        self.ask("take_file", *msgspec.structs.astuple(entry))
        try:
            with (folder / entry.path).open("rb") as source:
                left = entry.num_bytes
                while left and (piece := source.read(min(_PIECE_BYTES, left))):
                    self._until_s = time.monotonic() + ANSWER_TIMEOUT_S
                    with contextlib.suppress(BrokenPipeError, ConnectionError):
                        self._control.write_bytes(piece)  # what the board says tells why
                    left -= len(piece)
                if left:
                    self.kill()
                    raise BundleError(
                        f"{folder / entry.path} has {left:,} bytes less than the manifest says",
                        path=entry.path,
                    )
            self._answer()
        except OSError as error:
            raise BundleError(
                f"{folder / entry.path} cannot be read: {error.strerror}", path=entry.path
            ) from error
        finally:
            self._until_s = _NEVER

    # --- the worker that the board becomes

    def start_worker(self, num_threads: int) -> None:
        """Has the board become a worker; from then on there are only its messages."""
        self.ask("start_worker", num_threads, self.address)

    def events(self) -> Iterator[Event]:
        """The worker's messages, until it is gone.

        Raises:
            msgspec.DecodeError: what came is no message.
        """
        decoder = msgspec.json.Decoder(Event)
        with self._reader:
            for line in self._control.lines():
                if line:
                    yield decoder.decode(line)

    def tell(self, command: Command) -> None:
        """Delivers a command to the worker; to a dead one it does nothing."""
        with contextlib.suppress(OSError):
            self._control.send(command)

    def last_words(self) -> str:
        """Why the worker is gone, once it is."""
        status = self._reap()
        words = self._words.last()
        how = f"left with exit status {status}"
        if status is None or status < 0 or status == _SSH_FAILED:
            how = "was lost, or the connection to it"
        elif status > _BY_SIGNAL:
            how = ended_by(status - _BY_SIGNAL)
        return f"the process there {how}" + (f"; its last words: {words}" if words else "")

    # --- its end

    def kill(self) -> threading.Thread:
        """Ends ssh, and with the connection whatever it started on the device."""
        with contextlib.suppress(OSError):
            self._process.kill()
        thread = threading.Thread(target=self._close, name="cutset-ssh-end", daemon=True)
        thread.start()
        return thread

    def _close(self) -> None:
        self._reap()
        with self._reader:  # who reads sees the end now
            self._control.close()

    def _reap(self) -> int | None:
        try:
            return self._process.wait(_REAP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return None

    def _away(self) -> HostAwayError | HostEndedError:
        """Why no answer came."""
        if self.ended.is_set():
            return HostEndedError()
        status = self._reap()
        lines = self._words.lines()
        trouble = trouble_of(self._target, None if self._is_late else status, lines)
        return TroubleError(self.device, trouble)

    def _watch(self) -> None:
        """Ends ssh when it takes too long or is not wanted, and says that this caller is here."""
        said_s = time.monotonic()
        while self._process.poll() is None:
            now_s = time.monotonic()
            if self.ended.is_set() or now_s > self._until_s:
                self._is_late = not self.ended.is_set()
                self._process.kill()
                return
            if now_s > said_s + HERE_EVERY_S:
                said_s = now_s
                with contextlib.suppress(OSError):
                    self._control.say_here()
            self.ended.wait(_TICK_S)


def settle_addresses(cluster: Cluster, hosts: Sequence[SshHost]) -> str:
    """Where this process listens for the devices; those on this machine listen there too.

    Args:
        cluster: what it says of the caller counts.
        hosts: the way to the first decides otherwise.

    Raises:
        EngineError: there is no way to it.
    """
    machine = cluster.caller_machine
    own = None if machine is None else machine.address
    own = own or next((d.listen for d in cluster.devices if d.name == cluster.caller), None)
    peers = [host.address for host in hosts if host.address]
    own = own or (_own_address(peers[0]) if peers else "127.0.0.1")
    for host in hosts:
        host.address = host.address or own
    return own


def _own_address(peer: str) -> str:
    """The address of this machine on the way to `peer`.

    Raises:
        EngineError: there is no way.
    """
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((peer, os.getpid() % 1000 + 1024))  # nothing is sent
            return str(probe.getsockname()[0])
    except OSError as error:
        raise EngineError(
            f"this machine has no way to {peer} ({error}), where a device listens for it; give the"
            ' device listen = "ADDRESS" in the cluster file'
        ) from error
