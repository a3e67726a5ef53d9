"""The caller's own place in the ring: it sends to the first stage and receives from the last.

Apart from `cutset.runtime.session.Session`, and without a reference to it: what runs in threads
must not keep a session alive that its user has dropped.
"""

from __future__ import annotations

import collections
import os
import socket
import threading
from collections.abc import Callable, Mapping
from functools import partial

from cutset.bundles.manifest import Manifest
from cutset.engines.control import MAX_FILES
from cutset.engines.protocol import Address, Connect, LinkLost
from cutset.errors import ContractViolation, EngineError
from cutset.links.arena import Arena, create_file
from cutset.links.circuit import Circuit, HostEnd
from cutset.links.doorkeeper import doorkeeper
from cutset.links.parcels import CALLER, LinkContract, Parcel
from cutset.runtime.contract import boundary_into, boundary_out_of, check_tensors, ends_of
from cutset.runtime.ledger import Ledger
from cutset.runtime.routes import Routes
from cutset.runtime.status import Limits
from cutset.runtime.timeline import CallerTimeline


class CallerEnd:
    """Makes the caller's circuit of each epoch and hands answers to the ledger.

    Args:
        manifest: of the bundle.
        links: all links in order, those of members that are away too.
        num_slots: slots of the memory shared with each neighbour; 0 where none is shared.
        ledger: gets the answers.
        limits: how long to wait for what.
        timeline: of the caller.

    Raises:
        EngineError: the system has no room for the memory, or no descriptor left.
    """

    def __init__(
        self,
        *,
        manifest: Manifest,
        links: tuple[LinkContract, ...],
        num_slots: int,
        ledger: Ledger,
        limits: Limits,
        timeline: CallerTimeline,
    ) -> None:
        self._manifest = manifest
        self.links = links
        self._ledger = ledger
        self._limits = limits
        self._timeline = timeline
        self._lock = threading.Lock()
        self._link_files: list[int] = []
        self._arenas: dict[int, Arena] = {}
        if num_slots:
            try:
                self._share(num_slots)
            except BaseException:
                self.close()
                raise
        else:
            _prepare_network()

    def _share(self, num_slots: int) -> None:
        link = self.links[0]
        ends = collections.Counter(m for each in self.links for m in (each.sender, each.receiver))
        del ends[CALLER]  # which is sent none
        if ends.total() and max(ends.values()) > MAX_FILES:
            raise EngineError(
                f"a worker of this plan would have {max(ends.values())} links within this machine;"
                f" the most is {MAX_FILES}: plan again with smaller groups (--replicas)"
            )
        try:
            for link in self.links:
                self._link_files.append(create_file(link.slot_bytes, num_slots))
            for link in self.links:
                if CALLER in (link.sender, link.receiver):
                    arena = Arena(self._link_files[link.index], link.slot_bytes, num_slots)
                    self._arenas[link.index] = arena
        except (OSError, OverflowError, ValueError, MemoryError) as error:
            raise EngineError(
                f"link {link.name}: {num_slots} slots of {link.slot_bytes} bytes, for micro-batches"
                f" of {link.max_rows} rows, find no room in shared memory ({error}); choose a"
                " smaller micro_batch or window"
            ) from error

    @property
    def link_files(self) -> tuple[int, ...]:
        """Descriptors of every link's shared memory, in order; none where none is shared."""
        return tuple(self._link_files)

    def connect(self, epoch: int, routes: Routes, unsecured_links: tuple[int, ...]) -> Connect:
        """The command that has a worker make its links of an epoch."""
        return Connect(
            epoch=epoch,
            weights=routes.weights,
            connect_timeout_s=self._limits.connect_timeout_s,
            link_timeout_s=self._limits.link_timeout_s,
            on_host=bool(self._arenas),
            unsecured_links=unsecured_links,
        )

    def make_circuit(
        self,
        connect: Connect,
        publish: Callable[[Address], None],
        on_connected: Callable[[int], None],
        on_lost: Callable[[LinkLost], None],
        connections: Mapping[int, socket.socket],
    ) -> Circuit:
        """The caller's circuit under `connect`, the command that the workers get.

        Args:
            connect: of this epoch.
            publish: as in `Circuit`.
            on_connected: as in `Circuit`.
            on_lost: as in `Circuit`.
            connections: the caller's ends of links within this host, by the links' numbers; none
                where they lead to other hosts. The circuit closes them.
        """
        epoch = connect.epoch
        routes = Routes(weights=connect.weights)
        receive_links, send_links = ends_of(self.links, CALLER, routes)
        return Circuit(
            epoch=epoch,
            listen_host="",  # this process connects to both of its neighbours
            publish=publish,
            receive_links=receive_links,
            send_links=send_links,
            next_member=partial(routes.member, 0),
            connect_timeout_s=connect.connect_timeout_s,
            link_timeout_s=connect.link_timeout_s,
            unsecured_links=connect.unsecured_links,
            ends={
                index: HostEnd(connection=connection, arena=self._arenas[index])
                for index, connection in connections.items()
            },
            reuse=False,  # the memory becomes the caller's
            on_parcel=lambda parcel: self._take(epoch, parcel),
            on_connected=on_connected,
            on_lost=on_lost,
            on_failed=lambda parcel, error: self._fail_unsent(epoch, parcel, error),
            on_sent=self._timeline.sent,
        )

    def close(self) -> None:
        """Gives the memory back; safe from any thread, and again."""
        with self._lock:
            files, self._link_files = self._link_files, []
        for file in files:
            os.close(file)
        self._arenas = {}

    def _take(self, epoch: int, parcel: Parcel) -> None:
        self._timeline.received(parcel)
        link = self.links[-1]
        boundary = boundary_out_of(self._manifest, len(self._manifest.stages) - 1)
        try:
            check_tensors(parcel.tensors, link.specs, parcel.num_rows, boundary)
        except ContractViolation as error:
            self._ledger.fail(epoch, parcel.sequence, error)
            return
        self._ledger.answer(epoch, parcel.sequence, parcel.tensors)

    def _fail_unsent(self, epoch: int, parcel: Parcel, error: Exception) -> None:
        failure = EngineError(
            f"a micro-batch of {parcel.num_rows} rows cannot be sent"
            f" {boundary_into(self._manifest, 0)}: {error}"
        )
        failure.__cause__ = error
        self._ledger.fail(epoch, parcel.sequence, failure)


def _prepare_network() -> None:
    """Begins what links between hosts need."""
    try:
        doorkeeper()
    except (OSError, RuntimeError) as error:
        raise EngineError(f"links between hosts cannot be made: {error}") from error
