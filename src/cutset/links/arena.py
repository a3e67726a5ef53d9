"""Memory that two neighbours on one host share: tensors are put down, not sent.

Measured on the two-core virtual machine where this was written, a 35 kB payload over gloo on
loopback costs 0.25 ms of handshakes on top of the header's 0.04 ms. So on one host only a header
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

import ctypes
import mmap
import os
import tempfile
import threading

import torch

from cutset.links.wire import Layout, WireError, from_bytes

_PAGE_BYTES = 4096
_ALIGNMENT_BYTES = 64
_MOST_VIEWS = 4096


def padded(num_bytes: int) -> int:
    """`num_bytes` rounded up to a cache line, torch's own alignment of tensors."""
    return -(-num_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


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
        memory = torch.frombuffer(mapping, dtype=torch.uint8)
        self.num_slots = num_slots
        self._slot_bytes = slot_bytes
        self._tags = memoryview(mapping)[: 8 * num_slots].cast("q")
        self._slots = [
            memory[start : start + stride]
            for start in range(first, first + num_slots * stride, stride)
        ]
        self._addresses = [slot.data_ptr() for slot in self._slots]
        self._views: dict[tuple[int, tuple[Layout, ...]], tuple[torch.Tensor, ...]] = {}
        self._lock = threading.Lock()
        self._epoch = 0

    def enter(self, epoch: int, *, as_sender: bool) -> None:
        """Begins an epoch at this end; the sender's end frees all slots."""
        with self._lock:
            self._epoch = epoch
            if as_sender:
                for slot in range(self.num_slots):
                    self._tags[slot] = 0

    def put(self, epoch: int, tensors: list[torch.Tensor]) -> int | None:
        """Copies tensors into the first free slot.

        Args:
            epoch: the sender's epoch.
            tensors: dense; one after the other, each beginning at a multiple of 64 bytes.

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
            self._copy(tensors, slot)
            self._tags[slot] = epoch
            return slot

    def _copy(self, tensors: list[torch.Tensor], slot: int) -> None:
        offset = 0
        for tensor in tensors:
            num_bytes = tensor.numel() * tensor.element_size()
            if offset + num_bytes > self._slot_bytes:
                raise WireError(f"tensors of more than the {self._slot_bytes} bytes of a slot")
            # Not with torch, which divides a copy among threads that the stages need.
            ctypes.memmove(self._addresses[slot] + offset, tensor.data_ptr(), num_bytes)
            offset += padded(num_bytes)

    def get(self, slot: int, layouts: tuple[Layout, ...]) -> tuple[torch.Tensor, ...]:
        """The tensors of a slot, without a copy; valid until `release`."""
        # Slots and layouts are few and come again and again, so their views are kept.
        views = self._views.get((slot, layouts))
        if views is None:
            if len(self._views) >= _MOST_VIEWS:
                self._views.clear()
            views = self._views[slot, layouts] = self._view(slot, layouts)
        return views

    def _view(self, slot: int, layouts: tuple[Layout, ...]) -> tuple[torch.Tensor, ...]:
        tensors = []
        offset = 0
        for layout in layouts:
            tensors.append(from_bytes(self._slots[slot][offset:], layout))
            offset += padded(layout.num_bytes)
        return tuple(tensors)

    def release(self, epoch: int, slot: int) -> None:
        """Frees a slot, unless the epoch is over."""
        with self._lock:
            if epoch == self._epoch and self._tags[slot] == epoch:
                self._tags[slot] = 0
