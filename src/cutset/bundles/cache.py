"""What a node keeps of bundles: each file once, by its sha256; a folder a stage made of them.

::

    ROOT/objects/SHA256            files of any bundle; a file that two bundles share is there once
    ROOT/stages/SHA256-K/          a bundle (by its manifest's hash) with the files of stage K only
    ROOT/incoming/                 what is being received; never used, removed when it fails

What was used longest ago makes room for what comes, see `cutset.bundles.cache_room`.

A file gets its name when all of it is there and its hash is right, so a node that loses power in
the middle of a transfer keeps no half of anything. The stage folders hold hard links and are
opened like any bundle, with all the checks of `cutset.bundles.open`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from cutset.bundles.cache_room import FOLDER_VARIABLE, CacheRoom
from cutset.bundles.file_entries import FileEntry, sha256_of
from cutset.bundles.strict_json import MANIFEST_NAME
from cutset.errors import BundleError, ChecksumMismatch

if TYPE_CHECKING:
    from cutset.bundles.manifest import Manifest

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LEFTOVER_S = 24 * 3600.0


def default_cache_folder() -> Path:
    """``$CUTSET_CACHE_DIR``, or ``cutset`` in the user's cache folder.

    Raises:
        BundleError: neither is set, and the user has no home either.
    """
    if folder := os.environ.get(FOLDER_VARIABLE):
        return Path(folder)
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "cutset"
    try:
        return Path.home() / ".cache" / "cutset"
    except RuntimeError as error:  # no HOME, and no entry among the system's users
        raise BundleError(
            "there is no folder to keep shards in: this user has no home; name one in"
            f" {FOLDER_VARIABLE}"
        ) from error


def stage_files(manifest: Manifest, stage: int) -> tuple[FileEntry, ...]:
    """The files that a node needs to run one stage, the manifest left aside.

    Raises:
        BundleError: there is no such stage.
    """
    if not 0 <= stage < len(manifest.stages):
        raise BundleError(f"no stage {stage}; the bundle has {len(manifest.stages)}")
    return tuple(entry for entry in manifest.files if entry.path.startswith(f"stage-{stage}/"))


class Incoming:
    """A file on its way into the cache; made by `ShardCache.receive`."""

    def __init__(self, cache: ShardCache, entry: FileEntry, file: BinaryIO) -> None:
        self._cache = cache
        self._entry = entry
        self._file = file
        self._digest = hashlib.sha256()
        self._num_bytes = 0

    def append(self, data: bytes) -> None:
        """Takes the next piece.

        Raises:
            ChecksumMismatch: more comes than was announced.
            BundleError: the disk takes no more.
        """
        self._num_bytes += len(data)
        if self._num_bytes > self._entry.num_bytes:
            raise self._mismatch(f"more than {self._entry.num_bytes} bytes")
        try:
            self._file.write(data)
        except OSError as error:
            raise self._cache.refusal(error) from error
        self._digest.update(data)

    def finish(self) -> None:
        """Checks size and hash, and gives the file its place.

        Raises:
            ChecksumMismatch: it is not the file that was announced.
            BundleError: the disk takes no more.
        """
        if self._num_bytes != self._entry.num_bytes:
            raise self._mismatch(f"{self._num_bytes} bytes")
        if (actual := self._digest.hexdigest()) != self._entry.sha256:
            raise self._mismatch(actual)
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            path = self._cache.object_path(self._entry.sha256)
            Path(self._file.name).replace(path)
            self._cache.room.hold(path)
        except OSError as error:
            raise self._cache.refusal(error) from error

    def abandon(self) -> None:
        """Removes what has come so far; harmless after `finish`."""
        self._file.close()
        Path(self._file.name).unlink(missing_ok=True)

    def _mismatch(self, actual: str) -> ChecksumMismatch:
        entry = self._entry
        return ChecksumMismatch(
            f"{entry.path} did not arrive as it was sent: {actual} instead of {entry.num_bytes}"
            f" bytes with sha256 {entry.sha256[:16]}; nothing of it was kept",
            path=entry.path,
            expected=entry.sha256,
            actual=actual,
        )


class ShardCache:
    """The cache of one node; several processes may use it at once.

    Args:
        root: its folder, made if it is not there.
        limit_bytes: what its files may take together; see `CacheRoom` for the default.

    Raises:
        BundleError: the folder cannot be made, or it or a folder in it is a symbolic link, is
            another user's, or can be written to by everybody.
    """

    def __init__(self, root: Path, limit_bytes: int | None = None) -> None:
        self._root = root
        self.room = CacheRoom(root, limit_bytes)
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            for folder in (root, *(root / name for name in ("objects", "stages", "incoming"))):
                if not folder.is_symlink():
                    folder.mkdir(exist_ok=True, mode=0o700)
                _check_is_ours(folder)
            self._forget_leftovers()
        except OSError as error:
            raise self.refusal(error) from error

    def _forget_leftovers(self) -> None:
        """Removes what a process left in the middle of a transfer, a day or more ago.

        The clock is not believed alone: that of a board without a battery jumps by years when it
        first hears of the time. What is being received is locked.
        """
        for path in (self._root / "incoming").iterdir():
            with contextlib.suppress(FileNotFoundError, BlockingIOError):
                if abs(time.time() - path.stat().st_mtime) < _LEFTOVER_S:
                    continue
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    with path.open("rb") as file:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        path.unlink()

    def object_path(self, sha256: str) -> Path:
        """Where the file of that hash is, or would be.

        Raises:
            BundleError: that is no sha256 in lower-case hex.
        """
        if not _SHA256.fullmatch(sha256):
            raise BundleError(f"{sha256[:80]!r} is no sha256 in hex")
        return self._root / "objects" / sha256

    def refusal(self, error: OSError) -> BundleError:
        """What to say when the disk does not do what it should."""
        return BundleError(
            f"the cache {self._root} takes no more: {error.strerror or error}; make room there, or"
            f" name another folder in {FOLDER_VARIABLE}",
            path=str(self._root),
        )

    def missing(self, entries: Iterable[FileEntry]) -> tuple[FileEntry, ...]:
        """Those of the files that are not here, or not whole; a damaged one is removed."""
        return tuple(entry for entry in entries if not self._holds(entry))

    def _holds(self, entry: FileEntry) -> bool:
        path = self.object_path(entry.sha256)
        self.room.hold(path)
        try:
            if path.stat().st_size == entry.num_bytes and sha256_of(path) == entry.sha256:
                return True
        except FileNotFoundError:
            return False
        path.unlink(missing_ok=True)
        return False

    def receive(self, entry: FileEntry) -> Incoming:
        """Begins to take a file.

        Raises:
            BundleError: there is no room for it, or the folder cannot be written.
        """
        self.object_path(entry.sha256)
        try:
            self.room.make_for(entry)
            handle, name = tempfile.mkstemp(dir=self._root / "incoming")
            os.close(handle)
            file = Path(name).open("wb")  # noqa: SIM115  # `Incoming` closes it
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise self.refusal(error) from error
        return Incoming(self, entry, file)

    def manifest(self, sha256: str) -> Manifest:
        """Reads a manifest that is here.

        Raises:
            BundleError: it is not here, or is none.
        """
        from cutset.bundles.manifest import decode_manifest  # which loads NumPy, and much else

        try:
            return decode_manifest(self.object_path(sha256).read_bytes())
        except FileNotFoundError:
            raise BundleError(f"the manifest {sha256[:16]} is not in the cache") from None

    def stage_folder(self, manifest_sha256: str, stage: int) -> Path:
        """A bundle's folder with the manifest and the files of one stage, all of them here.

        Raises:
            BundleError: a file is missing, or the folder cannot be made.
        """
        manifest = self.manifest(manifest_sha256)
        wanted = {entry.path: entry.sha256 for entry in stage_files(manifest, stage)}
        wanted[MANIFEST_NAME] = manifest_sha256
        target = self._root / "stages" / f"{manifest_sha256}-{stage}"
        try:
            while not (self._is_made_of(target, wanted) and self.room.hold_stage(target)):
                self._make(target, wanted)
        except FileNotFoundError as error:
            raise BundleError(f"{error.filename} is not in the cache") from error
        except OSError as error:
            raise self.refusal(error) from error
        return target

    def _is_made_of(self, folder: Path, wanted: dict[str, str]) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return all(
                (folder / path).samefile(self.object_path(sha256))
                for path, sha256 in wanted.items()
            )
        return False

    def _make(self, target: Path, wanted: dict[str, str]) -> None:
        draft = Path(tempfile.mkdtemp(dir=self._root / "incoming"))
        try:
            for path, sha256 in wanted.items():
                place = draft / path
                place.parent.mkdir(exist_ok=True)
                os.link(self.object_path(sha256), place)
            with contextlib.suppress(FileNotFoundError):
                target.rename(draft / "former")
                shutil.rmtree(draft / "former")
            try:
                draft.rename(target)
            except OSError:
                if not self._is_made_of(target, wanted):  # another process made it meanwhile
                    raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _check_is_ours(folder: Path) -> None:
    """Refuses a folder of the cache in which somebody else could put other files.

    Raises:
        BundleError: says what it is, and what to do.
    """
    status = folder.lstat()
    if stat.S_ISLNK(status.st_mode):
        what = "is a symbolic link; name the folder itself"
    elif not stat.S_ISDIR(status.st_mode):
        what = "is no folder"
    elif hasattr(os, "geteuid") and status.st_uid not in (os.geteuid(), 0):
        what = f"belongs to user {status.st_uid}, not to this one ({os.geteuid()})"
    elif status.st_mode & stat.S_IWOTH:
        what = "can be written to by everybody; take that right away (chmod o-w)"
    else:
        return
    raise BundleError(
        f"the cache's folder {folder} {what}, or name another one in {FOLDER_VARIABLE}",
        path=str(folder),
    )
