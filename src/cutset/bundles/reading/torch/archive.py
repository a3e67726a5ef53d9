"""The outer shell of ``program.pt2``: a zip file whose every member is known beforehand.

`torch.export.save` writes a zip archive with this content, all members stored without compression
below one folder (the archive's name)::

    archive_format  archive_version  byteorder  .data/version  .data/serialization_id
    models/model.json                            the graph, its signature, shapes
    data/weights/model_weights_config.json       for each weight: member, dtype, sizes, strides
    data/weights/weight_N                        raw little-endian bytes of one storage
    data/constants/model_constants_config.json   the same for buffers that are not saved
    data/constants/tensor_N
    data/sample_inputs/model.pt                  a pickle; must be empty in a bundle

The format also knows members that run code when they are loaded: pickled weights, custom and
opaque objects, sample inputs (all unpickled in full), AOTInductor's shared libraries, and a legacy
layout that is a pickle as a whole. None of them is on the list above, so a file that has one is
refused before anything in it is read. Source: ``torch/export/pt2_archive/_package.py``, as in
torch 2.15 (archive version 0).
"""

from __future__ import annotations

import re
import struct
import zipfile
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from cutset.errors import UnsafeBundle

MODEL = "models/model.json"
WEIGHTS_CONFIG = "data/weights/model_weights_config.json"
CONSTANTS_CONFIG = "data/constants/model_constants_config.json"
SAMPLE_INPUTS = "data/sample_inputs/model.pt"

_MAX_JSON_BYTES = 64 << 20
_MAX_LABEL_BYTES = 256
_MAX_MEMBERS = 100_000
_CHUNK_BYTES = 1 << 18  # so small that a worker's malloc has the block at hand
# https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3: a local header (its signature,
# and how long the name and the extra field after it are), what may follow a member's bytes, an
# entry of the directory without its texts, and the records that end the file.
_HEADER = struct.Struct("<4s22xHH")
_DESCRIPTOR_BYTES = 24
_ENTRY_BYTES = 46
_END_BYTES = 22
_ZIP64_END_BYTES = 56 + 20
_ALLOWED_FLAGS = 0x0808  # UTF-8 names, sizes repeated after the data: both set by torch

_LABELS = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little"}
_OPTIONAL = frozenset(
    {".data/version", ".data/serialization_id", ".format_version", ".storage_alignment", "version"}
)
_REQUIRED = (*_LABELS, MODEL, WEIGHTS_CONFIG, CONSTANTS_CONFIG)
_TENSOR_MEMBER = re.compile(r"data/(weights/weight|constants/tensor)_[0-9]{1,7}")
_ROOT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    EOFError,
    OSError,
)


