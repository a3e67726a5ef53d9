"""The files of a bundle as its manifest lists them; what keeps or sends them needs no more."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from cutset.ranges import Count

_HASHED_AT_ONCE_BYTES = 1 << 18


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of the bundle: relative POSIX path, size in bytes, sha256 in lower-case hex."""

    path: str
    num_bytes: Count
    sha256: str


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, in lower-case hex."""
    digest = hashlib.sha256()
    # One buffer, small enough for the processor's cache and read into again and again.
    buffer = memoryview(bytearray(_HASHED_AT_ONCE_BYTES))
    with path.open("rb", buffering=0) as file:
        while num_read := file.readinto(buffer):
            digest.update(buffer[:num_read])
    return digest.hexdigest()
