"""What goes over a link, whatever carries it: its contract, micro-batches, what goes wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from cutset.links.arena import padded
from cutset.links.wire import Layout, header_bytes, is_dense, layout_of
from cutset.tensors import TensorSpec


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LinkContract:
    """What a link may carry.

    Attributes:
        index: 0 from the caller to the first stage, then counting up to the last, which leads
            from the last stage back to the caller.
        name: ``"caller -> stage 0"``.
        specs: the tensors of one micro-batch, in order.
        max_rows: rows of the largest micro-batch.
        receiver_listens: between hosts the receiver listens and the sender connects; else the
            other way round. The caller connects, so that it needs no port that others reach.
    """

    index: int
    name: str
    specs: tuple[TensorSpec, ...]
    max_rows: int
    receiver_listens: bool = True

    @property
    def max_rank(self) -> int:
        """Most dimensions of one of its tensors."""
        return max((len(spec.shape) for spec in self.specs), default=0)

    @property
    def header_bytes(self) -> int:
        """Bytes of the header before a micro-batch's tensors."""
        return header_bytes(len(self.specs), self.max_rank)

    @property
    def max_bytes(self) -> int:
        """Bytes of the largest micro-batch's tensors."""
        return sum(spec.num_bytes(self.max_rows) for spec in self.specs)

    @property
    def slot_bytes(self) -> int:
        """Bytes that its tensors need when each begins at a multiple of 64."""
        return sum(padded(spec.num_bytes(self.max_rows)) for spec in self.specs)


@dataclasses.dataclass(slots=True)
class Parcel:
    """One micro-batch on its way.

    Attributes:
        sequence: its number within the session.
        num_rows: its rows.
        tensors: in the order of the link's contract.
        release: gives the memory of the received tensors back; call it once, when nothing reads
            them any more.
        arrived_s: monotonic time at which its header came.
        received_s: monotonic time at which its last tensor was complete.
    """

    sequence: int
    num_rows: int
    tensors: tuple[np.ndarray, ...]
    release: Callable[[], None] = lambda: None
    arrived_s: float = 0.0
    received_s: float = 0.0

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(array.nbytes for array in self.tensors)


class LinkClosedError(Exception):
    """The neighbour closed the link, or died, or what it sent makes no sense."""


class UnsendableError(Exception):
    """A micro-batch is of a kind that cannot be sent: its own fault, never the link's."""


def sendable(parcel: Parcel, link: LinkContract) -> tuple[list[np.ndarray], tuple[Layout, ...]]:
    """A parcel's tensors as they are sent: dense.

    Args:
        parcel: what to send.
        link: over which link.

    Raises:
        UnsendableError: a tensor cannot be sent, or they are more than the link carries.
    """
    try:
        arrays = [dense(array) for array in parcel.tensors]
        layouts = tuple(layout_of(array) for array in arrays)
    except Exception as error:
        # Whatever keeps an array from being read, want of memory included, is not the link's fault.
        raise UnsendableError(str(error) or type(error).__name__) from error
    num_bytes = sum(padded(layout.num_bytes) for layout in layouts)
    ranks = [len(layout.shape) for layout in layouts]
    if len(layouts) > len(link.specs) or max(ranks, default=0) > link.max_rank:
        raise UnsendableError(f"{', '.join(map(str, layouts))} do not fit link {link.name}")
    if num_bytes > link.slot_bytes or not 1 <= parcel.num_rows <= link.max_rows:
        raise UnsendableError(
            f"{num_bytes} bytes of {parcel.num_rows} rows; link {link.name} carries at most"
            f" {link.slot_bytes} bytes of {link.max_rows} rows"
        )
    return arrays, layouts


def dense(array: np.ndarray) -> np.ndarray:
    """`array`, or a dense copy that keeps the order of its dimensions where it has gaps."""
    if is_dense(array.shape, array.strides, array.itemsize):
        return array
    return np.array(array, order="K")
