"""What goes over a link, whatever carries it: its contract, micro-batches, what goes wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from cutset.codecs.coding import (
    Codec,
    CodecError,
    decode,
    encode,
    is_payload_length,
    payload_bytes,
)
from cutset.codecs.known_codecs import CODECS
from cutset.codecs.packing import require_packer
from cutset.data.images import Preprocessing
from cutset.data.pixels import are_pixels, normalised
from cutset.links.arena import padded
from cutset.links.wire import Header, Layout, WireError, header_bytes, is_dense, layout_of
from cutset.tensors import TensorSpec

CALLER = -1
"""Stands for the caller where members of groups are numbered."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LinkContract:
    """What a link may carry.

    Attributes:
        index: 0 from the caller to the first stage, then counting up to the last, which leads
            from the last stage back to the caller. Between groups there is one from each member of
            one to each of the next.
        name: ``"caller -> stage 0"``; a member with siblings is called ``"stage 0 replica 1"``.
        specs: the tensors of one micro-batch, in order.
        max_rows: rows of the largest micro-batch.
        codecs: names of the codecs of `specs`; empty where all travel as they are. A tensor with
            one travels as its payload, an array of bytes of a known length, or at most that.
        images: how the pixels of images become the one tensor; None where they may not travel in
            its place.
        sender: the member of a group that sends over it, numbered through the pipeline;
            `CALLER` for the caller.
        receiver: the member that receives, or `CALLER`.
        receiver_listens: between hosts the receiver listens and the sender connects; else the
            other way round. The caller connects, so that it needs no port that others reach.
    """

    index: int
    name: str
    specs: tuple[TensorSpec, ...]
    max_rows: int
    codecs: tuple[str, ...] = ()
    images: Preprocessing | None = None
    sender: int = CALLER
    receiver: int = CALLER
    receiver_listens: bool = True

    @property
    def coded(self) -> tuple[tuple[TensorSpec, Codec | None], ...]:
        """Each tensor and what writes it; None where it travels as it is."""
        names = self.codecs or ("",) * len(self.specs)
        return tuple((s, CODECS.get(name)) for s, name in zip(self.specs, names, strict=True))

    @property
    def max_rank(self) -> int:
        """Most dimensions of one of the arrays that travel."""
        return max((len(s.shape) if c is None else 1 for s, c in self.coded), default=0)

    @property
    def header_bytes(self) -> int:
        """Bytes of the header before a micro-batch's tensors."""
        return header_bytes(len(self.specs), self.max_rank)

    @property
    def max_bytes(self) -> int:
        """Bytes that travel of the largest micro-batch's tensors."""
        return sum(self._sizes)

    @property
    def slot_bytes(self) -> int:
        """Bytes that they need when each begins at a multiple of 64."""
        return sum(map(padded, self._sizes))

    @property
    def _sizes(self) -> tuple[int, ...]:
        rows = self.max_rows
        return tuple(
            spec.num_bytes(rows) if codec is None else payload_bytes(codec, spec, rows)
            for spec, codec in self.coded
        )

    def require_packages(self) -> None:
        """Makes sure that both ways through the codecs work here, before anything travels.

        Raises:
            MissingExtra: one needs a package that is not installed; says what to type.
        """
        if any(codec is not None and codec.packs for _, codec in self.coded):
            require_packer()

    def check_payloads(self, header: Header) -> None:
        """Checks, before memory is taken, that payloads are as long as their tensors let them be.

        Raises:
            WireError: one is not.
        """
        if not self.codecs:
            return
        if len(header.layouts) != len(self.specs):
            raise WireError(
                f"{len(header.layouts)} tensors announced in the place of {len(self.specs)}"
            )
        for layout, (spec, codec) in zip(header.layouts, self.coded, strict=True):
            if codec is None:
                continue
            if (
                layout.dtype != "uint8"
                or len(layout.shape) != 1
                or not is_payload_length(codec, layout.shape[0], spec, header.num_rows)
            ):
                expected = payload_bytes(codec, spec, header.num_rows)
                raise WireError(
                    f"{layout} announced in the place of {spec.name!r}, which codec {codec.name}"
                    f" writes in {'at most ' * codec.packs}{expected} bytes"
                )

    def decoded(self, arrays: tuple[np.ndarray, ...], num_rows: int) -> tuple[np.ndarray, ...]:
        """The tensors of what arrived; images and those with a codec in memory of their own.

        Args:
            arrays: with layouts that `check_payloads` passed.
            num_rows: rows of the micro-batch.

        Raises:
            WireError: a payload holds what no codec writes.
        """
        if self.images is not None and are_pixels(arrays, num_rows, self.images):
            return (normalised(arrays[0], self.images),)
        if not self.codecs:
            return arrays
        try:
            return tuple(
                array if codec is None else decode(codec, array, spec, num_rows)
                for array, (spec, codec) in zip(arrays, self.coded, strict=True)
            )
        except CodecError as error:
            raise WireError(str(error)) from error

    def encoded(self, arrays: list[np.ndarray], num_rows: int) -> list[np.ndarray]:
        """The arrays that travel for dense tensors.

        Raises:
            CodecError: a tensor is another than promised, or holds numbers that its codec refuses.
            ValueError: there are more or fewer than promised.
        """
        if not self.codecs:
            return arrays
        return [
            array if codec is None else encode(codec, array, spec, num_rows)
            for array, (spec, codec) in zip(arrays, self.coded, strict=True)
        ]


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
        wire_bytes: bytes of what travels in its tensors' place; known once it has travelled.
    """

    sequence: int
    num_rows: int
    tensors: tuple[np.ndarray, ...]
    release: Callable[[], None] = lambda: None
    arrived_s: float = 0.0
    received_s: float = 0.0
    wire_bytes: int = 0


class LinkClosedError(Exception):
    """The neighbour closed the link, or died, or what it sent makes no sense."""


class UnsendableError(Exception):
    """A micro-batch is of a kind that cannot be sent: its own fault, never the link's."""


