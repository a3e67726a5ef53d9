"""The engine for a few hosts: a worker on each stage's device, at the end of an ssh connection.

The connection's ends are the worker's input and output, so a worker ends with it, whatever became
of the caller. Nothing listens on a device but its sshd, and nothing of Cutset's runs there while no
session is open. Tensors do not pass through ssh: neighbours send them to each other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import msgspec

from cutset.cluster.devices import Cluster
from cutset.engines.protocol import Command, Event, Exited, WorkerHandle
from cutset.engines.registry import EngineSettings, StagePrograms
from cutset.engines.remote_engine import RemoteEngine
from cutset.engines.remote_host import HostAwayError, HostEndedError, MeasuringHosts
from cutset.engines.remote_programs import RemotePrograms
from cutset.engines.remote_worker import RemoteWorker
from cutset.engines.ssh.client import targets_of
from cutset.engines.ssh.connection import SshHost, TroubleError, settle_addresses
from cutset.errors import EngineError
from cutset.progress import Progress

if TYPE_CHECKING:
    from cutset.bundles.open import Bundle

_LOG = logging.getLogger(__name__)

GREETING_TIMEOUT_S = 60.0
"""How long a small board may take for logging in and starting Python, the first time."""

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SshHosts(EngineSettings):
    """The hosts of a cluster, by ssh.

    Attributes:
        cluster: the devices, with their addresses.
        replan_after_s: a device that stays away for so long is given up; above 0.
    """

    name = "ssh"
    options = frozenset({"replan_after_s", "cluster"})
    # The engine has limits of its own for what can hang; a large shard takes its time.
    start_timeout_s = 900.0

    cluster: Cluster | None = None
    replan_after_s: float = 10.0

    def engine_for(self, bundle: Bundle, *, num_threads: int) -> SshEngine:
        """Logs in to the devices of the bundle's stages.

        Raises:
            EngineError: there is no ssh, or one of the devices cannot be used; says which, why,
                and the command that mends it.
            ValueError: `replan_after_s` is not above 0.
        """
        return SshEngine(bundle, self, num_threads=num_threads)

    def stage_programs(
        self, bundle: Bundle, progress: Progress
    ) -> AbstractContextManager[StagePrograms]:
        """Runs programs on the devices that the bundle's stages will be on."""
        targets = targets_of(required_cluster(self.cluster))

        def connect(device: str) -> SshHost:
            if device not in targets:
                raise unknown_device(device, targets)
            return SshHost(targets[device], threading.Event(), timeout_s=GREETING_TIMEOUT_S)

        return contextlib.nullcontext(RemotePrograms(bundle, connect, progress))

    @contextlib.contextmanager
    def measuring_hosts(self) -> Iterator[MeasuringHosts]:
        """All hosts of the cluster.

        Raises:
            EngineError: one cannot be used; says which and why.
        """
        cluster = required_cluster(self.cluster)
        never = threading.Event()
        hosts: dict[str, SshHost] = {}
        try:
            for name, target in targets_of(cluster).items():
                hosts[name] = SshHost(target, never, timeout_s=GREETING_TIMEOUT_S)
            own = settle_addresses(cluster, list(hosts.values()))
            yield MeasuringHosts(hosts=hosts, caller_address=own, cluster=cluster)
        except HostAwayError as error:
            raise EngineError(str(error)) from error
        finally:
            for ending in [host.kill() for host in hosts.values()]:
                ending.join(1.0)


class SshWorker(RemoteWorker[SshHost]):
    """What a board became; see `cutset.engines.remote_worker.RemoteWorker`."""

    def _tell(self, host: SshHost, command: Command) -> None:
        host.tell(command)

    def _serve(self, host: SshHost) -> None:
        self._deliver(host)
        host.start_worker(self._engine.num_threads)
        try:
            for event in host.events():
                self._pass_on(event)
            reason = host.last_words()
        except (EngineError, msgspec.DecodeError) as error:
            reason = f"what came from {host.device} is no message: {error}"
        self.end(Exited(reason=reason), keep_host=False)


