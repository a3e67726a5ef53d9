"""Room in a node's cache: a limit, and what is removed when more comes than it allows.

What was used longest ago goes first. What a process uses, or has found or received for the stage
that it makes ready, is locked by it (flock) and stays; the lock of a stage's folder may be handed
on to the process that computes the stage, and ends with it in whatever way.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from cutset.bundles.file_entries import FileEntry
from cutset.errors import BundleError
from cutset.quantities import read_bytes

FOLDER_VARIABLE = "CUTSET_CACHE_DIR"
LIMIT_VARIABLE = "CUTSET_CACHE_LIMIT"
DEFAULT_LIMIT_BYTES = 8 << 30

_SPARE_BYTES = 64 << 20
"""What a disk keeps free in any case."""


class CacheRoom:
    """What of a cache is in use, and what may go; see the module.

    Args:
        root: the cache's folder.
        limit_bytes: what its files may take together; by default ``$CUTSET_CACHE_LIMIT``, such as
            ``2 GiB``, or 8 GiB.

    Raises:
        BundleError: the variable holds no amount of bytes.
    """

    def __init__(self, root: Path, limit_bytes: int | None = None) -> None:
        self._root = root
        self._files: dict[Path, int] = {}
        self._stage: dict[Path, int] = {}
        self._limit_bytes = _limit_bytes() if limit_bytes is None else limit_bytes

    def __del__(self) -> None:
        for held in (self._files, self._stage):
            _let_go(held)

    @property
    def held(self) -> tuple[int, ...]:
        """Descriptors that keep the last stage's folder as long as any process has them."""
        return tuple(self._stage.values())

    def hold(self, path: Path) -> None:
        """Keeps a file, if it is here, until the next stage's folder is made."""
        _hold(path, self._files)

    def hold_stage(self, folder: Path) -> bool:
        """Keeps a stage's folder instead of the last one and of files; False if it is not here."""
        _let_go(self._stage)
        if not _hold(folder, self._stage):
            return False
        os.utime(folder)
        _let_go(self._files)
        return True

    def make_for(self, entry: FileEntry) -> None:
        """Removes what was used longest ago until a file has room.

        Raises:
            BundleError: what remains is in use, and leaves too little.
        """
        with self._turn():
            stages = sorted((self._root / "stages").iterdir(), key=_used_s)
            while shortage := self._shortage(entry):
                if self._drop_loose():
                    continue
                if not stages:
                    raise BundleError(f"the cache {self._root} {shortage}", path=str(self._root))
                _remove_unless_held(stages.pop(0), self._remove_stage)

    def _shortage(self, entry: FileEntry) -> str:
        """What there is too little of for a file, and what to do; nothing where it has room."""
        used = sum(path.stat().st_size for path in (self._root / "objects").iterdir())
        if used + entry.num_bytes > self._limit_bytes:
            return (
                f"may take {self._limit_bytes:,} bytes, of which {used:,} are in use, and"
                f" {entry.path} needs {entry.num_bytes:,}; set {LIMIT_VARIABLE} to more"
            )
        free = shutil.disk_usage(self._root).free
        if free < entry.num_bytes + _SPARE_BYTES:
            return (
                f"has {free:,} bytes of room and {entry.path} needs {entry.num_bytes:,}; make room"
                f" there, or name another folder in {FOLDER_VARIABLE}"
            )
        return ""

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Lets one process at a time remove things."""
        descriptor = os.open(self._root / "objects", os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _drop_loose(self) -> bool:
        """Removes the oldest file that belongs to no stage's folder and that nobody holds."""
        files = (self._root / "objects").iterdir()
        loose = sorted((path for path in files if path.stat().st_nlink == 1), key=_used_s)
        return any(_remove_unless_held(path, Path.unlink) for path in loose)

    def _remove_stage(self, folder: Path) -> None:
        draft = Path(tempfile.mkdtemp(dir=self._root / "incoming"))
        folder.rename(draft / "evicted")
        shutil.rmtree(draft)


def _limit_bytes() -> int:
    text = os.environ.get(LIMIT_VARIABLE)
    try:
        return read_bytes(text) if text else DEFAULT_LIMIT_BYTES
    except ValueError as error:
        raise BundleError(f"{LIMIT_VARIABLE} says how large the cache may be: {error}") from error


def _used_s(path: Path) -> float:
    return path.stat().st_mtime


def _hold(path: Path, held: dict[Path, int]) -> bool:
    """Locks a file or folder against removal; False where it is not there."""
    descriptor = held.pop(path, None)
    try:
        while descriptor is None or not os.path.samestat(path.stat(), os.fstat(descriptor)):
            if descriptor is not None:
                os.close(descriptor)  # it was removed or replaced before it was locked
                descriptor = None
            descriptor = os.open(path, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
    except FileNotFoundError:
        if descriptor is not None:
            os.close(descriptor)
        return False
    held[path] = descriptor
    return True


def _let_go(held: dict[Path, int]) -> None:
    while held:
        os.close(held.popitem()[1])


def _remove_unless_held(path: Path, remove: Callable[[Path], None]) -> bool:
    """Removes a file or folder that no process holds."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        remove(path)
        return True
    finally:
        os.close(descriptor)
