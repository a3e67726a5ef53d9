"""A session: what a caller talks to. Rows go in, the model's outputs come out, in order.

    with open_session("resnet50.cutset") as session:
        logits = session.run(images)

Thread-safe: any number of threads may call `Session.run`, `Session.submit` and `Session.stream` at
once. For asyncio wrap the future: ``await asyncio.wrap_future(session.submit(images))``.
"""

from __future__ import annotations

import atexit
import dataclasses
import logging
import os
import threading
import types
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
from typing_extensions import Self

from cutset.bundles.open import Bundle, open_bundle
from cutset.data.arrays import Array
from cutset.engines.protocol import Engine
from cutset.engines.registry import EngineSettings, opened_engine
from cutset.errors import EngineError
from cutset.runtime.callbacks import AnswerFuture, CallbackThread
from cutset.runtime.callerend import CallerEnd
from cutset.runtime.chrome_trace import ProcessTimeline
from cutset.runtime.contract import links_of
from cutset.runtime.crew import Crew
from cutset.runtime.ledger import Ledger, Request
from cutset.runtime.recovery import Supervisor
from cutset.runtime.rows import Answer, cut_inputs, present
from cutset.runtime.session_settings import SessionSettings, checked_settings
from cutset.runtime.status import Limits, ReplicaStatus, SessionStatus, stage_status
from cutset.runtime.streaming import stream_answers
from cutset.runtime.timeline import CallerTimeline

if TYPE_CHECKING:
    import torch

_LOG = logging.getLogger(__name__)

_STATS_TIMEOUT_S = 1.0
_SPANS_TIMEOUT_S = 10.0
_CALLBACKS_TIMEOUT_S = 5.0

