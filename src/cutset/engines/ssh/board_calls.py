"""What crosses between a caller and a board before a worker runs there: calls and answers.

A line each, JSON, decoded strictly. The first line from the board says who it is; whatever a login
shell prints before that is skipped.
"""

from __future__ import annotations

from typing import Any

import msgspec

GREETING = b"cutset-board/1 "
"""How the board's first line begins; the rest is what `NodeService.hello` says, and addresses."""

KEEP = "--keep"
"""Has a board that was not started so already go on as a child of a keeper."""

LEASE_S = 20.0
"""A board or worker leaves after so many seconds in which its caller said nothing."""

HERE_EVERY_S = 2.0
"""A caller says so often that it is there."""


class BoardCall(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A call of `method` with `arguments`."""

    method: str
    arguments: tuple[Any, ...] = ()


class BoardAnswer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What came of a call.

    Attributes:
        value: what the method returned.
        kind: name of the class in `cutset.errors` where it raised; else empty.
        message: what it said then.
    """

    value: Any = None
    kind: str = ""
    message: str = ""
