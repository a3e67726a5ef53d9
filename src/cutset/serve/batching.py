"""Dynamic batching: rows of concurrent requests share micro-batches, and never get mixed up.

A request that was accepted is a `Ticket`. Tickets wait in order of arrival. Whenever the pipeline
has room, rows are taken from the front, across tickets, until a micro-batch is full, or until the
oldest of them has waited `max_delay_s`. Each micro-batch remembers which rows are whose. Where
images travel as pixels, a micro-batch of images alone does; one that rows of numbers share has its
images normalised here, which gives the same bits.

Everything here runs on one event loop; only the session's futures end on other threads.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np

from cutset.data.pixels import are_pixels, normalised
from cutset.errors import ContractViolation, CutsetError, StageFailed
from cutset.runtime.contract import check_multiple
from cutset.runtime.rows import Answer
from cutset.runtime.session import Session
from cutset.serve.refusal import Refusal
from cutset.tensors import TensorSpec, dim_factor

_LOG = logging.getLogger(__name__)

_SLACK = 8

Outputs = tuple[np.ndarray, ...]


class Ticket:
    """An accepted request on its way.

    Attributes:
        num_rows: rows that it asked for.
        future: its outputs, all rows in order.
        sequences: numbers of the micro-batches that carried its rows.
        arrived_s: when it began to wait, on the monotonic clock.
        sent_s: when its first rows were sent, or None.
    """

    def __init__(self, inputs: Outputs, num_rows: int, future: asyncio.Future[Outputs]) -> None:
        self.inputs = inputs
        self.num_rows = num_rows
        self.future = future
        self.sequences: list[int] = []
        self.arrived_s = time.monotonic()
        self.sent_s: float | None = None
        self.next_row = 0
        self.parts: dict[int, Outputs] = {}
        self.num_missing = num_rows

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for its rows any more."""
        return self.future.done()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Piece:
    """Rows `start` to `start + length` of a ticket."""

    ticket: Ticket
    start: int
    length: int


