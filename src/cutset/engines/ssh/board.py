"""What ssh starts on a device: it answers calls, takes shards, and becomes a worker.

Its input and output are the connection; when that closes, or the caller is silent for too long,
the process leaves. Whatever libraries print goes to standard error. To become a worker it replaces
itself by one, so that nothing of it stays in memory, and the worker is the very process that ends
with the connection.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time

import msgspec

from cutset.backends.allocator import malloc_environment
from cutset.engines.control import ControlPipes
from cutset.engines.node_service import NodeService, entry_of
from cutset.engines.ssh.board_calls import GREETING, KEEP, LEASE_S, BoardAnswer, BoardCall
from cutset.engines.ssh.wire_check import WireEnd
from cutset.errors import CutsetError
from cutset.launch import keep
from cutset.processes import command_of, made_environment

_LINGER_S = 1.0
_CHECK_MS = 500
_METHODS = frozenset(
    {
        *("hello", "clock", "facts", "backends"),
        *("missing_manifest", "missing_files", "stage_folder", "keep_model"),
        *("start_program", "hear_program", "tell_program", "program_result"),
        *("open_port", "serve_wire", "measure_wire"),
    }
)
"""What a caller may call by name; `take_file` and `start_worker` are done here."""


class Board(NodeService):
    """Serves one caller; see the module.

    Args:
        reading: descriptor of what the caller sends.
        writing: descriptor of what it receives.
        environment: as in `NodeService`.
    """

    def __init__(self, reading: int, writing: int, environment: dict[str, str]) -> None:
        super().__init__(_LINGER_S, owner=os.getpid(), environment=environment)
        self._descriptors = reading, writing
        self._control = ControlPipes(reading, writing, msgspec.json.Decoder(BoardCall))
        self._is_busy = False
        wire = WireEnd()
        self.open_port, self.serve_wire, self.measure_wire = (
            wire.open_port,
            wire.serve,
            wire.measure,
        )

    def serve(self) -> None:
        """Greets the caller and does what it says; returns when it is gone."""
        threading.Thread(target=self._guard, name="cutset-guard", daemon=True).start()
        client, _, server, _ = (os.environ.get("SSH_CONNECTION", "").split() + [""] * 4)[:4]
        about = {**self.hello(), "client": client, "server": server}
        self._control.write_bytes(GREETING + msgspec.json.encode(about) + b"\n")
        for call in self._control.messages():
            self._is_busy = True
            if not self._do(call):
                return
            self._control.heard_s = time.monotonic()  # nothing was read meanwhile
            self._is_busy = False

    def _do(self, call: BoardCall) -> bool:
        """Answers a call; False where no other can follow."""
        try:
            if call.method == "take_file":
                return self._take_file(*call.arguments)
            if call.method == "start_worker":
                self._become_worker(*call.arguments)
            if call.method not in _METHODS:
                raise CutsetError(f"there is no call {call.method!r}")
            value = getattr(self, call.method)(*call.arguments)
        except CutsetError as error:
            self._control.send(BoardAnswer(kind=type(error).__name__, message=str(error)))
        else:
            self._control.send(BoardAnswer(value=value))
        return True

    def _take_file(self, path: str, num_bytes: int, sha256: str) -> bool:
        """Takes a file, whose bytes follow once the caller was told to go on."""
        entry = entry_of((path, num_bytes, sha256))
        self.begin_file((path, num_bytes, sha256))
        self._control.send(BoardAnswer(value="go on"))
        try:
            if not self._control.take_bytes(entry.num_bytes, self.append):
                self.close()
                return False
            self.finish_file()
        except CutsetError as error:
            # What is still on its way belongs to the file; no call can be told from it.
            self._control.send(BoardAnswer(kind=type(error).__name__, message=str(error)))
            return False
        self._control.send(BoardAnswer(value="kept"))
        return True

    def _become_worker(self, num_threads: int, listen_host: str) -> None:
        reading, writing = self._descriptors
        command = [
            # It ends with the process that serves the connection, also when it is stopped.
            *command_of("worker", caller=os.getppid(), control=reading),
            *("--control-fd", str(reading), "--control-out-fd", str(writing)),
            *("--lease", str(LEASE_S), "--listen-host", listen_host),
        ]
        made = made_environment(num_threads) | malloc_environment() | self._environment
        for descriptor in (reading, writing, *self._cache.room.held):
            os.set_inheritable(descriptor, True)
        self.close()
        self._control.send(BoardAnswer(value="begins"))
        # The command is ours, and so is the interpreter.
        os.execve(command[0], command, made)  # noqa: S606

    def _guard(self) -> None:
        """Ends this process when the caller is gone, or silent for too long."""
        gone = select.poll()
        gone.register(self._descriptors[0], getattr(select, "POLLRDHUP", 0))
        while not gone.poll(_CHECK_MS):
            silent_s = time.monotonic() - self._control.heard_s
            if silent_s > LEASE_S and not self._is_busy:
                break
        self.close()
        os._exit(1)


def main() -> None:
    """Serves the process at the other end of standard input and output.

    Arguments name the variables of its environment that its processes get too; ``--keep`` before
    them has it go on as a child, see `cutset.launch.keep`.
    """
    names = sys.argv[1:]
    if names[:1] == [KEEP]:
        del names[0]
        keep()
    reading, writing = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.close(nowhere)
    os.dup2(2, 1)
    kept = {name: os.environ[name] for name in names if name in os.environ}
    board = Board(reading, writing, kept)
    try:
        board.serve()
    finally:
        board.close()


if __name__ == "__main__":
    main()
