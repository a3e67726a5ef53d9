"""A worker process: holds one stage, computes what its neighbour sends, passes the result on.

Threads: the main thread computes; one reads commands; one says regularly that the process lives;
others belong to the circuit of the present epoch. So receiving, computing and sending overlap, and
a computation of any length does not look like a frozen process. On one host, where tensors are in
shared memory and only headers move, the main thread receives and sends too: see
`cutset.links.circuit`.

The process never outlives its session: when the control connection closes, for whatever reason,
it leaves at once, without waiting for anything. See `cutset.launch` for what ends it before it
has imported all this, or while it is stopped.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import os
import queue
import socket
import sys
import threading
import time
import traceback
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from cutset.backends.allocator import give_back_memory, keep_freed_memory, map_large_blocks
from cutset.backends.base import StageProgram
from cutset.backends.selection import import_libraries, load_stage
from cutset.bundles.allowance import allowance_of
from cutset.bundles.open import Bundle, open_bundle
from cutset.engines.control import COMMANDS, ControlChannel, ControlPipes, ControlSocket
from cutset.engines.protocol import (
    Address,
    BatchFailed,
    Collect,
    Command,
    Connect,
    Connected,
    Heartbeat,
    LinkLost,
    Load,
    Loaded,
    Refused,
    Span,
    StageStats,
    Started,
    Stop,
    Timeline,
)
from cutset.errors import ContractViolation, CutsetError, EngineError, MissingExtra, StageFailed
from cutset.host import limit_memory
from cutset.links.arena import Arena
from cutset.links.circuit import Circuit, HostEnd
from cutset.links.doorkeeper import doorkeeper
from cutset.links.parcels import LinkContract, Parcel
from cutset.links.shared_memory import can_hold_headers
from cutset.runtime.contract import (
    boundary_into,
    boundary_out_of,
    check_tensors,
    ends_of,
    explain_failure,
    groups_of,
    links_of,
    want_of_memory,
)
from cutset.runtime.routes import Routes

_HEARTBEATS_PER_LIMIT = 10
_SPANS_PER_MESSAGE = 2000
_SWITCH_INTERVAL_S = 0.0005


class StageWorker:
    """The state of one worker process.

    Args:
        control: the connection to the session.
        listen_host: address on which the process listens for its neighbours.
        link_files: descriptors of every link's shared memory, in order, or none.
    """

    def __init__(
        self, control: ControlChannel[Command], listen_host: str, link_files: tuple[int, ...]
    ) -> None:
        self._control = control
        self._listen_host = listen_host
        self._link_files = link_files
        self._arenas: dict[int, Arena] = {}
        self._inbox: queue.SimpleQueue[Load | Circuit | tuple[int, Parcel]] = queue.SimpleQueue()
        self._bundle: Bundle | None = None
        self._load: Load | None = None
        self._program: StageProgram | None = None
        self._links: tuple[LinkContract, ...] = ()
        self._circuit: Circuit | None = None
        self._epoch = 0
        self._computing_since_s = 0.0
        self._idle_since_s = time.monotonic()
        # Those of computing are written by one thread only, those of links under a lock; a reader
        # may see them a moment apart.
        self._counting = threading.Lock()
        self._num_rows = self._num_micro_batches = 0
        self._busy_s = self._waiting_s = self._receiving_s = self._sending_s = 0.0
        self._received_bytes = self._sent_bytes = 0
        self._spans: collections.deque[Span] = collections.deque(maxlen=0)
        self._process = psutil.Process()
        self._rss_bytes = 0

    def run(self) -> None:
        """Serves until the session ends; does not return."""
        threading.Thread(target=self._obey, name="cutset-control", daemon=True).start()
        self._control.send(Started(pid=os.getpid()))
        while True:
            item = self._inbox.get()
            if isinstance(item, Load):
                self._load_stage(item)
            elif isinstance(item, Circuit):
                item.receive()
            else:
                self._compute(*item)

    # --- the thread that reads commands

    def _obey(self) -> None:
        status = 1
        try:
            for command in self._control.messages():
                if isinstance(command, Load):
                    self._inbox.put(command)
                    threading.Thread(
                        target=self._beat, args=(command.heartbeat_s,), daemon=True
                    ).start()
                elif isinstance(command, Connect):
                    self._connect(command)
                elif isinstance(command, Address):
                    if self._circuit is not None:
                        self._circuit.tell(command)
                elif isinstance(command, Collect):
                    self._report(spans=command.spans)
                elif isinstance(command, Stop):
                    break
            status = 0
        except Exception:  # noqa: BLE001  # its last words, which the session repeats
            traceback.print_exc()
        finally:
            # Not sys.exit: a computation or a link that hangs must not keep the process.
            os._exit(status)

    def _beat(self, heartbeat_s: float) -> None:
        pause = threading.Event()
        while True:
            self._send_heartbeat()
            pause.wait(heartbeat_s / _HEARTBEATS_PER_LIMIT)

    def _send_heartbeat(self) -> None:
        since_s = self._computing_since_s
        stats = StageStats(
            num_rows=self._num_rows,
            num_micro_batches=self._num_micro_batches,
            busy_s=self._busy_s,
            waiting_s=self._waiting_s,
            receiving_s=self._receiving_s,
            sending_s=self._sending_s,
            received_bytes=self._received_bytes,
            sent_bytes=self._sent_bytes,
            rss_bytes=self._resident_bytes(),
        )
        computing_s = time.monotonic() - since_s if since_s else 0.0
        self._control.send(Heartbeat(stats=stats, computing_s=computing_s, epoch=self._epoch))

    def _resident_bytes(self) -> int:
        with contextlib.suppress(OSError, psutil.Error):  # no descriptor free to read it with
            self._rss_bytes = self._process.memory_info().rss
        return self._rss_bytes

    def _report(self, *, spans: bool) -> None:
        self._send_heartbeat()
        if not spans:
            return
        kept = list(self._spans)
        for start in range(0, max(len(kept), 1), _SPANS_PER_MESSAGE):
            stop = start + _SPANS_PER_MESSAGE
            self._control.send(Timeline(spans=tuple(kept[start:stop]), last=stop >= len(kept)))

    def _connect(self, command: Connect) -> None:
        assert self._load is not None, "Connect comes after Loaded"
        self._epoch = command.epoch
        if self._circuit is not None:
            self._circuit.close()
        routes = Routes(weights=command.weights)
        receive_links, send_links = ends_of(self._links, self._load.member, routes)
        ends = self._host_ends((*receive_links, *send_links)) if command.on_host else {}
        num_slots = self._load.num_slots
        inline = command.on_host and all(
            can_hold_headers(ends[link.index].connection, link, num_slots) for link in receive_links
        )
        circuit = self._circuit = Circuit(
            epoch=command.epoch,
            listen_host=self._listen_host,
            publish=self._control.send,
            receive_links=receive_links,
            send_links=send_links,
            next_member=partial(routes.member, self._load.stage + 1),
            connect_timeout_s=command.connect_timeout_s,
            link_timeout_s=command.link_timeout_s,
            unsecured_links=command.unsecured_links,
            ends=ends,
            reuse=True,
            receives_inline=inline,
            on_parcel=lambda parcel: self._take(command.epoch, parcel, inline=inline),
            on_connected=lambda epoch: self._control.send(Connected(epoch=epoch)),
            on_lost=self._lose,
            on_failed=lambda parcel, error: self._report_unsent(command.epoch, parcel, error),
            on_sent=self._sent,
        )
        circuit.start()
        if inline:
            self._inbox.put(circuit)

    def _host_ends(self, links: tuple[LinkContract, ...]) -> dict[int, HostEnd]:
        """The ends of this epoch's links within the host, as they came with the command."""
        return {
            link.index: HostEnd(
                connection=socket.socket(fileno=file), arena=self._arenas[link.index]
            )
            for link, file in zip(links, self._control.take_files(len(links)), strict=True)
        }

    # --- the circuit's threads

    def _take(self, epoch: int, parcel: Parcel, *, inline: bool) -> None:
        with self._counting:
            self._receiving_s += parcel.received_s - parcel.arrived_s
            self._received_bytes += parcel.wire_bytes
        self._note(parcel.sequence, "receive", parcel.arrived_s, parcel.received_s)
        if inline:
            self._compute(epoch, parcel)
        else:
            self._inbox.put((epoch, parcel))

    def _sent(self, parcel: Parcel, started_s: float, stopped_s: float) -> None:
        with self._counting:
            self._sending_s += stopped_s - started_s
            self._sent_bytes += parcel.wire_bytes
        self._note(parcel.sequence, "send", started_s, stopped_s)

    def _lose(self, event: LinkLost) -> None:
        self._control.send(event)

    def _note(self, sequence: int, activity: str, start_s: float, stop_s: float) -> None:
        if self._spans.maxlen:
            self._spans.append(Span(sequence, activity, start_s, stop_s))

    # --- the main thread

    def _require_packages(self, stage: int, member: int) -> None:
        """Makes sure that what the stage takes and gives can be read and written here.

        Raises:
            EngineError: a package is missing; says what to type.
        """
        try:
            for link in self._links:
                if member in (link.sender, link.receiver):
                    link.require_packages()
        except MissingExtra as error:
            raise EngineError(f"stage {stage} cannot run where it was placed: {error}") from error

    def _load_stage(self, command: Load) -> None:
        started_s = time.monotonic()
        if command.cpus and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, command.cpus)
        try:
            if not command.num_slots:
                doorkeeper()  # before memory is limited
            self._bundle = open_bundle(Path(os.fsdecode(command.bundle)), stages=(command.stage,))
            # Whatever the program does from here on, it does not take the machine's memory.
            allowance = allowance_of(
                self._bundle.manifest,
                (command.micro_batch,),
                (command.stage,),
                num_in_flight=command.num_in_flight,
            )
            import_libraries(self._bundle, command.stage, backend=command.backend)
            self._links = links_of(self._bundle.manifest, command.micro_batch)
            self._require_packages(command.stage, command.member)
            limit_memory(allowance.memory_bytes)
            self._program = load_stage(
                self._bundle,
                command.stage,
                backend=command.backend,
                num_threads=command.num_threads,
                micro_batch=command.micro_batch,
            )
            if command.num_slots:
                self._map_links(command)
        except CutsetError as error:
            details = {key: text for key, text in vars(error).items() if isinstance(text, str)}
            self._control.send(
                Refused(kind=type(error).__name__, message=str(error), details=details)
            )
            return
        except (MemoryError, RuntimeError) as error:
            want = want_of_memory(error)
            if want is None:
                raise
            message = f"stage {command.stage} cannot be loaded: {want}"
            self._control.send(Refused(kind="EngineError", message=message, details={}))
            return
        give_back_memory()
        # What is loaded now stays; a full collection would look through it for a tenth of a second.
        gc.freeze()
        self._spans = collections.deque(maxlen=3 * command.num_spans)
        self._load = command
        self._idle_since_s = time.monotonic()
        self._control.send(
            Loaded(backend=self._program.backend, load_s=time.monotonic() - started_s)
        )

    def _map_links(self, command: Load) -> None:
        for link in self._links:
            if command.member in (link.sender, link.receiver):
                file = self._link_files[link.index]
                self._arenas[link.index] = Arena(file, link.slot_bytes, command.num_slots)

    def _compute(self, epoch: int, parcel: Parcel) -> None:
        circuit = self._circuit
        if circuit is None or circuit.epoch != epoch:
            return  # late: the session replays it under the new epoch
        started_s = time.monotonic()
        self._waiting_s += started_s - self._idle_since_s
        self._computing_since_s = started_s
        try:
            outputs = self._checked_run(parcel)
        except (ContractViolation, StageFailed) as error:
            self._report_failure(epoch, parcel.sequence, error)
            parcel.release()
            return
        finally:
            self._computing_since_s = 0.0
            self._idle_since_s = stopped_s = time.monotonic()
        if not self._num_micro_batches:
            keep_freed_memory()
        self._busy_s += stopped_s - started_s
        self._num_rows += parcel.num_rows
        self._num_micro_batches += 1
        self._note(parcel.sequence, "compute", started_s, stopped_s)
        # Outputs may share memory with the inputs, so that is given back after sending.
        circuit.send(
            Parcel(
                sequence=parcel.sequence,
                num_rows=parcel.num_rows,
                tensors=outputs,
                release=parcel.release,
            )
        )

    def _checked_run(self, parcel: Parcel) -> tuple[np.ndarray, ...]:
        assert self._load is not None
        assert self._bundle is not None
        assert self._program is not None
        manifest, stage = self._bundle.manifest, self._load.stage
        entry = manifest.stages[stage]
        check_tensors(parcel.tensors, entry.inputs, parcel.num_rows, boundary_into(manifest, stage))
        try:
            outputs = self._program(parcel.tensors)
        except Exception as error:
            # Whatever a backend raises becomes a StageFailed that carries its words.
            raise explain_failure(manifest, stage, self._device(), error, parcel.tensors) from error
        check_tensors(outputs, entry.outputs, parcel.num_rows, boundary_out_of(manifest, stage))
        return outputs

    def _device(self) -> str:
        assert self._load is not None
        assert self._bundle is not None
        plan = self._bundle.manifest.plan
        stage, replica = groups_of(plan).places[self._load.member]
        return plan.stages[stage].group[replica].device

    def _report_unsent(self, epoch: int, parcel: Parcel, error: Exception) -> None:
        assert self._load is not None
        assert self._bundle is not None
        manifest, stage = self._bundle.manifest, self._load.stage
        failure = StageFailed(
            f"stage {stage} computed {parcel.num_rows} rows, but what came out cannot be sent"
            f" {boundary_out_of(manifest, stage)}: {error}",
            stage=stage,
            device=self._device(),
        )
        self._report_failure(epoch, parcel.sequence, failure)

    def _report_failure(
        self, epoch: int, sequence: int, error: ContractViolation | StageFailed
    ) -> None:
        violation = error if isinstance(error, ContractViolation) else None
        self._control.send(
            BatchFailed(
                epoch=epoch,
                sequence=sequence,
                kind=type(error).__name__,
                message=str(error),
                boundary=violation.boundary if violation else "",
                expected=violation.expected if violation else "",
                actual=violation.actual if violation else "",
            )
        )


