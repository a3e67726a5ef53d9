"""Where the two ends of a link between hosts learn each other's address: the control connections.

gloo asks a store for that (`cutset.links.network` makes one of a meeting). Ours has no port: what
one end puts in travels over its engine's own connection to the session, and from there to the
neighbour. So nobody else can read or write it.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable

from cutset.engines.protocol import Address


class Meeting:
    """One end of one link in one epoch; used by one thread, told and closed by others.

    Args:
        epoch: of the link.
        link: its index.
        publish: called with what this end puts in; brings it to `tell` of the neighbour's end.
        timeout_s: how long the neighbour may take.
    """

    def __init__(
        self, epoch: int, link: int, publish: Callable[[Address], None], timeout_s: float
    ) -> None:
        self._epoch = epoch
        self._link = link
        self._publish = publish
        self._timeout_s = timeout_s
        self._known: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self._closed = False

    def tell(self, address: Address) -> None:
        """Takes what the neighbour put in; what came first stays."""
        with self._changed:
            self._known.setdefault(address.key, address.value)
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the waiting."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # --- what gloo calls

    def set(self, key: str, value: bytes) -> None:
        """Keeps a value and publishes it."""
        address = Address(epoch=self._epoch, link=self._link, key=key, value=bytes(value))
        self.tell(address)
        self._publish(address)

    def get(self, key: str) -> bytes:
        """Waits for a value.

        Raises:
            RuntimeError: it did not come in time, or the epoch is over.
        """
        self.wait([key], dt.timedelta(seconds=self._timeout_s))
        return self._known[key]

    def wait(self, keys: list[str], timeout: dt.timedelta | None = None) -> None:
        """Waits for values.

        Raises:
            RuntimeError: they did not come in time, or the epoch is over.
        """
        limit_s = self._timeout_s if timeout is None else timeout.total_seconds()
        deadline_s = time.monotonic() + limit_s
        with self._changed:
            while not self._closed and not all(key in self._known for key in keys):
                if not self._changed.wait(deadline_s - time.monotonic()):
                    raise RuntimeError("its address did not come")
            if self._closed:
                raise RuntimeError("the epoch is over")
