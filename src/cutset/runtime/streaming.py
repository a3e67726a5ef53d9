"""A stream through a session: items are read only as far ahead as its window needs."""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeAlias

import numpy as np

from cutset.data.arrays import Array
from cutset.data.torch_border import is_tensor
from cutset.runtime.rows import Answer

_Pending: TypeAlias = collections.deque[tuple[Future[Answer], int]]


def stream_answers(
    items: Iterable[Array | tuple[Array, ...]],
    submit: Callable[..., Future[Answer]],
    *,
    before_waiting: Callable[[], None],
    window: int,
    micro_batch: int,
    ordered: bool,
    return_errors: bool,
) -> Iterator[Answer | Exception]:
    """Submits items and yields their answers, see `Session.stream`.

    Args:
        items: what is submitted, each the arguments of one call or the only one.
        submit: as `Session.submit`.
        before_waiting: called before an answer is waited for; may raise.
        window: most micro-batches in flight.
        micro_batch: rows of one.
        ordered: yield the answers in the order of the items.
        return_errors: yield errors in the place of answers.
    """
    # Enough items to fill the window even if each is a single micro-batch, and one more so
    # that the pipeline has work while the consumer looks at an answer.
    most_rows_ahead = (window + 2) * micro_batch
    pending: _Pending = collections.deque()
    rows_ahead = 0
    try:
        for item in items:
            arrays = item if isinstance(item, tuple) else (item,)
            num_rows = _rows_for_window(arrays, micro_batch)
            pending.append((submit(*arrays), num_rows))
            rows_ahead += num_rows
            while rows_ahead >= most_rows_ahead:
                before_waiting()
                future, num_rows = _take_next(pending, ordered=ordered)
                rows_ahead -= num_rows
                yield _outcome(future, return_errors=return_errors)
        while pending:
            before_waiting()
            future, _ = _take_next(pending, ordered=ordered)
            yield _outcome(future, return_errors=return_errors)
    finally:
        for future, _ in pending:
            future.cancel()


def _rows_for_window(arrays: tuple[Array, ...], micro_batch: int) -> int:
    """Rows of an item rounded up to whole micro-batches; one micro-batch for a bad item."""
    first: Any = arrays[0] if arrays else None
    try:
        num_rows = len(first) if isinstance(first, np.ndarray) or is_tensor(first) else 1
    except Exception:  # noqa: BLE001  # without a length, or of a kind that cannot tell it
        num_rows = 1
    return max(1, -(-num_rows // micro_batch)) * micro_batch


def _take_next(pending: _Pending, *, ordered: bool) -> tuple[Future[Answer], int]:
    if not ordered:
        done, _ = concurrent.futures.wait(
            [future for future, _ in pending], return_when=concurrent.futures.FIRST_COMPLETED
        )
        for index, (future, _) in enumerate(pending):
            if future in done:
                pending.rotate(-index)
                taken = pending.popleft()
                pending.rotate(index)
                return taken
    return pending.popleft()


def _outcome(future: Future[Answer], *, return_errors: bool) -> Answer | Exception:
    try:
        return future.result()
    except Exception as error:
        if return_errors:
            return error
        raise