class Batcher:
    """The queue in front of a session.

    Args:
        session: the running pipeline; nobody else may submit to it, for the batcher knows the
            numbers of its micro-batches by counting.
        max_queue: for how many micro-batches an accepted request may wait. An eighth fewer are
            accepted and not answered: the pace of a busy machine varies by about as much, and the
            promise is to those who were let in.
        max_delay_s: how long rows wait for others.
        on_broken: called once, when the session turns out to be over.
    """

    def __init__(
        self,
        session: Session,
        *,
        max_queue: int,
        max_delay_s: float,
        on_broken: Callable[[CutsetError], None] | None = None,
    ) -> None:
        manifest = session.bundle.manifest
        self._session = session
        self._input_specs = manifest.graph.inputs
        self._images = manifest.preprocessing if manifest.takes_pixels else None
        self._output_specs = manifest.outputs
        self._output_names = manifest.output_names
        self._joins = all(map(_grows_in_front, (*self._input_specs, *self._output_specs)))
        self._max_delay_s = max_delay_s
        self._on_broken = on_broken
        self._waiting: collections.deque[Ticket] = collections.deque()
        self._alone: collections.deque[_Piece] = collections.deque()
        self._timer: asyncio.TimerHandle | None = None
        self._next_sequence = 0
        self._period_s = max(manifest.plan.expected_period_s, 1e-4)
        self._last_answer_s = 0.0
        self.micro_batch = session.micro_batch
        self._only = manifest.micro_batch_only
        self.max_rows = (max_queue - max_queue // _SLACK) * session.micro_batch
        self.num_accepted_rows = 0
        self.num_in_flight = 0
        self.num_answered_rows = 0
        self.num_dropped_rows = 0
        self.num_sent_rows = 0
        self.num_sent_micro_batches = 0
        self.draining = False
        self.broken: CutsetError | None = None

    # --- what the handlers use

    def check_room(self) -> None:
        """Tells early that not a single row would be accepted.

        Raises:
            Refusal: as `accept`.
        """
        self.accept(self._only or 1)
        self.release(self._only or 1)

    def accept(self, num_rows: int) -> None:
        """Accounts for rows that will be submitted; `release` gives them back.

        Raises:
            Refusal: 503, there is no room, or the server is about to leave; 400, the rows cannot be
                cut into the only micro-batches that the bundle was captured for.
        """
        if self.broken is not None:
            raise Refusal(f"the pipeline is over: {self.broken}", status=503, reason="failed")
        if self.draining:
            raise Refusal(
                "the server is about to leave and takes no more requests",
                status=503,
                reason="draining",
                retry_after_s=1.0,
            )
        try:
            check_multiple(num_rows, self._only)
        except ContractViolation as error:
            raise Refusal(str(error), status=400, reason="invalid") from error
        if self.num_accepted_rows and self.num_accepted_rows + num_rows > self.max_rows:
            raise Refusal(
                f"the queue is full: {self.num_accepted_rows} of {self.max_rows} rows are taken, "
                f"the request has {num_rows}",
                status=503,
                reason="overload",
                retry_after_s=self.expected_wait_s(),
            )
        self.num_accepted_rows += num_rows

    def release(self, num_rows: int) -> None:
        """Gives back rows that were accepted and will not be submitted."""
        self.num_accepted_rows -= num_rows

    def expected_wait_s(self) -> float:
        """Seconds until the rows accepted so far are answered, at the present pace."""
        return self.num_accepted_rows / self.micro_batch * self._period_s

    def submit(self, inputs: Outputs, num_rows: int) -> Ticket:
        """Hands in rows that were accepted; they need no release.

        Args:
            inputs: checked against the model's contract; or, where the bundle takes them, the
                pixels of images.
            num_rows: their rows.
        """
        ticket = Ticket(inputs, num_rows, asyncio.get_running_loop().create_future())
        self._waiting.append(ticket)
        self._dispatch()
        return ticket

    def drop(self, ticket: Ticket) -> None:
        """Forgets a request for which nobody waits any more; rows not yet sent are not computed."""
        ticket.future.cancel()
        self._purge(ticket)
        self._dispatch()

    def drain(self) -> None:
        """Accepts no more, and sends what waits for company."""
        self.draining = True
        self._dispatch()

    @property
    def num_waiting_rows(self) -> int:
        """Rows accepted and not sent, those included that are still being read."""
        return self.num_accepted_rows - self.num_sent_rows

    # --- inside

    def _purge(self, ticket: Ticket) -> None:
        """Takes a ticket's unsent rows out of the account."""
        unsent = ticket.num_rows - ticket.next_row
        ticket.next_row = ticket.num_rows
        self.num_accepted_rows -= unsent
        self.num_dropped_rows += unsent
        if unsent and ticket in self._waiting:
            self._waiting.remove(ticket)

    def _dispatch(self) -> None:
        while self.num_in_flight < self._session.window:
            if self._alone:
                self._send_alone(self._alone.popleft())
                continue
            if not self._waiting or self._is_worth_waiting():
                return
            self._send(self._next_pieces())

    def _is_worth_waiting(self) -> bool:
        """Whether a micro-batch may still fill up; then a timer looks again."""
        if not self._joins or self.draining:
            return False
        available = 0
        for ticket in self._waiting:
            available += ticket.num_rows - ticket.next_row
            if available >= self.micro_batch:
                return False
        remaining_s = self._waiting[0].arrived_s + self._max_delay_s - time.monotonic()
        if remaining_s <= 0:
            return False
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(remaining_s, self._look_again)
        return True

    def _look_again(self) -> None:
        self._timer = None
        self._dispatch()

    def _next_pieces(self) -> list[_Piece]:
        """Takes rows from the front until a micro-batch is full."""
        pieces: list[_Piece] = []
        room = self.micro_batch
        while self._waiting and room:
            ticket = self._waiting[0]
            length = ticket.num_rows - ticket.next_row
            if self._joins:
                length = min(room, length)
            pieces.append(_Piece(ticket=ticket, start=ticket.next_row, length=length))
            ticket.next_row += length
            room -= length
            if ticket.next_row == ticket.num_rows:
                self._waiting.popleft()
            if not self._joins:
                break
        return pieces

    def _send_alone(self, piece: _Piece) -> None:
        if piece.ticket.is_over:
            self.num_accepted_rows -= piece.length
            self.num_dropped_rows += piece.length
        else:
            self._send([piece])

    def _send(self, pieces: Sequence[_Piece]) -> None:
        num_rows = sum(piece.length for piece in pieces)
        num_parts = -(-num_rows // self.micro_batch)
        inputs = tuple(
            _joined(self._of_one_form([_rows_of(piece, index, spec) for piece in pieces]))
            for index, spec in enumerate(self._input_specs)
        )
        self.num_sent_rows += num_rows
        try:
            future = self._session.submit(*inputs)
        except CutsetError as error:
            self._break(error)
            self._settle(pieces, num_rows, None, error)
            return
        for piece in pieces:
            piece.ticket.sent_s = piece.ticket.sent_s or time.monotonic()
            piece.ticket.sequences.extend(
                range(self._next_sequence, self._next_sequence + num_parts)
            )
        self._next_sequence += num_parts
        self.num_in_flight += num_parts
        self.num_sent_micro_batches += num_parts
        loop = asyncio.get_running_loop()
        future.add_done_callback(
            functools.partial(self._tell_loop, loop, tuple(pieces), num_rows, num_parts)
        )

    def _of_one_form(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """The rows of a micro-batch: all pixels, or none."""
        images = self._images
        if images is None or len({array.dtype for array in arrays}) == 1:
            return arrays
        return [normalised(a, images) if are_pixels((a,), None, images) else a for a in arrays]

    def _tell_loop(
        self,
        loop: asyncio.AbstractEventLoop,
        pieces: Sequence[_Piece],
        num_rows: int,
        num_parts: int,
        future: Future[Answer],
    ) -> None:
        """Runs on a thread of the session."""
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._finish, pieces, num_rows, num_parts, future)

    def _finish(
        self, pieces: Sequence[_Piece], num_rows: int, num_parts: int, future: Future[Answer]
    ) -> None:
        self.num_in_flight -= num_parts
        self._learn_period(num_parts)
        if future.cancelled():
            self._settle(pieces, num_rows, None, CutsetError("the micro-batch was cancelled"))
        elif (error := future.exception()) is None:
            self._settle(pieces, num_rows, self._ordered(future.result()), None)
        elif isinstance(error, StageFailed) and len(pieces) > 1:
            # One bad row fails its own request only: each goes again by itself.
            _LOG.warning("a shared micro-batch failed and is sent again in parts: %s", error)
            self.num_sent_rows -= num_rows
            self._alone.extend(pieces)
        else:
            wrapped = error if isinstance(error, CutsetError) else CutsetError(str(error))
            self._settle(pieces, num_rows, None, wrapped)
        self._dispatch()

    def _learn_period(self, num_parts: int) -> None:
        """Follows the pace of the answers while the pipeline is busy."""
        now = time.monotonic()
        if self.num_in_flight and self._last_answer_s:
            observed = (now - self._last_answer_s) / num_parts
            self._period_s += 0.1 * (observed - self._period_s)
        self._last_answer_s = now

    def _ordered(self, answer: Answer) -> Outputs:
        values = answer if isinstance(answer, dict) else {self._output_names[0]: answer}
        return tuple(np.asarray(values[name]) for name in self._output_names)

    def _settle(
        self,
        pieces: Sequence[_Piece],
        num_rows: int,
        outputs: Outputs | None,
        error: CutsetError | None,
    ) -> None:
        """Gives each ticket its rows, or the error."""
        self.num_sent_rows -= num_rows
        self.num_accepted_rows -= num_rows
        offset = 0
        for piece in pieces:
            ticket = piece.ticket
            if ticket.is_over:
                self.num_dropped_rows += piece.length
            elif outputs is None:
                assert error is not None
                ticket.future.set_exception(error)
                self._purge(ticket)
            else:
                self._put(ticket, piece, self._part_of(outputs, offset, piece, num_rows))
            offset += piece.length

    def _part_of(self, outputs: Outputs, offset: int, piece: _Piece, num_rows: int) -> Outputs:
        if piece.length == num_rows:
            return outputs
        # A copy: a slice would keep everyone's rows in memory until the slowest client has his.
        return tuple(
            _narrow(array, spec, offset, piece.length).copy()
            for array, spec in zip(outputs, self._output_specs, strict=True)
        )

    def _put(self, ticket: Ticket, piece: _Piece, outputs: Outputs) -> None:
        ticket.parts[piece.start] = outputs
        ticket.num_missing -= piece.length
        self.num_answered_rows += piece.length
        if ticket.num_missing == 0:
            ordered = [ticket.parts[start] for start in sorted(ticket.parts)]
            ticket.parts.clear()
            ticket.future.set_result(tuple(map(_joined, zip(*ordered, strict=True))))

    def _break(self, error: CutsetError) -> None:
        if self.broken is not None:
            return
        self.broken = error
        _LOG.error("the pipeline is over: %s", error)
        for ticket in tuple(self._waiting):
            if not ticket.is_over:
                ticket.future.set_exception(error)
            self._purge(ticket)
        if self._on_broken is not None:
            self._on_broken(error)


def _grows_in_front(spec: TensorSpec) -> bool:
    """Whether rows of a tensor can be joined along its first dimension, and only there."""
    factors = [dim_factor(dim) for dim in spec.shape]
    return bool(factors) and factors[0] is not None and not any(factors[1:])


def _narrow(array: np.ndarray, spec: TensorSpec, start: int, length: int) -> np.ndarray:
    factor = dim_factor(spec.shape[0]) or 1
    return array[start * factor : (start + length) * factor]


def _rows_of(piece: _Piece, index: int, spec: TensorSpec) -> np.ndarray:
    array = piece.ticket.inputs[index]
    if piece.length == piece.ticket.num_rows:
        return array
    return _narrow(array, spec, piece.start, piece.length)


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
