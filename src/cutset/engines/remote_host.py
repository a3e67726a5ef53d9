"""The caller's end of a `cutset.engines.node_service.NodeService`, whatever carries the calls."""

from __future__ import annotations

import abc
import dataclasses
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from cutset.bundles.file_entries import FileEntry
from cutset.cluster.devices import Cluster
from cutset.errors import EngineError
from cutset.version import __version__

ANSWER_TIMEOUT_S = 120.0
"""How long a node may take for one call; hashing a large shard on a small one is the longest."""

_NUM_CLOCK_ASKS = 5


class HostAwayError(Exception):
    """The host does not answer, or is gone; says what was seen."""


class HostEndedError(Exception):
    """The worker that the host was asked for is not wanted any more."""


class RemoteHost(abc.ABC):
    """A process on a device that may run one worker.

    Attributes:
        device: the device that it is on.
        address: where a process there listens for its neighbours.
        ended: set when its worker is not wanted any more; waiting calls then end.
    """

    device: str
    address: str
    ended: threading.Event

    @abc.abstractmethod
    def ask(
        self,
        method: str,
        *arguments: object,
        group: str = "commands",
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Any:
        """Makes a call and waits for its answer.

        Args:
            method: of `NodeService`.
            arguments: numbers, text, bytes, and lists of them.
            group: ``"commands"``, ``"files"`` or ``"events"``: the calls of one are made in order.
            timeout_s: how long the answer may take.

        Raises:
            HostAwayError: there was none in time, or the process is gone.
            HostEndedError: the worker ended meanwhile.
            BundleError: the node cannot do it.
        """

    @abc.abstractmethod
    def send_file(self, folder: Path, entry: FileEntry) -> None:
        """Sends one file of a folder.

        Raises:
            HostAwayError: the node does not answer.
            BundleError: the node cannot keep it, or the file cannot be read here.
        """

    @abc.abstractmethod
    def kill(self) -> threading.Thread:
        """Ends the process and with it its worker; returns at once the thread that does it."""

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
        """What the program printed that the node was asked to start.

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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MeasuringHosts:
    """The hosts of a cluster, to be measured.

    Attributes:
        hosts: a process on each device, by the device's name.
        caller_address: where this process listens for them.
        cluster: what is known of the devices already; None where nothing is.
    """

    hosts: Mapping[str, RemoteHost]
    caller_address: str
    cluster: Cluster | None


def require_same_version(about: Mapping[str, str], device: str) -> None:
    """Checks what a node's ``hello`` answered.

    Raises:
        EngineError: it has another version of this package.
    """
    if about["cutset"] != __version__:
        raise EngineError(
            f"{device} has Cutset {about['cutset']} and this machine {__version__}; install the"
            " same version on every node"
        )
