"""One request's way through the queue: deadline, disconnection, answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator

import numpy as np
from starlette.requests import Request

from cutset.errors import ContractViolation, CutsetError
from cutset.serve.batching import Batcher, Outputs, Ticket
from cutset.serve.refusal import Refusal


class ClientLeft(Exception):  # no error of anyone's
    """The client closed the connection before it had its answer."""


@contextlib.contextmanager
def place(batcher: Batcher, num_rows: int) -> Iterator[None]:
    """Holds a place in the queue while a request is made ready; given back if that fails.

    Raises:
        Refusal: 503, there is none.
    """
    batcher.accept(num_rows)
    try:
        yield
    except BaseException:
        batcher.release(num_rows)
        raise


async def compute(
    request: Request, batcher: Batcher, ticket: Ticket, deadline_at_s: float
) -> Outputs:
    """Waits for a ticket's outputs, as long as the client waits and its deadline allows.

    Args:
        request: whose body was read.
        batcher: that gave the ticket.
        ticket: the rows.
        deadline_at_s: on the monotonic clock.

    Raises:
        Refusal: 504 past the deadline, 503 when the pipeline is over, 500 when it failed on these
            rows, 400 when it says that they do not fit.
        ClientLeft: nobody waits.
    """
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        remaining_s = max(0.0, deadline_at_s - time.monotonic())
        await asyncio.wait(
            (ticket.future, leaving), timeout=remaining_s, return_when=asyncio.FIRST_COMPLETED
        )
        if ticket.future.done():
            return _outcome(batcher, ticket.future)
        if leaving.done():
            raise ClientLeft
        raise past_deadline()
    finally:
        leaving.cancel()
        if not ticket.future.done():
            batcher.drop(ticket)


def past_deadline() -> Refusal:
    """The refusal (504) of a request whose time is over."""
    return Refusal(
        "the deadline passed before all rows were computed; what was not sent yet is dropped",
        status=504,
        reason="deadline",
    )


def _outcome(batcher: Batcher, future: asyncio.Future[tuple[np.ndarray, ...]]) -> Outputs:
    error = future.exception()
    if error is None:
        return future.result()
    assert isinstance(error, CutsetError)
    if batcher.broken is not None:
        raise Refusal(f"the pipeline is over: {error}", status=503, reason="failed") from error
    status = 400 if isinstance(error, ContractViolation) else 500
    raise Refusal(str(error), status=status, reason="failed") from error


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