_OPEN: weakref.WeakSet[Session] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Closes what is open when Python ends: a thread that is still at work then is torn away."""
    for session in list(_OPEN):
        session.close()


class Session:
    """A running pipeline; made by `open_session`.

    Close it, best by ``with``: one that is dropped ends its workers too, with a `ResourceWarning`,
    once nothing waits for its answers. It stays in the process that opened it: in a forked child
    every call raises an `EngineError`, and `close` does nothing.
    """

    def __init__(self, bundle: Bundle, engine: Engine, settings: SessionSettings) -> None:
        limits, num_slots = settings.limits, settings.num_slots(engine)
        self.bundle = bundle
        self.micro_batch = settings.micro_batch
        self.window = settings.window
        self._process_id = os.getpid()
        self._engine = engine
        self._limits = limits
        self._manifest = bundle.manifest
        links = links_of(self._manifest, settings.micro_batch)
        self._ledger = Ledger(window=settings.window, max_deaths=limits.max_deaths)
        self._callbacks = CallbackThread()
        self._caller_timeline = CallerTimeline(settings.num_spans)
        self._caller_end = CallerEnd(
            manifest=self._manifest,
            links=links,
            num_slots=num_slots,
            ledger=self._ledger,
            limits=limits,
            timeline=self._caller_timeline,
        )
        self._supervisor = Supervisor(
            engine=engine,
            crew=Crew(
                settings.loads(bundle, num_slots),
                tuple(
                    tuple(replica.share for replica in stage.group)
                    for stage in self._manifest.plan.stages
                ),
                limits,
            ),
            caller_end=self._caller_end,
            ledger=self._ledger,
            limits=limits,
        )
        self._closing = threading.Lock()
        self._closer: int | None = None
        self._closed = threading.Event()
        _OPEN.add(self)

    # --- what callers use

    def submit(self, *inputs: Array) -> Future[Answer]:
        """Hands in some rows; returns at once.

        Args:
            inputs: one array for each input of the model, batch first, any number of rows from 1
                up; where the bundle says how images become rows, also their pixels as `read_pixels`
                gives them, uint8 [rows, height, width, 3]; a multiple of the only number that the
                bundle was captured for, where there is one. They must not be changed until the
                future is done: what is lost with a worker is sent again from them.

        Returns:
            A future of the outputs, as `run` returns them. Input that does not fit the model fails
            the future, not the session. A future can be cancelled until its first rows are sent.
            Its done callbacks run on a thread of the session's that nothing else waits for: they
            may wait for other answers, submit, and close the session.

        Raises:
            EngineError: the session is over; says why.
        """
        self._require_own_process()
        future = AnswerFuture(self._callbacks)
        try:
            slices = cut_inputs(self._manifest, inputs, self.micro_batch)
        except Exception as error:  # noqa: BLE001  # whatever an odd input raises is its own fault
            future.set_exception(error)
            return future
        as_tensors = not any(isinstance(array, np.ndarray) for array in inputs)
        request = Request(
            len(slices),
            self._manifest.stages[-1].outputs,
            lambda outputs: present(self._manifest, outputs, as_tensors=as_tensors),
            future,
        )
        self._ledger.submit(request, slices)
        return future

    @overload
    def run(self, *inputs: np.ndarray) -> np.ndarray: ...
    @overload
    def run(self, *inputs: torch.Tensor) -> torch.Tensor: ...
    @overload
    def run(self, *inputs: Array) -> Answer: ...
    def run(self, *inputs: Array) -> Answer:
        """Computes the model's outputs for some rows and waits for them.

        Args:
            inputs: as in `submit`.

        Returns:
            The output, or a dict by output name where the model has several (for which type
            checkers want `run_named`); NumPy arrays where an
            input was one (bfloat16 is `ml_dtypes.bfloat16` there), else tensors. They are the
            caller's own, and may be changed.

        Raises:
            TypeError: an input is neither a tensor nor an array.
            ContractViolation: the input does not fit the model, or its numbers cannot be read from
                the CPU's memory (sparse, quantised, nested, meta and the like; the words say what
                to give instead). Lazy conjugation, gaps and foreign byte order are resolved.
            StageFailed: a stage could not compute these rows.
            EngineError: no rows, or the session is over.
        """
        future = self.submit(*inputs)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    @overload
    def run_named(self, *inputs: np.ndarray) -> dict[str, np.ndarray]: ...
    @overload
    def run_named(self, *inputs: torch.Tensor) -> dict[str, torch.Tensor]: ...
    @overload
    def run_named(self, *inputs: Array) -> dict[str, Array]: ...
    def run_named(self, *inputs: Array) -> Mapping[str, Array]:
        """As `run`, but always a dict by output name, of one output too."""
        answer = self.run(*inputs)
        return answer if isinstance(answer, dict) else {self._manifest.output_names[0]: answer}

    @overload
    def stream(
        self,
        items: Iterable[np.ndarray | tuple[np.ndarray, ...]],
        *,
        ordered: bool = True,
        return_errors: Literal[False] = False,
    ) -> Iterator[np.ndarray]: ...
    @overload
    def stream(
        self,
        items: Iterable[torch.Tensor | tuple[torch.Tensor, ...]],
        *,
        ordered: bool = True,
        return_errors: Literal[False] = False,
    ) -> Iterator[torch.Tensor]: ...
    @overload
    def stream(
        self,
        items: Iterable[Array | tuple[Array, ...]],
        *,
        ordered: bool = True,
        return_errors: bool = False,
    ) -> Iterator[Answer | Exception]: ...
    def stream(
        self,
        items: Iterable[Array | tuple[Array, ...]],
        *,
        ordered: bool = True,
        return_errors: bool = False,
    ) -> Iterator[Answer | Exception]:
        """Computes one answer for each item, reading ahead only as far as the window needs.

        Args:
            items: inputs as for `submit`: an array, or a tuple of them where the model has several
                inputs. It is read on the calling thread, a little ahead of the answers, so a
                stream of any length and a slow consumer need no more memory than the window.
            ordered: yield the answers in the order of the items; otherwise as they finish.
            return_errors: yield the error of an item that failed in its place, whatever it is;
                otherwise raise it, which ends the stream.

        Yields:
            What `run` would return for each item.
        """
        self._require_own_process()
        return stream_answers(
            items,
            self.submit,
            before_waiting=self._require_own_process,
            window=self.window,
            micro_batch=self.micro_batch,
            ordered=ordered,
            return_errors=return_errors,
        )

    def stats(self) -> SessionStatus:
        """What the workers did so far, asked of them now; the last known where one is silent."""
        self._require_own_process()
        self._supervisor.collect(spans=False, timeout_s=_STATS_TIMEOUT_S)
        return self._status()

    def timeline(self) -> tuple[ProcessTimeline, ...]:
        """What each process did when, the caller first; empty unless it was opened for that.

        The newest micro-batches only, as many as it was opened for: asked again, it tells of those
        again that are still among them. What a worker did that was replaced is gone with it.
        """
        self._require_own_process()
        self._supervisor.collect(spans=True, timeout_s=_SPANS_TIMEOUT_S)
        groups = self._supervisor.groups
        workers = [
            ProcessTimeline(name=groups.name(member), spans=worker.spans)
            for member, worker in enumerate(self._supervisor.workers)
        ]
        return (self._caller_timeline.finish(), *workers)

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the workers, those of a stage's replicas one after the other.

        0 for one that is being replaced.
        """
        self._require_own_process()
        return tuple(worker.pid for worker in self._supervisor.workers)

    @property
    def epoch(self) -> int:
        """How often the links were made; above 1 once something was recovered."""
        self._require_own_process()
        return self._supervisor.epoch

    def close(self) -> None:
        """Ends the workers. What is not answered fails.

        Safe from any thread and again: whoever comes second waits for the first. In a process that
        was forked from the session's own it does nothing.
        """
        if os.getpid() != self._process_id:
            return
        me = threading.get_ident()
        with self._closing:
            closer = self._closer
            if closer is None:
                self._closer = me
        if closer is not None:
            # A callback may close too, which whoever closes waits for.
            if closer != me and not self._callbacks.is_here() and not self._supervisor.is_here():
                self._closed.wait(self._supervisor.stop_limit_s)
                self._callbacks.finish(_CALLBACKS_TIMEOUT_S)  # for one that closed
            return
        try:
            self._supervisor.stop()
            self._caller_end.close()
            self._ledger.end(EngineError("the session was closed"))
            self._callbacks.finish(_CALLBACKS_TIMEOUT_S)
        except BaseException:
            self._closer = None  # Ctrl-C: whoever comes next goes on
            raise
        self._closed.set()

    def __del__(self) -> None:
        """Ends the workers of a session that nobody closed, without waiting for them."""
        supervisor = getattr(self, "_supervisor", None)
        if supervisor is None or os.getpid() != self._process_id or self._closer is not None:
            return
        try:
            warnings.warn(
                f"a session of {self.bundle.directory} was dropped without close(); its workers are"
                " ended now",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )
        finally:  # where warnings are errors, too
            supervisor.drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self.close()

    # --- inside

    def start(self) -> None:
        """Starts the workers and waits until the pipeline stands; called by `open_session`.

        Raises:
            BundleError: a stage cannot be loaded.
            EngineError: a worker cannot be started, or the pipeline does not come up.
        """
        limit_s = (self._limits.start_timeout_s + self._limits.connect_timeout_s) * (
            self._limits.max_restarts + 1
        )
        limit_s = min(limit_s, threading.TIMEOUT_MAX)
        self._supervisor.start()
        came_up = self._supervisor.up.wait(limit_s)
        if self._ledger.error is not None:
            raise self._ledger.error
        if not came_up:
            raise EngineError(f"the pipeline did not come up within {limit_s:.0f} s")

    def _require_own_process(self) -> None:
        """A session's threads and links stay in the process that opened it.

        Raises:
            EngineError: this is a fork of it.
        """
        if os.getpid() != self._process_id:
            raise EngineError(
                f"this session belongs to process {self._process_id} and does not cross a fork;"
                f" open one in this process ({os.getpid()}), or start processes by 'spawn'"
            )

    def _status(self) -> SessionStatus:
        return SessionStatus(
            epoch=self.epoch,
            num_settled=self._ledger.num_settled,
            num_in_flight=self._ledger.num_in_flight,
            num_waiting=self._ledger.num_waiting,
            stages=tuple(
                stage_status(
                    index,
                    [
                        self._replica_status(member)
                        for member in self._supervisor.groups.members[index]
                    ],
                )
                for index in range(len(self._manifest.stages))
            ),
        )

    def _replica_status(self, member: int) -> ReplicaStatus:
        worker = self._supervisor.workers[member]
        return ReplicaStatus(
            device=self._engine.device_of(member),
            share=self._supervisor.share(member),
            backend=worker.load.backend,
            pid=worker.pid,
            num_restarts=max(0, worker.num_restarts),
            load_s=worker.load_s,
            stats=worker.total,
        )


