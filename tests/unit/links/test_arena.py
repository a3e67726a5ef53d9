from __future__ import annotations

import os

import pytest
import torch

from cutset.links.arena import Arena, create_file, padded
from cutset.links.wire import WireError, layout_of


@pytest.fixture
def ends() -> tuple[Arena, Arena]:
    """Sender and receiver of two slots of 192 bytes, both in epoch 1."""
    file = create_file(192, 2)
    sender, receiver = Arena(file, 192, 2), Arena(file, 192, 2)
    os.close(file)
    sender.enter(1, as_sender=True)
    receiver.enter(1, as_sender=False)
    return sender, receiver


def test_tensors_arrive_through_a_slot(ends: tuple[Arena, Arena]) -> None:
    sender, receiver = ends
    tensors = [torch.arange(10.0), torch.arange(6).reshape(2, 3).t()]
    slot = sender.put(1, tensors)
    assert slot == 0
    first, second = receiver.get(0, tuple(layout_of(tensor) for tensor in tensors))
    assert torch.equal(first, tensors[0])
    assert torch.equal(second, tensors[1])
    assert second.stride() == (1, 3)


def test_a_slot_is_free_again_only_after_its_release(ends: tuple[Arena, Arena]) -> None:
    sender, receiver = ends
    data = [torch.zeros(4)]
    assert [sender.put(1, data), sender.put(1, data), sender.put(1, data)] == [0, 1, None]
    receiver.release(1, 1)
    assert sender.put(1, data) == 1


def test_a_late_release_does_not_free_a_slot_of_the_next_epoch(
    ends: tuple[Arena, Arena],
) -> None:
    sender, receiver = ends
    assert sender.put(1, [torch.zeros(4)]) == 0
    sender.enter(2, as_sender=True)
    receiver.enter(2, as_sender=False)
    assert sender.put(2, [torch.ones(4)]) == 0
    receiver.release(1, 0)
    assert sender.put(2, [torch.ones(4)]) == 1


def test_a_sender_of_an_old_epoch_puts_nothing(ends: tuple[Arena, Arena]) -> None:
    sender, receiver = ends
    sender.enter(2, as_sender=True)
    assert sender.put(1, [torch.ones(4)]) is None
    assert not receiver.get(0, (layout_of(torch.ones(4)),))[0].any()


def test_more_than_a_slot_holds_is_refused(ends: tuple[Arena, Arena]) -> None:
    sender, _ = ends
    with pytest.raises(WireError, match="more than the 192 bytes of a slot"):
        sender.put(1, [torch.zeros(4), torch.zeros(33)])
    assert sender.put(1, [torch.zeros(4), torch.zeros(32)]) == 0


def test_tensors_of_no_elements_take_no_room(ends: tuple[Arena, Arena]) -> None:
    sender, receiver = ends
    tensors = [torch.zeros(0, 4), torch.ones(2)]
    assert sender.put(1, tensors) == 0
    empty, two = receiver.get(0, tuple(layout_of(tensor) for tensor in tensors))
    assert empty.shape == (0, 4)
    assert torch.equal(two, tensors[1])


def test_lengths_are_padded_to_cache_lines() -> None:
    assert [padded(n) for n in (0, 1, 64, 65)] == [0, 64, 64, 128]
