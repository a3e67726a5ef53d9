"""Who asked for what, what is on its way, and what was answered: nothing lost, nothing twice.

A request is cut into micro-batches, numbered through the session. A micro-batch is *waiting* or *in
flight*; at most `window` are in flight, and through a replica as many as its share of them. What
finds no room on its route lets those behind it pass. When an epoch ends, those in flight go back to
where their numbers place them among the waiting ones, and are sent again in the same order under
the next epoch. An answer counts only when its micro-batch is in flight in the epoch in which it
comes, so a late one is dropped.

When a worker dies, any of those in flight that passed it may have killed it. They are then sent one
at a time until each is answered, so that the next death names its cause; the third death fails it.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeAlias

import numpy as np

from cutset.errors import CutsetError, EngineError, StageFailed
from cutset.links.parcels import Parcel
from cutset.runtime.routes import Routes
from cutset.tensors import TensorSpec, dim_factor

_LOG = logging.getLogger(__name__)

Outputs: TypeAlias = tuple[np.ndarray, ...]

_ONE_ROUTE = Routes(weights=((1,),))


class Request:
    """One call of a caller: some rows in, as many out.

    Args:
        num_parts: micro-batches that it was cut into.
        specs: of the outputs, in order.
        finish: turns the joined outputs into what the caller gets.
        future: what the caller waits for.
    """

    def __init__(
        self,
        num_parts: int,
        specs: Sequence[TensorSpec],
        finish: Callable[[Outputs], object],
        future: Future[Any] | None = None,
    ) -> None:
        self.future: Future[Any] = Future() if future is None else future
        self.started = False
        self.done = False
        self._parts: list[Outputs | None] = [None] * num_parts
        self._num_parts = self._num_missing = num_parts
        self._specs = specs
        self._finish = finish

    def put(self, part: int, outputs: Outputs) -> bool:
        """Keeps the outputs of one micro-batch; True when it was the last missing one."""
        self._parts[part] = outputs
        self._num_missing -= 1
        return self._num_missing == 0

    def resolve(self) -> None:
        """Joins the parts and gives them, or the error in their place, to the one who waits."""
        try:
            answer = self._put_together()
        except BaseException as error:  # noqa: BLE001  # else nobody would ever hear of it
            # Want of memory above all. The traceback holds the parts.
            self.reject(self._unjoined(error.with_traceback(None)))
        else:
            self._settle(self.future.set_result, answer)

    def _put_together(self) -> object:
        parts = [part for part in self._parts if part is not None]
        joined = parts[0] if len(parts) == 1 else self._join(parts)
        self._parts.clear()
        return self._finish(joined)

    def _unjoined(self, error: BaseException) -> BaseException:
        self._parts.clear()
        try:
            failure = EngineError(
                f"the answer was computed but could not be put together from {self._num_parts}"
                f" micro-batches: {_named(error)}; ask for fewer rows at once, or free memory"
            )
        except MemoryError:
            return error
        failure.__cause__ = error
        return failure

    def reject(self, error: BaseException) -> None:
        """Gives `error` to the one who waits."""
        self._parts.clear()
        self._settle(self.future.set_exception, error)

    def _join(self, parts: list[Outputs]) -> Outputs:
        # Outputs without a batch dimension are the same for every micro-batch.
        return tuple(
            np.concatenate([part[index] for part in parts])
            if spec.shape and dim_factor(spec.shape[0])
            else parts[0][index]
            for index, spec in enumerate(self._specs)
        )

    @staticmethod
    def _settle(action: Callable[[Any], None], result: object) -> None:
        try:
            action(result)
        except InvalidStateError:
            return  # the caller cancelled it in the same moment
        except BaseException:  # noqa: BLE001
            # A callback raised what a future lets through (SystemExit). It is done all the same.
            _LOG.exception("a done callback failed")


def _named(error: BaseException) -> str:
    """What an error says and is, on one line."""
    text = " ".join(str(error).split())[:500]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@dataclasses.dataclass(slots=True, eq=False)
class MicroBatch:
    """A slice of a request's rows.

    Attributes:
        sequence: its number within the session.
        request: whose rows they are.
        part: its place within the request.
        num_rows: how many rows.
        inputs: views of the caller's arrays.
        num_deaths: how often a worker died while it was in flight.
        suspect: True until it is answered, once a worker died while it was in flight.
    """

    sequence: int
    request: Request
    part: int
    num_rows: int
    inputs: Outputs
    num_deaths: int = 0
    suspect: bool = False


class Ledger:
    """The account of a session; thread-safe.

    Args:
        window: most micro-batches in flight.
        max_deaths: after so many deaths of workers a micro-batch is failed.
    """

    def __init__(self, *, window: int, max_deaths: int) -> None:
        self.window = window
        self._max_deaths = max_deaths
        self._lock = threading.Lock()
        self._waiting: collections.deque[MicroBatch] = collections.deque()
        self._in_flight: collections.OrderedDict[int, MicroBatch] = collections.OrderedDict()
        self._unsent: collections.deque[tuple[Request, Exception]] = collections.deque()
        self._num_suspects = 0
        self._next_sequence = 0
        self._send: Callable[[Parcel], None] | None = None
        self._epoch = 0
        self._routes = _ONE_ROUTE
        self._error: CutsetError | None = None
        self._num_settled = 0
        self._last_progress_s = time.monotonic()

    @property
    def error(self) -> CutsetError | None:
        """Why the session is over, or None."""
        return self._error

    @property
    def num_settled(self) -> int:
        """Micro-batches answered or failed so far."""
        return self._num_settled

    @property
    def num_in_flight(self) -> int:
        """Micro-batches in flight."""
        return len(self._in_flight)

    @property
    def num_waiting(self) -> int:
        """Micro-batches not sent yet."""
        return len(self._waiting)

    def stalled_s(self) -> float:
        """For how long micro-batches have been in flight without any being settled."""
        with self._lock:
            if not self._in_flight:
                return 0.0
            return time.monotonic() - self._last_progress_s

    def submit(self, request: Request, slices: Sequence[tuple[int, Outputs]]) -> None:
        """Takes a request's micro-batches, given as (rows, inputs), in order.

        Raises:
            CutsetError: the session is over; says why.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            for part, (num_rows, inputs) in enumerate(slices):
                # The number is taken first: Ctrl-C may end this anywhere, and none may come twice.
                sequence = self._next_sequence
                self._next_sequence = sequence + 1
                self._waiting.append(MicroBatch(sequence, request, part, num_rows, inputs))
            self._pump()
        self._reject_unsent()

    def open_epoch(
        self, epoch: int, send: Callable[[Parcel], None], routes: Routes = _ONE_ROUTE
    ) -> None:
        """Begins to send what waits; `send` must not block."""
        with self._lock:
            self._epoch = epoch
            self._send = send
            self._routes = routes
            self._last_progress_s = time.monotonic()
            self._pump()
        self._reject_unsent()

    def close_epoch(self, killer: StageFailed | None, member: int = 0) -> int:
        """Takes back what is in flight.

        Args:
            killer: how a worker died, where one did.
            member: which one.

        Returns:
            How many micro-batches were failed for having killed their worker too often.
        """
        failed = []
        with self._lock:
            self._send = None
            self._epoch = 0
            back = []
            for batch in self._in_flight.values():
                suspect = killer is not None and self._routes.passes(batch.sequence, member)
                if suspect:
                    batch.num_deaths += 1
                    self._num_suspects += not batch.suspect
                    batch.suspect = True
                if suspect and batch.num_deaths >= self._max_deaths:
                    self._forget(batch)
                    failed.append(batch)
                else:
                    back.append(batch)
            self._in_flight.clear()
            # Those that had found no room on their routes may come before them.
            again = {batch.sequence: batch for batch in (*back, *self._waiting)}
            self._waiting = collections.deque(again[sequence] for sequence in sorted(again))
        for batch in failed:
            assert killer is not None
            self._reject(
                batch.request,
                StageFailed(
                    f"a micro-batch of {batch.num_rows} rows was given up: its worker died"
                    f" {batch.num_deaths} times while it was computed. The last time: {killer}",
                    stage=killer.stage,
                    device=killer.device,
                ),
            )
        return len(failed)

    def answer(self, epoch: int, sequence: int, outputs: Outputs) -> None:
        """Takes the outputs of a micro-batch; a late or unknown one is dropped."""
        complete: Request | None = None
        try:
            with self._lock:
                batch = self._settle(epoch, sequence)
                if batch is None:
                    return
                request = batch.request
                if not request.done and request.put(batch.part, outputs):
                    request.done = True
                    complete = request
                self._pump()
        finally:
            # Whatever became of the others: this answer was taken, and will not come again.
            if complete is not None:
                complete.resolve()
            self._reject_unsent()

    def fail(self, epoch: int, sequence: int, error: CutsetError) -> None:
        """Fails a micro-batch, and its request with it; a late or unknown one is dropped."""
        failed: Request | None = None
        try:
            with self._lock:
                batch = self._settle(epoch, sequence)
                if batch is None:
                    return
                if not batch.request.done:
                    batch.request.done = True
                    failed = batch.request
                self._pump()
        finally:
            if failed is not None:
                failed.reject(error)
            self._reject_unsent()

    def end(self, error: CutsetError) -> None:
        """Ends the session: everything open is failed with `error`, and so is all that follows."""
        with self._lock:
            if self._error is None:
                self._error = error
            self._send = None
            batches = [*self._in_flight.values(), *self._waiting]
            self._in_flight.clear()
            self._waiting.clear()
        for batch in batches:
            self._reject(batch.request, error)

    def _settle(self, epoch: int, sequence: int) -> MicroBatch | None:
        if epoch != self._epoch:
            return None
        batch = self._in_flight.pop(sequence, None)
        if batch is not None:
            self._forget(batch)
        return batch

    def _first_with_room(self) -> int | None:
        """Place of the first that waits and has room on its route, of as many as may be sent."""
        routes = self._routes
        if not routes.forks:
            return 0
        # Counted anew, not kept: Ctrl-C may end this anywhere.
        passing = collections.Counter(
            member for sequence in self._in_flight for member in routes.choices(sequence)
        )
        for place, batch in enumerate(itertools.islice(self._waiting, self.window)):
            if batch.request.done or all(
                passing[member] < routes.window(member, self.window)
                for member in routes.choices(batch.sequence)
            ):
                return place
        return None

    def _forget(self, batch: MicroBatch) -> None:
        self._num_suspects -= batch.suspect
        self._num_settled += 1
        self._last_progress_s = time.monotonic()

    def _reject(self, request: Request, error: CutsetError) -> None:
        with self._lock:
            if request.done:
                return
            request.done = True
        request.reject(error)

    def _reject_unsent(self) -> None:
        """Fails what `_pump` could not send; without the lock, for callbacks may submit."""
        while self._unsent:
            try:
                request, error = self._unsent.popleft()
            except IndexError:  # another thread took it
                return
            failure = EngineError(f"a micro-batch could not be sent: {_named(error)}")
            failure.__cause__ = error
            request.reject(failure)

    def _pump(self) -> None:
        """Sends what may be sent; what cannot be, by its own fault, waits for `_reject_unsent`."""
        while self._send is not None and self._waiting:
            limit = 1 if self._num_suspects else self.window
            if len(self._in_flight) >= limit:
                return
            place = self._first_with_room()
            if place is None:
                return
            batch = self._waiting[place]
            request = batch.request
            if not request.done and not request.started:
                request.started = True
                try:
                    request.done = not request.future.set_running_or_notify_cancel()
                except RuntimeError:  # the caller set its result
                    request.done = True
            if request.done:  # cancelled, or failed by another of its micro-batches
                del self._waiting[place]
                self._num_suspects -= batch.suspect
                continue
            if not self._in_flight:
                self._last_progress_s = time.monotonic()
            self._in_flight[batch.sequence] = batch
            try:
                self._send(
                    Parcel(sequence=batch.sequence, num_rows=batch.num_rows, tensors=batch.inputs)
                )
            except Exception as error:  # noqa: BLE001  # goes to the future
                # It fails alone: at the head of the queue it would fail all that come after it.
                self._in_flight.pop(batch.sequence, None)
                self._forget(batch)
                request.done = True
                self._unsent.append((request, error))
            except BaseException:
                # Ctrl-C in a caller's thread. It still waits, and is sent with the next one; if
                # it was sent already, the first answer counts and the other is dropped.
                self._in_flight.pop(batch.sequence, None)
                raise
            del self._waiting[place]