def open_session(  # noqa: PLR0913  # what one may say when opening; each has a default
    bundle: Bundle | str | Path,
    *,
    engine: str | EngineSettings | Engine = "local",
    backend: str = "auto",
    micro_batch: int | None = None,
    num_threads: int = 1,
    window: int | None = None,
    pin: bool = False,
    limits: Limits | None = None,
    num_spans: int = 0,
) -> Session:
    """Starts a worker for each replica of each stage and connects them; a context manager.

    Args:
        bundle: a bundle, or the path of its folder.
        engine: ``"local"`` (processes of this machine), ``"ray"`` (the Ray cluster that this
            machine is in) or the name of another (`cutset.engines.registry`); settings that say
            more, such as a `RayCluster`; or an engine of your own.
        backend: a name that ``cutset doctor`` lists (``"torch"`` is bit for bit the model),
            or ``"auto"``: each stage runs on the backend that its plan measured as the fastest.
            Where the plan names none but the reference, the stage tries every backend that loads
            quickly for at most half a second when it is first loaded, and keeps the fastest for the
            whole session.
        micro_batch: rows that travel together, 1 to 16777216; the plan's where None, and no
            other of a bundle for one number of rows only.
        num_threads: threads that each stage computes with, 1 to 1024.
        window: most micro-batches in flight, 1 to 4096; twice the number of workers and one more
            where None, enough for each to have one at hand while it computes another. Through a
            replica go as many of them as its share.
        pin: give each stage cores of its own where the system can and has enough.
        limits: how long to wait for what, and how often to try again.
        num_spans: of how many micro-batches each process keeps a timeline, see
            `Session.timeline`; 0 keeps none, at most 1000000.

    Raises:
        BundleError: the bundle cannot be read, or a stage's file is missing, changed or unsafe.
        ContractViolation: the stages of the bundle do not fit each other.
        EngineError: there is no such engine or backend, or the pipeline does not come up.
        TypeError: `limits` or `engine` is something else.
        ValueError: a number is outside of its range. Nothing was started.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))
    settings = checked_settings(
        opened,
        backend=backend,
        micro_batch=micro_batch,
        num_threads=num_threads,
        window=window,
        pin=pin,
        limits=limits,
        num_spans=num_spans,
    )
    running, start_timeout_s = opened_engine(engine, opened, num_threads=settings.num_threads)
    if limits is None and start_timeout_s is not None:
        settings = dataclasses.replace(settings, limits=Limits(start_timeout_s=start_timeout_s))
    try:
        session = Session(opened, running, settings)
    except BaseException:
        running.close()
        raise
    try:
        session.start()
    except BaseException:
        session.close()
        raise
    return session
