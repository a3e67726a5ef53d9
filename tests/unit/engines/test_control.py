from __future__ import annotations

import os
import socket
import threading

import pytest

from cutset.engines.control import (
    COMMANDS,
    EVENTS,
    MAX_FILES,
    MAX_LINE_BYTES,
    ControlPipes,
    ControlSocket,
)
from cutset.engines.protocol import Connected, LinkLost, Refused, Started, Stop
from cutset.errors import EngineError


def test_messages_arrive_in_order_as_they_were() -> None:
    ours, theirs = socket.socketpair()
    session, worker = ControlSocket.for_session(ours), ControlSocket.for_worker(theirs)
    lost = LinkLost(epoch=2, link="stage 0 -> stage 1", seconds=0.5, reason="a\nb")
    worker.send(Started(pid=7))
    worker.send(lost)
    session.send(Stop())
    assert next(worker.messages()) == Stop()
    worker.close()
    assert list(session.messages()) == [Started(pid=7), lost]
    session.close()


@pytest.mark.parametrize(
    "line",
    [
        b"not json\n",
        b'{"type": "Stop"}\n',
        b'{"type": "Connected"}\n',
        b'{"type": "Connected", "epoch": 1, "more": 2}\n',
        b'{"type": "Connected", "epoch": "1"}\n',
    ],
)
def test_what_is_no_event_is_refused(line: bytes) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(line)
    with pytest.raises(EngineError, match="cannot be understood"):
        next(ControlSocket.for_session(ours).messages())
    ours.close()
    theirs.close()


def test_an_endless_line_is_refused() -> None:
    ours, theirs = socket.socketpair()
    writer = threading.Thread(target=theirs.sendall, args=(b"x" * (MAX_LINE_BYTES + 70000),))
    writer.start()
    with pytest.raises(EngineError, match="longer than"):
        next(ControlSocket.for_session(ours).messages())
    writer.join(10)
    ours.close()
    theirs.close()


def test_a_message_in_pieces_is_put_together() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(b'{"type": "Conn')
    theirs.sendall(b'ected", "epoch": 3}\n')
    theirs.close()
    assert list(ControlSocket.for_session(ours).messages()) == [Connected(epoch=3)]
    ours.close()


def test_files_arrive_in_order_not_later_than_their_message() -> None:
    ours, theirs = socket.socketpair()
    session, worker = ControlSocket.for_session(ours), ControlSocket.for_worker(theirs)
    pairs = [socket.socketpair() for _ in range(3)]
    session.send(Stop())
    for near, far in pairs:
        session.send(Stop(), (far.fileno(),))
        far.close()
        near.sendall(b"x")
    messages = worker.messages()
    next(messages)
    for near, _ in pairs:
        assert next(messages) == Stop()
        (file,) = worker.take_files(1)
        with socket.socket(fileno=file) as copy:
            assert copy.recv(1) == b"x"
            copy.sendall(b"y")
        assert near.recv(1) == b"y"
        near.close()
    with pytest.raises(EngineError, match="1 files should have come with a message, not 0"):
        worker.take_files(1)
    session.close()
    worker.close()


def test_files_that_no_message_spoke_of_end_the_connection() -> None:
    ours, theirs = socket.socketpair()
    session, worker = ControlSocket.for_session(ours), ControlSocket.for_worker(theirs)
    for _ in range(2):
        session.send(Stop(), (ours.fileno(),) * MAX_FILES)
    with pytest.raises(EngineError, match="files came that no message spoke of"):
        list(worker.messages())
    session.close()
    worker.close()


def test_a_message_that_names_a_folder_whose_name_is_no_text_is_sent_all_the_same() -> None:
    ours, theirs = socket.socketpair()
    worker, session = ControlSocket.for_worker(ours), ControlSocket.for_session(theirs)
    worker.send(Refused(kind="BundleError", message="caf\udce9: gone", details={"path": "\udce9"}))
    worker.close()
    assert list(session.messages()) == [
        Refused(kind="BundleError", message="caf\\udce9: gone", details={"path": "\\udce9"})
    ]
    session.close()


def _pipes() -> tuple[ControlPipes, ControlPipes]:  # type: ignore[type-arg]
    """A session's end and a worker's."""
    from_session, to_session = os.pipe(), os.pipe()
    session = ControlPipes(to_session[0], from_session[1], EVENTS)
    return session, ControlPipes(from_session[0], to_session[1], COMMANDS)


def test_pipes_carry_messages_as_sockets_do_but_no_files() -> None:
    session, worker = _pipes()
    worker.send(Started(pid=7))
    worker.send(Connected(epoch=2))
    session.send(Stop())
    assert next(worker.messages()) == Stop()
    with pytest.raises(EngineError, match="none can come this way"):
        worker.take_files(1)
    worker.close()
    assert list(session.messages()) == [Started(pid=7), Connected(epoch=2)]
    with pytest.raises(BrokenPipeError):
        session.send(Stop())
    session.close()


def test_an_empty_line_is_no_message_but_is_heard() -> None:
    session, worker = _pipes()
    worker.heard_s = 0.0
    session.say_here()
    session.send(Stop())
    assert next(worker.messages()) == Stop()
    assert worker.heard_s > 0.0
    worker.close()
    session.close()


def test_bytes_between_messages_are_handed_on_whole_and_nothing_after_them() -> None:
    session, worker = _pipes()
    data = bytes(range(256)) * 40
    session.send(Stop())
    session.write_bytes(data)
    session.send(Stop())
    messages, taken = worker.messages(), bytearray()
    next(messages)
    assert worker.take_bytes(len(data), taken.extend)
    assert taken == data
    assert next(messages) == Stop()
    session.write_bytes(b"half")
    session.close()
    assert not worker.take_bytes(5, taken.extend)
    worker.close()


def test_a_line_without_end_over_pipes_is_refused() -> None:
    session, worker = _pipes()
    writer = threading.Thread(target=worker.write_bytes, args=(b"x" * (MAX_LINE_BYTES + 70000),))
    writer.start()
    with pytest.raises(EngineError, match="longer than"):
        next(session.messages())
    writer.join(10)
    worker.close()
    session.close()
