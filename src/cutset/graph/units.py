"""Units: the parts of an architecture that are never divided, found from structure alone."""

from __future__ import annotations

import msgspec


class Unit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the architecture that is never divided.

    Attributes:
        path: dotted path of the module, with ``#2``, ``#3`` ... for its second, third call.
        class_name: qualified name of its class.
        start: index of its first operation in the graph.
        stop: index after its last operation.
    """

    path: str
    class_name: str
    start: int
    stop: int
