"""Who comes in, and how much of what: limits over real connections."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import io
import json
import logging
import select
import socket
import ssl
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from uvicorn.server import ServerState

from cutset.errors import CutsetError
from cutset.serve.connections import _SPARE_CONNECTIONS, protocol_class
from cutset.serve.server import bind
from cutset.serve.settings import ServeSettings, read_token

from .held import HeldSession
from .running import INFER, Running, ask, running_server, until

TOKEN = "0123456789abcdef"
ROW = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
).encode()


@pytest.fixture
def session() -> HeldSession:
    return HeldSession(at_once=True)


@pytest.fixture
def running(session: HeldSession) -> Iterator[Running]:
    with running_server(
        session,  # type: ignore[arg-type]
        max_body_bytes=20_000,
        max_json_bytes=10_000,
        max_pixels=100,
        max_connections=4,
        header_timeout_s=0.5,
        body_timeout_s=0.5,
        keep_alive_s=1.0,
        max_header_bytes=4096,
    ) as each:
        yield each


def _error(body: bytes) -> str:
    document = json.loads(body)
    assert list(document) == ["error"]
    return str(document["error"])


def _talk(running: Running, *pieces: bytes) -> bytes:
    """Sends bytes and reads until the server closes the connection."""
    host, port = running.address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        for piece in pieces:
            connection.sendall(piece)
        received = b""
        while data := connection.recv(65536):
            received += data
    return received


def test_an_answer(running: Running) -> None:
    status, headers, body = ask(running, body=ROW)
    assert status == 200
    assert json.loads(body)["outputs"][0]["data"] == [2, 4, 6]
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers


def test_long_data_both_ways(session: HeldSession) -> None:
    values = list(range(6000))
    tensor = {"name": "x", "shape": [2000, 3], "datatype": "FP32", "data": values}
    with running_server(session) as running:  # type: ignore[arg-type]
        status, _, body = ask(running, body=json.dumps({"inputs": [tensor]}).encode())
    assert status == 200
    assert json.loads(body)["outputs"][0]["data"] == [2 * each for each in values]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": f"Bearer {TOKEN[:-1]}"}, 401),
        ({"Authorization": f"Bearer {TOKEN}0"}, 401),
        ({"Authorization": f"Basic {TOKEN}"}, 401),
        ({"Authorization": TOKEN}, 401),
        ({"Authorization": f"Bearer {TOKEN}"}, 200),
        ({"Authorization": f"bearer  {TOKEN}", "Host": "elsewhere.example"}, 200),
    ],
)
def test_token(session: HeldSession, headers: dict[str, str], status: int) -> None:
    with running_server(session, token=TOKEN) as running:  # type: ignore[arg-type]
        given, answer, body = ask(running, body=ROW, headers=headers)
        assert given == status
        if status == 401:
            assert answer["www-authenticate"] == "Bearer"
            assert "expected 'Bearer TOKEN'" in _error(body)
            assert TOKEN not in body.decode()
        for path in ("/metrics", "/status", "/openapi.json", "/v2"):
            assert ask(running, "GET", path, None, headers)[0] == status
        for path in ("/", "/docs", "/v2/health/live", "/v2/health/ready"):
            assert ask(running, "GET", path, None, headers)[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:1", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("evil.example", 421), ("", 421)],
)
def test_names_of_this_machine_only(running: Running, host: str, status: int) -> None:
    assert ask(running, body=ROW, headers={"Host": host})[0] == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://localhost"}, 200),
        ({"Origin": "https://LOCALHOST:443"}, 200),  # behind a proxy that ends TLS
        ({"Origin": "http://localhost:8001", "Host": "localhost:8001"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Origin": "http://localhost:8001"}, 403),
        ({"Origin": "http://localhost.example"}, 403),
        ({"Origin": "http://user@localhost"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_other_sites_pages_are_refused(
    running: Running, headers: dict[str, str], status: int
) -> None:
    given, _, body = ask(running, body=ROW, headers={"Host": "localhost", **headers})
    assert given == status
    if status == 403:
        assert "is not this server's" in _error(body)
    # What computes nothing needs no origin: their pages cannot read the answer.
    assert ask(running, "GET", "/v2", None, {"Host": "localhost", **headers})[0] == 200


@pytest.mark.parametrize("path", [INFER, "/classify"])
@pytest.mark.parametrize(
    "headers",
    [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
    ],
)
def test_two_lengths_get_one_answer(running: Running, path: str, headers: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n"
    smuggled = b"0\r\n\r\nGET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = _talk(running, head.encode() + smuggled)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"came with Transfer-Encoding" in answer


@pytest.mark.parametrize("value", ["5, 6", "+5", "0x5", "-1", "5\r\nContent-Length: 6"])
def test_other_lengths_close_the_connection(running: Running, value: str) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {value}\r\n\r\n"
    answer = _talk(running, head.encode() + b"12345GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
def test_what_is_not_json_is_not_computed(
    session: HeldSession, running: Running, kind: str
) -> None:
    status, _, body = ask(running, body=ROW, headers={"Content-Type": kind})
    assert (status, "expected application/json" in _error(body)) == (415, True)
    assert not session.sent


def test_paths_and_methods(running: Running) -> None:
    status, _, body = ask(running, "GET", "/nothing/here", None)
    assert (status, _error(body)) == (404, "there is nothing at '/nothing/here'; see /docs")
    status, headers, body = ask(running, "GET", INFER, None)
    assert (status, headers["allow"], _error(body)) == (405, "POST", "GET: Method Not Allowed")


def test_a_body_that_says_it_is_too_long(running: Running) -> None:
    status, headers, body = ask(running, "POST", "/classify", b"a" * 20_001)
    assert status == 413
    assert "at most 20000 are taken" in _error(body)
    assert headers["connection"] == "close"


def test_a_body_in_chunks_that_grows_too_long(running: Running) -> None:
    chunk = b"2710\r\n" + b"a" * 10_000 + b"\r\n"
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = _talk(running, head.encode(), chunk, chunk, chunk, b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_too_much_json(running: Running) -> None:
    status, _, body = ask(running, body=ROW + b" " * 10_000)
    assert status == 413
    assert "at most 10000" in _error(body)


@pytest.mark.parametrize(
    "headers",
    [
        "Content-Length: 10001",
        "Content-Length: 19000\r\nInference-Header-Content-Length: 10001",
        "Transfer-Encoding: chunked\r\nInference-Header-Content-Length: 10001",
    ],
)
def test_too_much_json_is_refused_before_it_is_sent(running: Running, headers: str) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n"
    answer = _talk(running, head.encode())
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"at most 10000 are taken" in answer


def test_json_that_becomes_too_long(running: Running) -> None:
    packed = gzip.compress(ROW + b" " * 10_000)
    status, _, body = ask(running, body=packed, headers={"Content-Encoding": "gzip"})
    assert (status, "at most 10000" in _error(body)) == (413, True)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_small_body_that_becomes_too_long(running: Running, encoding: str) -> None:
    bomb = b"\0" * 10_000_000
    packed = gzip.compress(bomb) if encoding == "gzip" else zlib.compress(bomb)
    assert len(packed) < 20_000
    status, _, body = ask(running, "POST", "/classify", packed, {"Content-Encoding": encoding})
    assert status == 413
    assert "at most 20000" in _error(body)


def test_compressed_bodies(running: Running) -> None:
    packed = gzip.compress(ROW)
    assert ask(running, body=packed, headers={"Content-Encoding": "gzip"})[0] == 200
    for wrong in (packed[:-9], packed + b"more", ROW):
        status, _, body = ask(running, body=wrong, headers={"Content-Encoding": "gzip"})
        assert status == 400
        assert _error(body).startswith("body: ")
    status, _, body = ask(running, body=ROW, headers={"Content-Encoding": "br"})
    assert (status, "gzip, deflate" in _error(body)) == (415, True)


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"], ids=["without end", "in one packet"])
@pytest.mark.parametrize("before", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_headers_too_long(running: Running, before: bytes, end: bytes) -> None:
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 5000
    answer = _talk(running, before + head + end)
    assert answer.count(b"HTTP/1.1 200 ") == bool(before)
    _, _, last = answer.rpartition(b"HTTP/1.1 ")
    assert last.startswith(b"431 ")
    assert b'{"error": "the request line and headers are too long"}' in last


def test_what_is_no_http(running: Running) -> None:
    assert _talk(running, b"\x16\x03\x01\x02\x00hello\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert ask(running, body=ROW)[0] == 200


def test_a_client_that_says_nothing(running: Running) -> None:
    assert _talk(running).startswith(b"HTTP/1.1 408 ")
    assert _talk(running, b"GET / HTTP/1.1\r\nHost: loc").startswith(b"HTTP/1.1 408 ")


def test_a_client_that_never_ends_its_body(running: Running) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n".encode()
    answer = _talk(running, head, b"{")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the body did not arrive within 0.5 s" in answer


def test_a_connection_too_many(session: HeldSession) -> None:
    ask = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with running_server(session, max_connections=4) as running:  # type: ignore[arg-type]
        host, port = running.address.split(":")
        open_ones = [socket.create_connection((host, int(port)), timeout=10) for _ in range(4)]
        for each in open_ones:
            each.sendall(ask)
            assert each.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert _talk(running).startswith(b"HTTP/1.1 503 ")
        for each in open_ones:
            each.close()
        closing = ask[:-2] + b"Connection: close\r\n\r\n"
        # until the server has seen that they left
        until(lambda: _talk(running, closing).startswith(b"HTTP/1.1 200 "))


def test_a_client_that_takes_no_answer(running: Running) -> None:
    host, port = running.address.split(":")
    state = running.server.server_state
    with socket.create_connection((host, int(port)), timeout=0.2) as connection:
        ask = b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with contextlib.suppress(TimeoutError, ConnectionError):
            connection.sendall(ask * 5000)  # 50 MB of answers: more than any buffer holds
        until(lambda: state.total_requests > 0)
        until(lambda: not state.connections)  # though the client never closes


class _StuckTransport(asyncio.Transport):
    """Was closed, but its last bytes are never taken."""

    aborted = False

    def is_closing(self) -> bool:
        return True

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def abort(self) -> None:
        self.aborted = True


def test_a_closed_connection_does_not_stay_for_its_last_bytes(running: Running) -> None:
    async def scenario() -> None:
        limits = ServeSettings(body_timeout_s=0.01)
        transport = _StuckTransport()
        connection = protocol_class(limits)(running.server.config, ServerState(), {})
        connection.connection_made(transport)
        while not transport.aborted:
            await asyncio.sleep(0.005)
        connection.connection_lost(ConnectionAbortedError())

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_handshakes_count_as_connections(
    session: HeldSession, tls_files: tuple[Path, Path]
) -> None:
    cert, key = tls_files
    with (
        running_server(session, tls_cert=cert, tls_key=key, max_connections=1) as running,  # type: ignore[arg-type]
        contextlib.ExitStack() as stack,
    ):
        host, port = running.address.split(":")
        silent = [
            stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            for _ in range(1 + _SPARE_CONNECTIONS + 1)
        ]
        assert silent[-1].recv(1) == b""
        silent[0].settimeout(0.1)
        with pytest.raises(TimeoutError):
            silent[0].recv(1)


def test_all_bytes_together_are_bounded(session: HeldSession) -> None:
    with running_server(session, max_pending_bytes=1000) as running:  # type: ignore[arg-type]
        status, _, body = ask(running, body=ROW)
        assert status == 413
        assert "at most 1000 are given" in _error(body)
    assert running.server.service.budget.num_taken_bytes == 0


def _png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return file.getvalue()


def test_an_image_with_too_many_pixels(running: Running) -> None:
    bomb = _png(3000, 3000)  # 9 million pixels in 9 kB
    assert len(bomb) < 20_000
    status, _, body = ask(running, path="/classify", body=bomb)
    assert status == 400
    assert "3000 x 3000 pixels, more than the 100 allowed" in _error(body)


def _form(name: str, data: bytes) -> tuple[bytes, dict[str, str]]:
    head = f'--cut\r\nContent-Disposition: form-data; name="image"{name}\r\n\r\n'
    return head.encode() + data + b"\r\n--cut--\r\n", {
        "Content-Type": "multipart/form-data; boundary=cut"
    }


def test_forms(running: Running) -> None:
    body, headers = _form('; filename="a.png"', b"not a picture")
    status, _, answer = ask(running, path="/classify", body=body, headers=headers)
    assert (status, "is no image" in _error(answer)) == (400, True)
    body, headers = _form("", b"not a file")
    status, _, answer = ask(running, path="/classify", body=body, headers=headers)
    assert (status, "the form has no file" in _error(answer)) == (400, True)
    picture, _ = _form('; filename="a.png"', b"not a picture")
    for body, content_type, reason in (
        (picture, "multipart/form-data", "its Content-Type names no boundary"),
        (b"--nonsense", "multipart/form-data; boundary=cut", "Expected boundary character"),
        (picture[:-9], "multipart/form-data; boundary=cut", "it ends before its last boundary"),
        (
            picture[:-9] + picture,
            "multipart/form-data; boundary=cut",
            "it has more than one file",
        ),
    ):
        headers = {"Content-Type": content_type}
        status, _, answer = ask(running, path="/classify", body=body, headers=headers)
        assert status == 400
        assert f"body: is no form that can be read: {reason}" in _error(answer)
    status, _, answer = ask(
        running, path="/classify", body=b"a", headers={"Content-Type": "text/plain"}
    )
    assert status == 415
    status, _, answer = ask(running, path="/classify?top=0", body=b"a")
    assert _error(answer) == "query parameter top: is '0', expected 1 to 1000"


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for this machine, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", key, "-out", cert, "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


def test_tls(session: HeldSession, tls_files: tuple[Path, Path]) -> None:
    cert, key = tls_files
    context = ssl.create_default_context(cafile=str(cert))
    with running_server(session, tls_cert=cert, tls_key=key) as running:  # type: ignore[arg-type]
        assert running.url.startswith("https://")
        connection = http.client.HTTPSConnection(running.address, context=context, timeout=10)
        connection.request("POST", INFER, ROW)
        assert connection.getresponse().status == 200
        connection.close()


def test_certificates_that_cannot_be_used(tls_files: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = tls_files
    locked, other = tmp_path / "locked.pem", tmp_path / "other.pem"
    for command in (
        ("pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", locked),
        ("genpkey", "-algorithm", "ed25519", "-out", other),
    ):
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    for wrong in (locked, other, cert, tmp_path / "absent.pem"):
        with pytest.raises(CutsetError, match=f"--tls-key {wrong} cannot be used: "):
            bind(ServeSettings(port=0, tls_cert=cert, tls_key=wrong))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"host": "0.0.0.0"}, "can be reached from other machines"),
        ({"host": "example.org"}, "can be reached from other machines"),
        ({"token": "short"}, "the token has 5 characters"),
        ({"tls_cert": Path("a")}, "belong together"),
        ({"nan_policy": "maybe"}, "nan_policy is 'maybe'"),
        ({"port": 65536}, "port is 65536"),
        ({"max_queue": 0}, "max_queue is 0"),
        ({"max_delay_s": -1.0}, "max_delay_s is -1.0"),
        ({"model_name": "a/b"}, "model name 'a/b'"),
    ],
)
def test_settings_that_are_wrong(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServeSettings(**changes)  # type: ignore[arg-type]


def test_settings_that_open_the_door() -> None:
    assert ServeSettings().is_local
    assert ServeSettings(host="::1").is_local
    assert not ServeSettings(host="0.0.0.0", no_auth=True).is_local
    assert not ServeSettings(host="0.0.0.0", token=TOKEN).is_local


def test_token_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    assert read_token(path) == TOKEN
    assert caplog.records == []
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        read_token(path)
    assert "can be read by others" in caplog.text
    for wrong in ("", "two words", "n\u00f6n-ascii"):
        path.write_text(wrong)
        with pytest.raises(ValueError, match="holds no token"):
            read_token(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_token(tmp_path / "absent")


def test_bodies_held_at_once_are_bounded(session: HeldSession) -> None:
    """Clients that begin long bodies and send them slowly cannot fill the memory."""
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\n".encode()
    with running_server(session, max_pending_bytes=30_000) as running:  # type: ignore[arg-type]
        host, port = running.address.split(":")
        slow = [socket.create_connection((host, int(port)), timeout=10) for _ in range(4)]
        for each in slow:
            each.sendall(head + b"{")
        refused, _, _ = select.select(slow, [], [], 30)
        assert len(refused) == 1
        answer = b""
        while b"}" not in answer and (more := refused[0].recv(65536)):
            answer += more
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"as many bytes of requests as it may" in answer
        assert running.server.service.budget.num_taken_bytes == 27_000
        for each in slow:
            each.close()


def test_a_body_that_is_only_announced_takes_no_room(session: HeldSession) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\n".encode()
    with running_server(session, max_pending_bytes=9000) as running:  # type: ignore[arg-type]
        host, port = running.address.split(":")
        silent = [socket.create_connection((host, int(port)), timeout=10) for _ in range(4)]
        for each in silent:
            each.sendall(head)
        until(lambda: len(running.server.server_state.tasks) == 4)
        assert ask(running, body=ROW)[0] == 200
        for each in silent:
            each.close()
