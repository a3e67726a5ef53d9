"""The caller's end of a `StageHost`: calls with limits, and files in pieces."""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from cutset.bundles.file_entries import FileEntry
from cutset.engines.ray.nodes import RayNode
from cutset.engines.remote_host import (
    ANSWER_TIMEOUT_S,
    HostAwayError,
    HostEndedError,
    RemoteHost,
)
from cutset.errors import BundleError, CutsetError

PIECE_BYTES = 64 << 10
"""Below the size from which Ray puts an argument into its object store."""

_PIECES_AHEAD = 32
_TICK_S = 0.5


class Host(RemoteHost):
    """An actor that may run one worker.

    Args:
        ray: the package.
        actor: Ray's handle.
        node: where it is.
        device: the device that the node is.
        ended: set when its worker is not wanted any more; waiting calls then end.
    """

    def __init__(
        self, ray: Any, actor: Any, node: RayNode, device: str, ended: threading.Event
    ) -> None:
        self._ray = ray
        self._actor = actor
        self.device = device
        self.address = node.address
        self.ended = ended

    def tell(self, method: str, *arguments: object, group: str = "commands") -> Any:
        """Makes a call whose answer nobody waits for; returns Ray's reference to the answer."""
        call = getattr(self._actor, method).options(concurrency_group=group)
        return call.remote(*arguments)

    def ask(
        self,
        method: str,
        *arguments: object,
        group: str = "commands",
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Any:
        """Makes a call and waits for its answer; see `RemoteHost.ask`."""
        try:
            reference = self.tell(method, *arguments, group=group)
        except Exception as error:
            raise self._away(error) from error
        return self._wait(reference, timeout_s)

    def _wait(self, reference: Any, timeout_s: float) -> Any:
        deadline_s = time.monotonic() + timeout_s
        while not self.ended.is_set():
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise HostAwayError(f"{self.device} did not answer for {timeout_s:.0f} s")
            try:
                return self._ray.get(reference, timeout=min(_TICK_S, left_s))
            except self._ray.exceptions.GetTimeoutError:
                continue
            except self._ray.exceptions.RayTaskError as error:
                cause = error.cause
                if isinstance(cause, CutsetError):
                    raise BundleError(f"on {self.device}: {cause}") from error
                raise self._away(error) from error
            except Exception as error:
                raise self._away(error) from error
        raise HostEndedError

    def _away(self, error: Exception) -> HostAwayError:
        text = " ".join(str(error).split())
        return HostAwayError(f"the process on {self.device} is gone ({text[:300]})")

    def send_file(self, folder: Path, entry: FileEntry) -> None:
        """Sends one file in pieces, a bounded number of them on the way at once."""
        self.ask("begin_file", msgspec.structs.astuple(entry), group="files")
        pending: collections.deque[Any] = collections.deque()
        try:
            with (folder / entry.path).open("rb") as source:
                while piece := source.read(PIECE_BYTES):
                    pending.append(self.tell("append", piece, group="files"))
                    if len(pending) >= _PIECES_AHEAD:
                        self._wait(pending.popleft(), ANSWER_TIMEOUT_S)
        except OSError as error:
            raise BundleError(
                f"{folder / entry.path} cannot be read: {error.strerror}", path=entry.path
            ) from error
        while pending:
            self._wait(pending.popleft(), ANSWER_TIMEOUT_S)
        self.ask("finish_file", group="files")

    def kill(self) -> threading.Thread:
        """Ends the actor and with it its worker; returns at once the thread that does it."""

        def kill() -> None:
            with contextlib.suppress(Exception):  # gone already, or the cluster is
                self._ray.kill(self._actor, no_restart=True)

        # The head answers this call, and may be away itself.
        thread = threading.Thread(target=kill, name="cutset-ray-kill", daemon=True)
        thread.start()
        return thread