def _end_unless_heard(control: ControlChannel[Command], lease_s: float) -> None:
    """Ends this process when its session is silent for too long: a host may die without a word."""
    pause = threading.Event()
    while time.monotonic() - control.heard_s < lease_s:
        pause.wait(lease_s / 4)
    os._exit(1)


def main() -> None:
    """Runs a worker; called by `cutset.launch`."""
    parser = argparse.ArgumentParser(description="A worker of a session of cutset.")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--control-out-fd", type=int, help="where --control-fd is a pipe's end")
    parser.add_argument("--lease", type=float, help="seconds of silence after which to leave")
    parser.add_argument("--listen-host", default="127.0.0.1")
    parser.add_argument("--link-fds", type=int, nargs="*", default=())
    arguments = parser.parse_args()
    map_large_blocks()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    control: ControlChannel[Command]
    if arguments.control_out_fd is None:
        control = ControlSocket.for_worker(socket.socket(fileno=arguments.control_fd))
    else:
        control = ControlPipes(arguments.control_fd, arguments.control_out_fd, COMMANDS)
    if arguments.lease is not None:
        lease = (control, arguments.lease)
        threading.Thread(target=_end_unless_heard, args=lease, daemon=True).start()
    StageWorker(control, arguments.listen_host, tuple(arguments.link_fds)).run()


if __name__ == "__main__":
    main()