class SshEngine(RemoteEngine[SshHost]):
    """Workers of other hosts, by ssh; see `cutset.engines.protocol.Engine`.

    Args:
        bundle: whose stages run.
        settings: which devices.
        num_threads: threads that each worker computes with.

    Raises:
        EngineError: as `SshHosts.engine_for`.
    """

    name = "ssh"

    def __init__(self, bundle: Bundle, settings: SshHosts, *, num_threads: int) -> None:
        super().__init__(
            bundle,
            required_cluster(settings.cluster),
            replan_after_s=settings.replan_after_s,
            num_threads=num_threads,
        )
        self._targets = targets_of(self._cluster)
        self._back: set[str] = set()
        self._num_lost: dict[str, int] = {}
        for device in self._placement:
            if device not in self._targets:
                raise unknown_device(device, self._targets)
        try:
            self._log_in()
            with self._lock:
                hosts = [self._hosts[stage] for stage in sorted(self._hosts)]
            self.host = settle_addresses(self._cluster, hosts)
        except BaseException:
            self.close()
            raise

    def _log_in(self) -> None:
        """Connects to the device of every stage, at once.

        Raises:
            EngineError: says of every device that cannot be used what is wrong with it.
        """

        def connect(stage: int) -> str:
            target = self._targets[self._placement[stage]]
            begun_s = time.monotonic()
            try:
                host = SshHost(target, threading.Event(), timeout_s=GREETING_TIMEOUT_S)
            except HostAwayError as error:
                return str(error)
            with self._lock:
                self._hosts[stage] = host
                self._first_s[host.device] = time.monotonic() - begun_s
            return ""

        with ThreadPoolExecutor(len(self._placement)) as pool:
            troubles = dict.fromkeys(pool.map(connect, range(len(self._placement))))
        troubles.pop("", None)
        if troubles:
            raise EngineError("; ".join(troubles))

    def _new_worker(self, stage: int, on_event: Callable[[WorkerHandle, Event], None]) -> SshWorker:
        return SshWorker(self, stage, on_event)

    def _new_host(self, device: str, ended: threading.Event) -> SshHost:
        begun_s = time.monotonic()
        is_first = device not in self._first_s
        until_s = begun_s + self._replan_after_s
        limit_s = GREETING_TIMEOUT_S if is_first else self._limit_s(device)  # of a slow one
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return self._connected(device, ended, limit_s)
            except TroubleError as error:
                reason = error
            left_s = until_s - time.monotonic()
            if left_s <= 0 or not reason.trouble.passes:
                waited_s = time.monotonic() - begun_s
                raise HostAwayError(f"device {device} stayed away for {waited_s:.0f} s: {reason}")
            if ended.wait(min(pause_s, left_s)):
                raise HostEndedError
            pause_s *= 2

    def _connected(self, device: str, ended: threading.Event, timeout_s: float) -> SshHost:
        target = self._targets[device]
        host = SshHost(target, ended, timeout_s=timeout_s)
        host.address = host.address or self.host
        return host

    def _returned(self, lost: Collection[str]) -> set[str]:
        back = self._back & set(lost)
        self._back -= back
        return back

    def _give_up(self, device: str, stage: int, error: HostAwayError) -> None:
        """Places the stages without `device`; where they find no place, it is waited for."""
        try:
            super()._give_up(device, stage, error)
        except EngineError as reason:
            _LOG.warning("%s; it is waited for", reason)
            return
        with self._lock:
            self._num_lost[device] = self._num_lost.get(device, 0) + 1
        threading.Thread(
            target=self._look_out, args=(device,), name=f"cutset-look-out-{device}", daemon=True
        ).start()

    def _look_out(self, device: str) -> None:
        """Tries to reach a device that was given up, for as long as the session lives.

        One that is lost again and again is not at once believed to be back.
        """
        pause_s = min(2.0 ** self._num_lost[device], _LONGEST_PAUSE_S)
        while not self._closed.wait(pause_s):
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            try:
                self._connected(device, self._closed, GREETING_TIMEOUT_S).kill()
            except (HostAwayError, HostEndedError, EngineError) as error:
                _LOG.info("%s is still away: %s", device, error)
                continue
            with self._lock:
                self._back.add(device)
                self._welcome_back()
            return


def required_cluster(cluster: Cluster | None) -> Cluster:
    """The cluster that was named.

    Raises:
        EngineError: none was.
    """
    if cluster is None:
        raise EngineError(
            "the engine 'ssh' needs a cluster file with the devices' addresses: --cluster FILE"
        )
    return cluster


def unknown_device(device: str, known: Collection[str]) -> EngineError:
    """A device of a plan that is none of the cluster's."""
    return EngineError(
        f"the bundle was planned for {device!r}, which is no device of the cluster file; it has"
        f" {', '.join(known)}. Name the file that it was planned with, or plan again"
    )
