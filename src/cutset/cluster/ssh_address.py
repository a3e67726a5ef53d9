"""How a device is reached by ``ssh``: a user, a host and a port, or a name of its configuration."""

from __future__ import annotations

import re

import msgspec

from cutset.quantities import shown

_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@$\\-]*")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+~-]*")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9._-]+)?")
_MAX_CHARS = 255
_MAX_PORT = 65_535


class SshAddress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom to log in to; nothing in it can be taken for an option or by a shell.

    Attributes:
        host: a name, an address, or a name of the ssh configuration.
        user: None leaves it to the configuration.
        port: None leaves it to the configuration.
    """

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        """As a person writes it."""
        host = f"[{self.host}]" if self.port and ":" in self.host else self.host
        return (
            (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")
        )

    @property
    def arguments(self) -> tuple[str, ...]:
        """For ssh's command line, the host last."""
        user = ("-l", self.user) if self.user else ()
        port = ("-p", str(self.port)) if self.port else ()
        return (*user, *port, "--", self.host)


def read_ssh_address(text: str) -> SshAddress:
    """Reads ``HOST``, ``USER@HOST``, ``USER@HOST:PORT`` or ``USER@[IPV6]:PORT``.

    Raises:
        ValueError: it is none of these; says what is wrong with it.
    """
    if len(text) > _MAX_CHARS:
        raise ValueError(f"an address has at most {_MAX_CHARS} characters, this one {len(text)}")
    user, at, place = text.rpartition("@")
    if at and not _USER.fullmatch(user):
        raise ValueError(f"{shown(user)} is no user's name in the address {shown(text)}")
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", place)
    if bracketed:
        host, port = bracketed[1], bracketed[2]
    elif place.count(":") == 1:
        host, _, port = place.partition(":")
    else:
        host, port = place, None
    is_host = _IPV6.fullmatch(host) if ":" in host or bracketed else _HOST.fullmatch(host)
    if not is_host:
        raise ValueError(
            f"{shown(host)} is no host in the address {shown(text)}; expected HOST, USER@HOST,"
            " USER@HOST:PORT or USER@[IPV6]:PORT"
        )
    if port is not None and not (
        port.isascii() and port.isdecimal() and 0 < int(port) <= _MAX_PORT
    ):
        raise ValueError(f"{shown(port)} is no port in the address {shown(text)}")
    return SshAddress(host=host, user=user if at else None, port=int(port) if port else None)
