from __future__ import annotations

import datetime as dt
import threading

import pytest

from cutset.engines.protocol import Address
from cutset.links.meeting import Meeting


def test_what_one_end_puts_in_the_other_end_gets() -> None:
    told: list[Address] = []
    first = Meeting(3, 1, told.append, timeout_s=10)
    second = Meeting(3, 1, lambda address: None, timeout_s=10)
    first.set("0/0", b"here")
    assert told == [Address(epoch=3, link=1, key="0/0", value=b"here")]
    second.tell(told[0])
    assert (first.get("0/0"), second.get("0/0")) == (b"here", b"here")


def test_what_came_first_stays() -> None:
    meeting = Meeting(1, 0, lambda address: None, timeout_s=10)
    meeting.tell(Address(epoch=1, link=0, key="0/1", value=b"first"))
    meeting.tell(Address(epoch=1, link=0, key="0/1", value=b"second"))
    assert meeting.get("0/1") == b"first"


def test_a_neighbour_that_says_nothing_is_waited_for_no_longer_than_the_limit() -> None:
    meeting = Meeting(1, 0, lambda address: None, timeout_s=0.01)
    with pytest.raises(RuntimeError, match="did not come"):
        meeting.get("0/1")
    with pytest.raises(RuntimeError, match="did not come"):
        meeting.wait(["0/1"], dt.timedelta(seconds=0.01))


def test_the_end_of_the_epoch_ends_the_waiting() -> None:
    meeting = Meeting(1, 0, lambda address: None, timeout_s=60)
    closer = threading.Timer(0.05, meeting.close)
    closer.start()
    with pytest.raises(RuntimeError, match="is over"):
        meeting.get("0/1")
    closer.join()
