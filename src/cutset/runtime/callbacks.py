"""Futures whose done callbacks run on a thread of their own, so that no callback stops a session.

A plain `concurrent.futures.Future` runs its callbacks on the thread that sets its result. Here that
is the thread that takes answers: a callback that waits for another answer would wait for ever, and
a slow one would keep the last stage from sending. So each session has one thread more, started with
the first callback. On it a callback may do what any other thread may: wait for answers, submit,
close the session.
"""

from __future__ import annotations

import collections
import functools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

_LOG = logging.getLogger(__name__)

_LINGER_S = 1.0


class CallbackThread:
    """Runs what it is given, in order, on a thread of its own that ends when it is idle."""

    def __init__(self) -> None:
        self._jobs: collections.deque[Callable[[], object]] = collections.deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._finishing = False

    def put(self, job: Callable[[], object]) -> None:
        """Runs `job` soon, on the thread of callbacks; what it raises is logged."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._run, name="cutset-callbacks", daemon=True)
            self._thread = thread
        try:
            thread.start()
        except RuntimeError:  # the system, or an interpreter that is ending, refuses a thread
            self._run(linger_s=0.0)

    def is_here(self) -> bool:
        """Whether the calling thread is this one."""
        return self._thread is threading.current_thread()

    def finish(self, timeout_s: float) -> bool:
        """Waits until all is done and its thread has ended; False when it was not in time.

        From now on its thread ends as soon as there is nothing to do. Called on the thread itself
        it waits for nothing.
        """
        with self._changed:
            self._finishing = True
            self._changed.notify_all()
            thread = self._thread
            if thread is None or thread is threading.current_thread():
                return True
            idle = self._changed.wait_for(lambda: self._thread is not thread, timeout_s)
        if idle and thread.ident is not None:
            thread.join(timeout_s)
        return idle

    def _run(self, linger_s: float = _LINGER_S) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._finishing, linger_s)
                if not self._jobs:
                    self._thread = None
                    self._changed.notify_all()
                    return
                job = self._jobs.popleft()
            try:
                job()
            except BaseException:  # noqa: BLE001
                # SystemExit and its like too: a callback's end is not the session's.
                _LOG.exception("a done callback failed")
            del job  # with it the answer, while nothing comes


class AnswerFuture(Future[Any]):
    """A future whose callbacks run on the session's callback thread.

    Args:
        callbacks: that thread.
    """

    def __init__(self, callbacks: CallbackThread) -> None:
        super().__init__()
        self._callbacks = callbacks

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Calls `fn` with the future when it is done; at once where it already is."""
        if self.done():
            super().add_done_callback(fn)
        else:
            callbacks = self._callbacks
            super().add_done_callback(lambda future: callbacks.put(functools.partial(fn, future)))
