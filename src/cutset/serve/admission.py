"""The door: who comes in, and how what comes out is counted and logged.

An ASGI middleware around everything. A request that is refused before its body was read gets its
answer at once; what it still sends is then thrown away for a while, so that the client can read the
answer before the connection closes under it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import logging
import re
import time
from typing import Any, Protocol

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cutset.serve.bodies import Budget
from cutset.serve.refusal import Refusal, invalid
from cutset.serve.settings import ServeSettings

_ACCESS = logging.getLogger("cutset.serve.access")

OPEN_PATHS = frozenset(
    ("/", "/docs", "/page.css", "/page.js", "/docs.js", "/v2/health/live", "/v2/health/ready")
)
"""Paths that need no token: files without data, and what a load balancer asks."""

_SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
"""They compute nothing, and other sites' pages cannot read the answers."""

_LINGER_S = 2.0
_LINGER_BYTES = 256 << 20
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'",
    ),
)


class Counter(Protocol):
    """Is told of every answer."""

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        """A request was answered."""


def refusal_message(refusal: Refusal) -> tuple[dict[str, str], bytes]:
    """Headers and body of a refusal."""
    headers = {"content-type": "application/json"}
    if refusal.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(refusal.retry_after_s)))
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers, json.dumps({"error": str(refusal)}).encode()


class Door:
    """Checks framing, origin, host and token, keeps accounts, adds headers, lingers.

    Args:
        app: what is behind the door.
        settings: limits and token.
        budget: of bytes; each request gets a lease in its state, given back when it is over.
        counter: told of every answer.
    """

    def __init__(
        self, app: ASGIApp, *, settings: ServeSettings, budget: Budget, counter: Counter
    ) -> None:
        self._app = app
        self._budget = budget
        self._counter = counter
        self._only_local_names = settings.is_local and settings.token is None
        self._token_digest = _digest(settings.token.encode()) if settings.token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.monotonic()
        lease = self._budget.lease()
        scope["state"] = {**scope.get("state", {}), "lease": lease, "started_s": started_s}
        exchange = _Exchange(scope, receive, send)
        try:
            try:
                self._check(Headers(scope=scope), scope["method"], scope["path"])
            except Refusal as refusal:
                await exchange.refuse(refusal)
            else:
                await self._app(scope, exchange.receive, exchange.send)
        finally:
            lease.release()
            seconds = time.monotonic() - started_s
            self._counter.answered(scope, exchange.status, seconds)
            _ACCESS.info(
                "%s %s %d",
                scope["method"],
                scope["path"],
                exchange.status,
                extra={
                    **_who(scope),
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": exchange.status,
                    "seconds": round(seconds, 6),
                    "request_id": scope["state"].get("request_id", ""),
                    "num_rows": scope["state"].get("num_rows", 0),
                },
            )

    def _check(self, headers: Headers, method: str, path: str) -> None:
        if "content-length" in headers and "transfer-encoding" in headers:
            # Where two readers on the way disagree about the end of such a message, what one takes
            # for its body is the next request to the other. RFC 9112, 6.3: refuse it and close;
            # the door closes since the body was not read.
            raise invalid("Content-Length", "came with Transfer-Encoding; send one of them")
        if method not in _SAFE_METHODS:
            _check_origin(headers)
        if self._only_local_names and not _is_local_name(headers.get("host", "")):
            # A page from elsewhere whose name was made to point here (DNS rebinding) says its
            # own name; it must not use a server that only trusts this machine.
            raise Refusal(
                "Host: this server answers to localhost only; serve with --token-file and "
                "--host to use it under another name",
                status=421,
                reason="auth",
            )
        if self._token_digest is None or path in OPEN_PATHS:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        digest = _digest(given.strip().encode("utf-8", "surrogateescape"))
        # Digests have one length, and are compared in constant time: neither tells of the token.
        if not hmac.compare_digest(digest, self._token_digest) or scheme.lower() != "bearer":
            raise Refusal(
                "Authorization: expected 'Bearer TOKEN' with the token of this server",
                status=401,
                reason="auth",
            )


class _Exchange:
    """One request and its answer: what was read, what was sent."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._receive = receive
        self._send = send
        self._body_read = headers.get("content-length", "0") == "0" and (
            "transfer-encoding" not in headers
        )
        self._expects_continue = "expect" in headers
        self.status = 499  # as others log a client that left

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._body_read = True
        self._expects_continue = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message["headers"], *_SECURITY_HEADERS]
            if not self._body_read:
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        if (
            message["type"] == "http.response.body"
            and not message.get("more_body", False)
            and not self._body_read
        ):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        headers, body = refusal_message(refusal)
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        raw.append((b"content-length", str(len(body)).encode()))
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def _linger(self) -> None:
        """Throws away what the client still sends, until it has read the answer and leaves."""
        if self._expects_continue:  # it waits for a word before it sends anything
            return
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
            await asyncio.wait_for(self._discard(), _LINGER_S)

    async def _discard(self) -> None:
        num_bytes = 0
        while not self._body_read and num_bytes < _LINGER_BYTES:
            message = await self.receive()
            num_bytes += len(message.get("body", b""))


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _who(scope: Scope) -> dict[str, Any]:
    client = scope.get("client")
    return {"client": client[0] if client else ""}


def _check_origin(headers: Headers) -> None:
    """Refuses what another site's page sends; browsers say so with every POST.

    Programs that are no browsers say nothing and are let in.

    Raises:
        Refusal: 403.
    """
    origin = headers.get("origin")
    host = _without_default_port(headers.get("host", ""))
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") or (
        # Not the scheme: in front of a proxy that ends TLS it is another than here.
        origin is not None and _without_default_port(origin.partition("://")[2]) != host
    ):
        raise Refusal(
            f"Origin: {(origin or '')[:80]!r} is not this server's; pages of other sites may not "
            "use it",
            status=403,
            reason="auth",
        )


def _without_default_port(host: str) -> str:
    return re.sub(r":(80|443)$", "", host.lower())


def _is_local_name(host: str) -> bool:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
