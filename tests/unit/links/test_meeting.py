from __future__ import annotations

import threading

import msgspec
import pytest

from cutset.engines.protocol import Address
from cutset.links.meeting import Meeting

_KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
_OTHER_KEY = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"


def test_what_one_end_publishes_the_other_end_gets() -> None:
    told: list[Address] = []
    first = Meeting(3, 1, told.append)
    second = Meeting(3, 1, lambda address: None)
    first.publish(_KEY, "tcp://10.0.0.2:4000")
    assert told == [Address(epoch=3, link=1, public_key=_KEY, endpoint="tcp://10.0.0.2:4000")]
    second.tell(told[0])
    assert second.wait(10) == told[0]


def test_what_came_first_stays() -> None:
    meeting = Meeting(1, 0, lambda address: None)
    meeting.tell(Address(epoch=1, link=0, public_key=_KEY))
    meeting.tell(Address(epoch=1, link=0, public_key=_OTHER_KEY))
    assert meeting.wait(0).public_key == _KEY


def test_a_neighbour_that_says_nothing_is_waited_for_no_longer_than_the_limit() -> None:
    meeting = Meeting(1, 0, lambda address: None)
    with pytest.raises(TimeoutError, match="did not come"):
        meeting.wait(0.01)


def test_the_end_of_the_epoch_ends_the_waiting() -> None:
    meeting = Meeting(1, 0, lambda address: None)
    closer = threading.Timer(0.05, meeting.close)
    closer.start()
    with pytest.raises(ConnectionAbortedError, match="is over"):
        meeting.wait(60)
    assert meeting.closed
    closer.join()


@pytest.mark.parametrize("key", ["", _KEY[:-1], _KEY + "x", "~" * 40, "\u00e9" * 40])
def test_a_key_that_is_none_is_no_address(key: str) -> None:
    line = msgspec.json.encode(Address(epoch=1, link=0, public_key=key))
    with pytest.raises(msgspec.ValidationError, match="public_key"):
        msgspec.json.decode(line, type=Address)
