"""Memory that two neighbours on one host share: tensors are put down, not sent.

On one host bytes need no wire, and no encryption. So only a header
is sent (`cutset.links.shared_memory`), and names the slot in which the tensors lie.

Layout of the file: pages of int64 tags, one a slot; then the slots, page-aligned. A tag is 0
(free) or the epoch in which the sender filled the slot. Only the sender sets a tag, only the
receiver clears it, both under the lock of their own end and only in their present epoch: a
computation that finishes late cannot free, and a sender of an old epoch cannot fill, a slot of the
new one. No
micro-batch of an epoch is sent before both ends of every link have entered it.

The file has no name (memfd, or unlinked), so nothing is left behind however a process ends.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading

import numpy as np

from cutset.dtypes import ALIGNMENT_BYTES
from cutset.links.wire import Layout, WireError, as_bytes, from_bytes

_PAGE_BYTES = 4096
_MOST_VIEWS = 4096


def padded(num_bytes: int) -> int:
    """`num_bytes` rounded up to a multiple of `ALIGNMENT_BYTES`."""
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def create_file(slot_bytes: int, num_slots: int) -> int:
    """Makes the file of an arena.

    Args:
        slot_bytes: bytes of the largest micro-batch's tensors, each padded.
        num_slots: 1 or more.

    Returns:
        A file descriptor, which the caller closes.

    Raises:
        OSError: the system has no room.
        OverflowError: no file can be so large.
    """
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("cutset-link", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as unlinked:
            file = os.dup(unlinked.fileno())
    try:
        os.truncate(file, _file_bytes(slot_bytes, num_slots))
    except BaseException:
        os.close(file)
        raise
    return file


def _tag_bytes(num_slots: int) -> int:
    return -(-8 * num_slots // _PAGE_BYTES) * _PAGE_BYTES


def _file_bytes(slot_bytes: int, num_slots: int) -> int:
    return _tag_bytes(num_slots) + num_slots * _slot_stride(slot_bytes)


def _slot_stride(slot_bytes: int) -> int:
    return max(1, -(-slot_bytes // _PAGE_BYTES)) * _PAGE_BYTES


class Arena:
    """One end's view of the shared memory of one link; lives through all epochs.

    Args:
        file: descriptor of the file; stays open, the mapping does not need it.
        slot_bytes: as given to `create_file`.
        num_slots: as given to `create_file`.
    """

    def __init__(self, file: int, slot_bytes: int, num_slots: int) -> None:
        stride = _slot_stride(slot_bytes)
        first = _tag_bytes(num_slots)
        mapping = mmap.mmap(file, _file_bytes(slot_bytes, num_slots))
        memory = np.frombuffer(mapping, np.uint8)  # keeps the mapping, as views of it keep it
        self.num_slots = num_slots
        self._slot_bytes = slot_bytes
        self._tags = memoryview(mapping)[: 8 * num_slots].cast("q")
        self._slots = [
            memory[start : start + stride]
            for start in range(first, first + num_slots * stride, stride)
        ]
        self._views: dict[tuple[int, tuple[Layout, ...]], tuple[np.ndarray, ...]] = {}
        self._lock = threading.Lock()
        self._epoch = 0

    def enter(self, epoch: int, *, as_sender: bool) -> None:
        """Begins an epoch at this end; the sender's end frees all slots."""
        with self._lock:
            self._epoch = epoch
            if as_sender:
                for slot in range(self.num_slots):
                    self._tags[slot] = 0

    def put(self, epoch: int, arrays: list[np.ndarray]) -> int | None:
        """Copies arrays into the first free slot.

        Args:
            epoch: the sender's epoch.
            arrays: dense; one after the other, each beginning at a multiple of 64 bytes.

        Returns:
            The slot, or None where none is free.

        Raises:
            WireError: a slot is too small for them.
        """
        with self._lock:
            if epoch != self._epoch:
                return None
            slot = next((i for i in range(self.num_slots) if not self._tags[i]), None)
            if slot is None:
                return None
            self._copy(arrays, slot)
            self._tags[slot] = epoch
            return slot

    def _copy(self, arrays: list[np.ndarray], slot: int) -> None:
        offset = 0
        for array in arrays:
            # As bytes in a row NumPy moves them by memmove, without the threads that stages need.
            data = as_bytes(array)
            if offset + data.size > self._slot_bytes:
                raise WireError(f"tensors of more than the {self._slot_bytes} bytes of a slot")
            self._slots[slot][offset : offset + data.size] = data
            offset += padded(data.size)

    def get(self, slot: int, layouts: tuple[Layout, ...]) -> tuple[np.ndarray, ...]:
        """The arrays of a slot, without a copy; valid until `release`.

        Raises:
            WireError: they would be more than a slot holds.
        """
        # Slots and layouts are few and come again and again, so their views are kept.
        views = self._views.get((slot, layouts))
        if views is None:
            if len(self._views) >= _MOST_VIEWS:
                self._views.clear()
            views = self._views[slot, layouts] = self._view(slot, layouts)
        return views

    def _view(self, slot: int, layouts: tuple[Layout, ...]) -> tuple[np.ndarray, ...]:
        arrays = []
        offset = 0
        for layout in layouts:
            if offset + layout.num_bytes > self._slot_bytes:
                raise WireError(f"tensors of more than the {self._slot_bytes} bytes of a slot")
            arrays.append(from_bytes(self._slots[slot][offset:], layout))
            offset += padded(layout.num_bytes)
        return tuple(arrays)

    def release(self, epoch: int, slot: int) -> None:
        """Frees a slot, unless the epoch is over."""
        with self._lock:
            if epoch == self._epoch and self._tags[slot] == epoch:
                self._tags[slot] = 0
