from __future__ import annotations

import gc
import os

import numpy as np
import pytest

from cutset.links.arena import Arena, create_file, padded
from cutset.links.wire import Layout, WireError, layout_of


@pytest.fixture
def ends() -> tuple[Arena, Arena]:
    """Sender and receiver of two slots of 192 bytes, both in epoch 1."""
    file = create_file(192, 2)
    sender, receiver = Arena(file, 192, 2), Arena(file, 192, 2)
    os.close(file)
    sender.enter(1, as_sender=True)
    receiver.enter(1, as_sender=False)
    return sender, receiver


def test_arrays_arrive_through_a_slot(ends: tuple[Arena, Arena]) -> None:
    sender, receiver = ends
    arrays = [np.arange(10.0), np.arange(6).reshape(2, 3).T]
    slot = sender.put(1, arrays)
    assert slot == 0
    first, second = receiver.get(0, tuple(layout_of(array) for array in arrays))
    assert np.array_equal(first, arrays[0])
    assert np.array_equal(second, arrays[1])
    assert second.strides == (8, 24)
    assert first.ctypes.data % 64 == second.ctypes.data % 64 == 0


def test_a_slot_is_free_again_only_after_its_release(ends: tuple[Arena, Arena]) -> None:
    sender, receiver = ends
    data = [np.zeros(4, np.float32)]
    assert [sender.put(1, data), sender.put(1, data), sender.put(1, data)] == [0, 1, None]
    receiver.release(1, 1)
    assert sender.put(1, data) == 1


def test_a_late_release_does_not_free_a_slot_of_the_next_epoch(
    ends: tuple[Arena, Arena],
) -> None:
    sender, receiver = ends
    assert sender.put(1, [np.zeros(4, np.float32)]) == 0
    sender.enter(2, as_sender=True)
    receiver.enter(2, as_sender=False)
    assert sender.put(2, [np.ones(4)]) == 0
    receiver.release(1, 0)
    assert sender.put(2, [np.ones(4)]) == 1


def test_a_sender_of_an_old_epoch_puts_nothing(ends: tuple[Arena, Arena]) -> None:
    sender, receiver = ends
    sender.enter(2, as_sender=True)
    assert sender.put(1, [np.ones(4)]) is None
    assert not receiver.get(0, (layout_of(np.ones(4)),))[0].any()


def test_more_than_a_slot_holds_is_refused(ends: tuple[Arena, Arena]) -> None:
    sender, _ = ends
    with pytest.raises(WireError, match="more than the 192 bytes of a slot"):
        sender.put(1, [np.zeros(4, np.float32), np.zeros(33, np.float32)])
    assert sender.put(1, [np.zeros(4, np.float32), np.zeros(32, np.float32)]) == 0


def test_arrays_of_no_elements_take_no_room(ends: tuple[Arena, Arena]) -> None:
    sender, receiver = ends
    arrays = [np.zeros((0, 4)), np.ones(2)]
    assert sender.put(1, arrays) == 0
    empty, two = receiver.get(0, tuple(layout_of(array) for array in arrays))
    assert empty.shape == (0, 4)
    assert np.array_equal(two, arrays[1])


def test_more_than_a_slot_holds_is_not_read(ends: tuple[Arena, Arena]) -> None:
    # Two of 65 bytes are fewer than 192, but each begins at a multiple of 64.
    _, receiver = ends
    layouts = (Layout("uint8", (65,), (1,)), Layout("uint8", (65,), (1,)))
    with pytest.raises(WireError, match="more than the 192 bytes of a slot"):
        receiver.get(0, layouts)


def test_views_outlive_the_arena() -> None:
    file = create_file(192, 2)
    arena = Arena(file, 192, 2)
    os.close(file)
    arena.enter(1, as_sender=True)
    sent = np.arange(4.0)
    arena.put(1, [sent])
    (view,) = arena.get(0, (layout_of(sent),))
    del arena
    gc.collect()
    assert view.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_lengths_are_padded_to_cache_lines() -> None:
    assert [padded(n) for n in (0, 1, 64, 65)] == [0, 64, 64, 128]
