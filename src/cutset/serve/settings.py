"""How a bundle is served: where, to whom, and how much of what."""

from __future__ import annotations

import dataclasses
import ipaddress
import logging
import os
import re
from pathlib import Path

_LOG = logging.getLogger(__name__)

MIN_TOKEN_LENGTH = 16
"""A shorter token is refused: it could be guessed."""

NAN_POLICIES = ("reject", "allow")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Limits and addresses of a server.

    Attributes:
        host: address to listen on.
        port: port to listen on; 0 has the system choose one.
        token: what clients must present as ``Authorization: Bearer TOKEN``; None: no check.
        no_auth: says that it is meant to serve on another address than this machine's own
            without a token.
        tls_cert: PEM file with the certificate chain; None: plain HTTP.
        tls_key: PEM file with its key.
        model_name: the model's name in URLs; None: the name of the bundle's folder.
        max_delay_s: how long rows wait for others to share their micro-batch.
        max_queue: for how many micro-batches an accepted request may wait; as many less an eighth
            are accepted and not answered, beyond that requests get 503. A request of more rows is
            accepted when no other is.
        deadline_s: a request not answered after so long gets 504; a client may ask for less.
        nan_policy: ``"reject"``: NaN and infinity in inputs are an error (400); ``"allow"``.
        max_body_bytes: longest body, and longest after decompression.
        max_json_bytes: longest JSON document within a body; JSON grows when it is read.
        max_pending_bytes: bytes of all requests and answers held at once, bodies as they arrive,
            the rest as estimated before it is read; beyond that requests get 503.
        max_header_bytes: longest request line and headers together.
        max_pixels: most pixels of an image, before and after it is resized.
        max_connections: most connections; further ones get 503 and are closed.
        header_timeout_s: how long a client may take to send request line and headers.
        body_timeout_s: how long a client may take to send the body, or to take an answer's piece.
        keep_alive_s: how long an idle connection is kept.
        drain_timeout_s: how long accepted requests may take after SIGTERM.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    no_auth: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    model_name: str | None = None
    max_delay_s: float = 0.002
    max_queue: int = 64
    deadline_s: float = 30.0
    nan_policy: str = "reject"
    max_body_bytes: int = 64 << 20
    max_json_bytes: int = 16 << 20
    max_pending_bytes: int = 1 << 30
    max_header_bytes: int = 16 << 10
    max_pixels: int = 1 << 24
    max_connections: int = 256
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    keep_alive_s: float = 15.0
    drain_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        """Checks the values and that the door is shut unless it was said to be open.

        Raises:
            ValueError: says which setting is wrong and what to do.
        """
        self._check_access()
        if self.nan_policy not in NAN_POLICIES:
            raise ValueError(f"nan_policy is {self.nan_policy!r}, expected one of {NAN_POLICIES}")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}, expected 0 to 65535")
        if self.model_name is not None and (not self.model_name or "/" in self.model_name):
            raise ValueError(f"model name {self.model_name!r} is empty or has a '/' in it")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("port", "max_delay_s"):
                if value < 0:
                    raise ValueError(f"{field.name} is {value}, expected 0 or more")
            elif type(value) in (int, float) and value <= 0:
                raise ValueError(f"{field.name} is {value}, expected more than 0")

    def _check_access(self) -> None:
        """Checks who may reach the server, and how."""
        if not self.is_local and self.token is None and not self.no_auth:
            raise ValueError(
                f"host {self.host!r} can be reached from other machines: give a token file "
                "(--token-file), or say --no-auth if everyone may use it"
            )
        if self.token is not None and len(self.token) < MIN_TOKEN_LENGTH:
            raise ValueError(
                f"the token has {len(self.token)} characters, expected at least "
                f"{MIN_TOKEN_LENGTH}; make one with: openssl rand -hex 32"
            )
        if self.token is not None and self.no_auth:
            raise ValueError(
                "--token-file lets in those who have the token, --no-auth everyone; give one"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key belong together; one is missing")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def default_model_name(bundle: Path) -> str:
    """The name of a bundle's folder, without its ending, as far as URLs like it."""
    stem = bundle.resolve().name.removesuffix(".cutset")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-") or "model"


def read_token(path: Path) -> str:
    """Reads a token from the first line of a file.

    Raises:
        ValueError: the file cannot be read, is empty, or the token is no printable ASCII.
    """
    try:
        text = path.read_text(encoding="utf-8")
        mode = os.stat(path).st_mode  # noqa: PTH116
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"token file {path} cannot be read: {error}") from error
    if mode & 0o077:
        _LOG.warning("token file %s can be read by others than its owner; chmod 600 it", path)
    token = text.strip().split("\n", maxsplit=1)[0].strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"token file {path} holds no token: expected one line of printable ASCII")
    return token
