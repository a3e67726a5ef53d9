"""The JSON documents of a stage program: decoded by their types, refused with file and entry."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import msgspec
import torch

from cutset.bundles.reading.torch.archive import MODEL, ProgramArchive
from cutset.bundles.reading.torch.schema import SchemaVersion, unknown_key
from cutset.bundles.strict_json import repeated_key
from cutset.errors import UnsafeBundle

SCHEMA_MINOR = 20
"""The latest whose keys are all in `schema`; a later one may have added some."""

_MAX_MARKS = 1 << 20
"""Most brackets and commas of a document. As Python's objects each takes some 60 bytes; the largest
program of some hundred models has 110,000."""

MAX_DIMS = 64
STRIDED = 7
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")

DTYPES: dict[int, torch.dtype] = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
}
"""torch's dtypes by the numbers of the schema (``ScalarType``)."""


class _Version(msgspec.Struct, frozen=True):
    schema_version: SchemaVersion


class ProgramText:
    """The JSON of one program; a class only so that errors know the file and the entry."""

    def __init__(self, archive: ProgramArchive) -> None:
        self.archive = archive
        self.path = archive.path
        self._knows_all_keys = self._minor_version() <= SCHEMA_MINOR

    def refusal(self, where: str, why: str) -> UnsafeBundle:
        """The error that names the file, the entry, and what is wrong with it."""
        return UnsafeBundle(
            f"{self.path}: {MODEL}: {where[:300]} {why}; nothing in the file was run",
            path=self.path,
        )

    def _minor_version(self) -> int:
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            head = msgspec.json.decode(self.archive.read(MODEL), type=_Version)
            return head.schema_version.minor
        return 0

    def decode(self, member: str, kind: type[Any]) -> Any:
        """A document of the archive as an object of `kind`.

        Raises:
            UnsafeBundle: it is no JSON, or not what torch.export writes.
        """
        text = self.archive.read(member)
        if sum(map(text.count, (b"{", b"[", b","))) > _MAX_MARKS:
            raise UnsafeBundle(
                f"{self.path}: {member} has more than {_MAX_MARKS} entries", path=self.path
            )
        try:
            decoded = msgspec.json.decode(text, type=kind)
            twice = repeated_key(text)
            odd = unknown_key(json.loads(text), kind) if self._knows_all_keys else None
        except (ValueError, UnicodeDecodeError, RecursionError) as error:
            raise UnsafeBundle(
                f"{self.path}: {member} is not what torch.export writes: {error}", path=self.path
            ) from error
        for place, fault in ((twice, "is there twice"), (odd and f"${odd}", "is no key of it")):
            if place is not None:
                raise UnsafeBundle(
                    f"{self.path}: {member} is not what torch.export writes: {place} {fault}",
                    path=self.path,
                )
        return decoded

    def one(self, union: dict[str, Any], where: str) -> tuple[str, Any]:
        """The single member of a union of the schema: ``{"as_int": 3}``."""
        if len(union) != 1:
            raise self.refusal(where, "is no union with one member")
        return next(iter(union.items()))

    def name_in(self, holder: Any, where: str, key: str = "name") -> str:
        """The name that is the only member of an object."""
        name = holder.get(key) if isinstance(holder, dict) and len(holder) == 1 else None
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise self.refusal(where, f"has the name {str(name)[:80]!r}")
        return name
