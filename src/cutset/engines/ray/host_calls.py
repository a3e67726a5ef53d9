"""The caller's end of a `StageHost`: calls with limits, and files in pieces."""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from cutset.bundles.manifest import FileEntry
from cutset.engines.ray.nodes import RayNode
from cutset.errors import BundleError, CutsetError, EngineError
from cutset.version import __version__

ANSWER_TIMEOUT_S = 120.0
"""How long a node may take for one call; hashing a large shard on a small one is the longest."""

PIECE_BYTES = 64 << 10
"""Below the size from which Ray puts an argument into its object store."""

_PIECES_AHEAD = 32
_TICK_S = 0.5
_NUM_CLOCK_ASKS = 5


class HostAwayError(Exception):
    """The host does not answer, or is gone; says what was seen."""


class HostEndedError(Exception):
    """The worker that the host was asked for is not wanted any more."""


class Host:
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
        self.node = node
        self.device = device
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
        """Makes a call and waits for its answer.

        Raises:
            HostAwayError: there was none in time, or the actor is gone.
            HostEndedError: the worker ended meanwhile.
            CutsetError: what the method raised.
        """
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
        """Sends one file of a bundle in pieces, a bounded number of them on the way at once.

        Raises:
            HostAwayError: the node does not answer.
            BundleError: the node cannot keep it, or the file cannot be read here.
        """
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

    def deliver(
        self, folder: Path, manifest: FileEntry, files: Mapping[str, FileEntry], stage: int
    ) -> str:
        """Sends what the node does not have of a stage's files.

        Args:
            folder: of the bundle here.
            manifest: the bundle's manifest as a file.
            files: all other files of the bundle by their paths.
            stage: whose files.

        Returns:
            The folder on the node that has them.

        Raises:
            HostAwayError: the node does not answer.
            BundleError: the node cannot keep them.
        """
        if self.ask("missing_manifest", msgspec.structs.astuple(manifest), group="files"):
            self.send_file(folder, manifest)
        for path in self.ask("missing_files", manifest.sha256, stage, group="files"):
            self.send_file(folder, files[path])
        kept: str = self.ask("stage_folder", manifest.sha256, stage, group="files")
        return kept

    def program_result(self, limit_s: float) -> str:
        """What the program printed that a `ProbeHost` was asked to start.

        Raises:
            HostAwayError: the node does not answer.
            CutsetError: the program failed.
            EngineError: it did not end in time.
        """
        deadline_s = time.monotonic() + limit_s
        while time.monotonic() < deadline_s:
            text: str | None = self.ask("program_result")
            if text is not None:
                return text
        raise EngineError(f"a measurement on {self.device} did not end within {limit_s:.0f} s")

    def clock_offset_s(self) -> float:
        """Seconds by which the node's monotonic clock is ahead of ours, to half a round trip."""
        best = (float("inf"), 0.0)
        for _ in range(_NUM_CLOCK_ASKS):
            asked_s = time.monotonic()
            theirs_s = self.ask("clock")
            answered_s = time.monotonic()
            best = min(best, (answered_s - asked_s, theirs_s - (asked_s + answered_s) / 2))
        return best[1]

    def kill(self) -> threading.Thread:
        """Ends the actor and with it its worker; returns at once the thread that does it."""

        def kill() -> None:
            with contextlib.suppress(Exception):  # gone already, or the cluster is
                self._ray.kill(self._actor, no_restart=True)

        # The head answers this call, and may be away itself.
        thread = threading.Thread(target=kill, name="cutset-ray-kill", daemon=True)
        thread.start()
        return thread


def require_same_version(about: Mapping[str, str], device: str) -> None:
    """Checks what a host's ``hello`` answered.

    Raises:
        EngineError: it has another version of this package.
    """
    if about["cutset"] != __version__:
        raise EngineError(
            f"{device} has Cutset {about['cutset']} and this machine {__version__}; install the"
            " same version on every node"
        )