class ProgramArchive:
    """A checked ``program.pt2``, open for reading; a context manager.

    Nothing but this class ever parses the zip: what was checked is what is used.
    """

    def __init__(self, file: Path, *, path: str) -> None:
        """Opens and checks `file`.

        Args:
            file: where it is on disk.
            path: its path within the bundle, for errors.

        Raises:
            UnsafeBundle: it is no zip file, or a member is unknown, twice there, compressed,
                encrypted, too large, or missing.
        """
        self.path = path
        self._members: dict[str, zipfile.ZipInfo] = {}
        try:
            self._file = file.open("rb")
        except OSError as error:
            raise UnsafeBundle(f"{path}: cannot be read ({error.strerror})", path=path) from error
        try:
            self._zip = zipfile.ZipFile(self._file)
        except _ZIP_ERRORS as error:
            self._file.close()
            raise UnsafeBundle(f"{path}: not a zip archive ({error})", path=path) from error
        try:
            self._check_members(file.stat().st_size)
            self._check_labels()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ProgramArchive:  # noqa: PYI034 - no Self on Python 3.10
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; safe to call twice."""
        self._zip.close()
        self._file.close()

    def _refusal(self, member: str, why: str) -> UnsafeBundle:
        return UnsafeBundle(
            f"{self.path}: entry {member[:200]!r} {why}; nothing in the file was loaded",
            path=self.path,
        )

    def _check_members(self, archive_bytes: int) -> None:
        infos = self._zip.infolist()
        if len(infos) > _MAX_MEMBERS:
            raise UnsafeBundle(
                f"{self.path}: {len(infos)} entries, at most {_MAX_MEMBERS} are read",
                path=self.path,
            )
        root = infos[0].filename.partition("/")[0] if infos else ""
        if not _ROOT.fullmatch(root):
            raise self._refusal(root, "is no name for the archive's folder")
        total_bytes = 0
        for info in infos:
            name = info.filename.removeprefix(f"{root}/")
            self._check_member(info, name)
            if name == info.filename or name in self._members:
                raise self._refusal(info.filename, "lies outside the archive's folder or is twice")
            self._members[name] = info
            total_bytes += info.file_size
        # Stored members cannot sum up to more than the file, unless they overlap (a zip bomb).
        if total_bytes > archive_bytes:
            raise UnsafeBundle(
                f"{self.path}: entries claim {total_bytes} bytes in a file of {archive_bytes}",
                path=self.path,
            )
        self._check_places(infos, archive_bytes)
        for name in _REQUIRED:
            if name not in self._members:
                raise self._refusal(name, "is missing")

    def _check_places(self, infos: list[zipfile.ZipInfo], archive_bytes: int) -> None:
        """Entries follow each other from the file's first byte, and the directory ends the file.

        Another reader might begin elsewhere in a file with anything before, between or after them.
        """
        end = 0
        for info in sorted(infos, key=lambda info: info.header_offset):
            if not 0 <= info.header_offset - end <= (_DESCRIPTOR_BYTES if end else 0):
                raise self._refusal(info.filename, "does not lie right after the one before it")
            end = self._data_start(info) + info.file_size
        if not 0 <= self._zip.start_dir - end <= _DESCRIPTOR_BYTES or self._zip.comment:
            raise self._refusal("", "is followed by what is no part of the archive")
        file = self._file
        file.seek(max(0, archive_bytes - _END_BYTES))
        last = file.read(_END_BYTES)
        listed = sum(
            _ENTRY_BYTES + len(i.orig_filename.encode()) + len(i.extra) + len(i.comment)
            for i in infos
        )
        spare = archive_bytes - self._zip.start_dir - listed - _END_BYTES
        if not last.startswith(b"PK\x05\x06") or not 0 <= spare <= _ZIP64_END_BYTES:
            raise self._refusal("", "is followed by what is no part of the archive")

    def _data_start(self, info: zipfile.ZipInfo) -> int:
        """Where a member's bytes begin, by its own header."""
        self._file.seek(info.header_offset)
        header = self._file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            raise self._refusal(info.filename, "lies beyond the end of the file")
        signature, name_bytes, extra_bytes = _HEADER.unpack(header)
        if signature != b"PK\x03\x04":
            raise self._refusal(info.filename, "has no header where the directory says")
        return info.header_offset + _HEADER.size + int(name_bytes) + int(extra_bytes)

    def _check_labels(self) -> None:
        for name, expected in _LABELS.items():
            if (actual := self.read(name)) != expected:
                raise self._refusal(name, f"holds {actual[:40]!r} instead of {expected!r}")

    def _check_member(self, info: zipfile.ZipInfo, name: str) -> None:
        if name in (MODEL, WEIGHTS_CONFIG, CONSTANTS_CONFIG):
            limit = _MAX_JSON_BYTES
        elif name == SAMPLE_INPUTS:
            limit = 0
        elif name in _LABELS or name in _OPTIONAL:
            limit = _MAX_LABEL_BYTES
        elif _TENSOR_MEMBER.fullmatch(name):
            limit = info.compress_size
        else:
            raise self._refusal(info.filename, "is none that a stage program has")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise self._refusal(info.filename, "is compressed; torch stores entries as they are")
        if info.flag_bits & ~_ALLOWED_FLAGS:
            raise self._refusal(info.filename, f"has zip flags {info.flag_bits:#x}")
        if info.file_size > limit:
            what = (
                "holds pickled sample inputs, which a bundle must not have"
                if name == SAMPLE_INPUTS
                else f"has {info.file_size} bytes, at most {limit} are read"
            )
            raise self._refusal(info.filename, what)

    @property
    def tensor_members(self) -> frozenset[str]:
        """Names of the members that hold raw tensor bytes."""
        return frozenset(name for name in self._members if _TENSOR_MEMBER.fullmatch(name))

    def num_bytes(self, name: str) -> int:
        """Size of a member.

        Raises:
            UnsafeBundle: there is no such member.
        """
        if name not in self._members:
            raise self._refusal(name, "is referred to but missing")
        return self._members[name].file_size

    def read(self, name: str) -> bytes:
        """All bytes of a small member; its zip checksum is checked.

        Raises:
            UnsafeBundle: there is no such member, or it is damaged.
        """
        self.num_bytes(name)
        try:
            return self._zip.read(self._members[name])
        except _ZIP_ERRORS as error:
            raise self._refusal(name, f"cannot be read ({error})") from error

    def read_storage(self, name: str) -> torch.Tensor:
        """The bytes of a tensor member as a fresh ``uint8[num_bytes]`` tensor on the CPU.

        Read piece by piece straight into the tensor, so that a large weight is in memory once.

        Raises:
            UnsafeBundle: there is no such member, or it is damaged.
        """
        num_bytes = self.num_bytes(name)
        storage = torch.empty(num_bytes, dtype=torch.uint8)
        target = storage.numpy()
        done = 0
        try:
            with self._zip.open(self._members[name]) as source:
                while piece := source.read(_CHUNK_BYTES):
                    target[done : done + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
                    done += len(piece)
        except _ZIP_ERRORS as error:
            raise self._refusal(name, f"cannot be read ({error})") from error
        if done != num_bytes:
            raise self._refusal(name, f"ends after {done} of {num_bytes} bytes")
        return storage
