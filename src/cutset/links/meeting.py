"""Where the two ends of a link between hosts learn of each other: the control connections.

What one end publishes travels over its engine's own connection to the session, and from there to
the neighbour. So nobody else can read or change it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from cutset.engines.protocol import Address


class Meeting:
    """One end of one link in one epoch; used by one thread, told and closed by others.

    Args:
        epoch: of the link.
        link: its index.
        publish: called with what this end says of itself; brings it to `tell` of the neighbour's.
    """

    def __init__(self, epoch: int, link: int, publish: Callable[[Address], None]) -> None:
        self._epoch = epoch
        self._link = link
        self._publish = publish
        self._told: Address | None = None
        self._changed = threading.Condition()
        self._closed = False

    def tell(self, address: Address) -> None:
        """Takes what the neighbour published; what came first stays."""
        with self._changed:
            self._told = self._told or address
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the waiting."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether the epoch is over."""
        return self._closed

    def publish(self, public_key: str, endpoint: str = "") -> None:
        """Tells the neighbour this end's key, and where it listens if it does."""
        self._publish(
            Address(epoch=self._epoch, link=self._link, public_key=public_key, endpoint=endpoint)
        )

    def wait(self, timeout_s: float) -> Address:
        """What the neighbour published.

        Raises:
            TimeoutError: it did not come in time.
            ConnectionAbortedError: the epoch is over.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while not self._closed and self._told is None:
                if not self._changed.wait(deadline_s - time.monotonic()):
                    raise TimeoutError("its address did not come")
            if self._told is None or self._closed:
                raise ConnectionAbortedError("the epoch is over")
            return self._told