def sendable(parcel: Parcel, link: LinkContract) -> tuple[list[np.ndarray], tuple[Layout, ...]]:
    """A parcel's tensors as they are sent: dense, and written by their codecs.

    Args:
        parcel: what to send.
        link: over which link.

    Raises:
        UnsendableError: a tensor cannot be sent, or they are more than the link carries.
    """
    num_rows = parcel.num_rows
    if not 1 <= num_rows <= link.max_rows:
        raise UnsendableError(f"{num_rows} rows; link {link.name} carries at most {link.max_rows}")
    try:
        arrays = link.encoded([dense(array) for array in parcel.tensors], num_rows)
        layouts = tuple(layout_of(array) for array in arrays)
    except Exception as error:
        # Whatever keeps an array from being read, want of memory included, is not the link's fault.
        raise UnsendableError(str(error) or type(error).__name__) from error
    num_bytes = sum(padded(layout.num_bytes) for layout in layouts)
    ranks = [len(layout.shape) for layout in layouts]
    if len(layouts) > len(link.specs) or max(ranks, default=0) > link.max_rank:
        raise UnsendableError(f"{', '.join(map(str, layouts))} do not fit link {link.name}")
    if num_bytes > link.slot_bytes:
        raise UnsendableError(
            f"{num_bytes} bytes of {num_rows} rows; link {link.name} carries at most"
            f" {link.slot_bytes} bytes of {link.max_rows} rows"
        )
    parcel.wire_bytes = sum(layout.num_bytes for layout in layouts)
    return arrays, layouts


def share(tensors: Sequence[np.ndarray], arrays: Sequence[np.ndarray]) -> bool:
    """Whether a tensor is still the array that arrived: codecs give memory of their own."""
    return any(tensor is array for tensor, array in zip(tensors, arrays, strict=True))


def dense(array: np.ndarray) -> np.ndarray:
    """`array`, or a dense copy that keeps the order of its dimensions where it has gaps."""
    if is_dense(array.shape, array.strides, array.itemsize):
        return array
    return np.array(array, order="K")
