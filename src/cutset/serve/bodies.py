"""Reading what clients send and writing what they get, with every length and wait bounded."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cutset.serve.refusal import Refusal, invalid
from cutset.serve.settings import ServeSettings

JSON_GROWTH = 24
"""Bytes of memory for a byte of JSON: ``"ab":1,`` is seven bytes on the wire, 150 in a dict."""

_PIECE_BYTES = 256 << 10
_ZLIB_WINDOW = {"gzip": 31, "deflate": 15}


class Budget:
    """How many bytes all requests and answers may hold together.

    Args:
        max_bytes: beyond that, `Lease.take` refuses.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_taken_bytes = 0

    def lease(self) -> Lease:
        """An account of one request, empty."""
        return Lease(self)


class Lease:
    """What one request holds of a `Budget`."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Takes so many more bytes.

        Raises:
            Refusal: 503, others hold too much; 413, it would be too much even alone.
        """
        if self._num_bytes + num_bytes > self._budget.max_bytes:
            raise Refusal(
                f"the request and its answer need about {self._num_bytes + num_bytes} bytes of "
                f"memory, at most {self._budget.max_bytes} are given; send fewer rows",
                status=413,
                reason="size",
            )
        if self._budget.num_taken_bytes + num_bytes > self._budget.max_bytes:
            raise Refusal(
                "the server holds as many bytes of requests as it may",
                status=503,
                reason="overload",
                retry_after_s=1.0,
            )
        self._budget.num_taken_bytes += num_bytes
        self._num_bytes += num_bytes

    def release(self) -> None:
        """Gives everything back; safe to call twice."""
        self._budget.num_taken_bytes -= self._num_bytes
        self._num_bytes = 0


async def read_body(
    request: Request, settings: ServeSettings, lease: Lease, *, max_bytes: int | None = None
) -> bytearray:
    """Reads and, where needed, decompresses a body.

    Args:
        request: whose body was not read.
        settings: limits.
        lease: pays for the body.
        max_bytes: longest body, also after decompression; `settings.max_body_bytes` if None.

    Raises:
        Refusal: 413, 408, 411-style lengths (400), 415 for an unknown encoding; 503 for lack of
            room.
    """
    max_bytes = settings.max_body_bytes if max_bytes is None else max_bytes
    declared = declared_length(request)
    if declared is not None and declared > max_bytes:
        raise too_long(declared, max_bytes)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "", *_ZLIB_WINDOW):
        raise Refusal(
            f"Content-Encoding: {encoding[:40]!r} is not known; send gzip, deflate or none",
            status=415,
            reason="invalid",
        )
    try:
        body = await asyncio.wait_for(
            _receive_all(request, max_bytes, lease, declared),
            settings.body_timeout_s,
        )
    except (asyncio.TimeoutError, TimeoutError) as error:
        raise Refusal(
            f"the body did not arrive within {settings.body_timeout_s:g} s",
            status=408,
            reason="deadline",
        ) from error
    window = _ZLIB_WINDOW.get(encoding)
    if window is None:
        return body
    # Little may become much: not on the event loop.
    return await asyncio.to_thread(_decompress, body, window, max_bytes, lease)


def declared_length(request: Request) -> int | None:
    """How long the client says its body is, or None where it does not.

    Raises:
        Refusal: 400, it is no length.
    """
    text = request.headers.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise invalid("Content-Length", f"{text[:40]!r} is no length")
    return int(text)


def too_long(num_bytes: int, max_bytes: int) -> Refusal:
    """The refusal (413) of a body of so many bytes."""
    return Refusal(
        f"the body has {num_bytes} bytes or more, at most {max_bytes} are taken; send fewer rows",
        status=413,
        reason="size",
    )


async def _receive_all(
    request: Request, max_bytes: int, lease: Lease, declared: int | None
) -> bytearray:
    body = bytearray()
    num_taken = 0
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise too_long(len(body), max_bytes)
        missing = len(body) - num_taken
        if missing > 0:
            # In steps: a long body that is only announced takes no one's room.
            rest = max_bytes if declared is None else declared - num_taken
            step = max(missing, min(_PIECE_BYTES, rest))
            lease.take(step)
            num_taken += step
    return body


def _decompress(body: bytearray, window: int, max_bytes: int, lease: Lease) -> bytearray:
    stream = zlib.decompressobj(wbits=window)
    result = bytearray()
    rest: bytes = bytes(body)
    try:
        while rest and not stream.eof:
            lease.take(_PIECE_BYTES)
            result += stream.decompress(rest, _PIECE_BYTES)
            rest = stream.unconsumed_tail
            if len(result) > max_bytes:
                raise too_long(len(result), max_bytes)
    except zlib.error as error:
        raise invalid("body", f"cannot be decompressed: {error}") from error
    if not stream.eof or stream.unused_data:
        raise invalid("body", "its compressed data ends too early or goes on after its end")
    return result


class PiecesResponse(Response):
    """An answer that is sent in pieces, so that a slow client holds few bytes beyond the answer.

    Args:
        pieces: the body.
        media_type: its content type.
        headers: further headers.
    """

    def __init__(
        self,
        pieces: Sequence[bytes],
        *,
        media_type: str,
        headers: dict[str, str] | None = None,
    ) -> None:
        length = str(sum(map(len, pieces)))
        super().__init__(
            None, headers={**(headers or {}), "content-length": length}, media_type=media_type
        )
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Sends the answer; the connection ends where the client does not take it in time."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        for piece in self._pieces:
            for start in range(0, len(piece), _PIECE_BYTES):
                chunk = piece[start : start + _PIECE_BYTES]
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
