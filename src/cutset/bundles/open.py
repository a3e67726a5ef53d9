"""Opening a bundle that may come from anyone: nothing in it is run before all of it is checked.

What is checked, in this order: the manifest's version, its types, that it does not contradict
itself; that every path stays inside and no link leads out; that no file is there that the manifest
does not list; sizes; hashes. Only then may a stage be loaded, and only by functions of this module
and of `cutset.bundles.reading.torch.loading`, which check a stage's own file once more from within.

What is not promised: a bundle from a stranger may still compute something useless. Its programs are
run in processes of their own only, workers and the one of `cutset.bundles.proof.child`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cutset.bundles.file_entries import FileEntry, sha256_of
from cutset.bundles.manifest import (
    MAX_MANIFEST_BYTES,
    Manifest,
    StageEntry,
    decode_manifest,
)
from cutset.bundles.strict_json import MANIFEST_NAME
from cutset.errors import BundleError, ChecksumMismatch, ManifestError, UnsafeBundle
from cutset.graph.cuts import find_cut_points
from cutset.notebooks import drawn

_HASHING_THREADS = 2
_LARGE_BYTES = 64 << 20
_MOST_HOLES = 16


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle on disk, opened and checked.

    Attributes:
        directory: its folder.
        manifest: its contract.
        stages: indices of the stages whose files were checked, all by default.
    """

    directory: Path
    manifest: Manifest
    stages: tuple[int, ...]

    def _repr_html_(self) -> str | None:
        found = self.manifest
        cuts = find_cut_points(
            found.graph, keep=found.keep, divide=found.divide, max_tensors=found.max_tensors
        )
        return drawn("plan_html", found.plan, found.model, found.graph, cuts)

    def path(self, relative: str) -> Path:
        """Where a file that the manifest lists is on disk.

        Raises:
            BundleError: the manifest does not list it, or its stage was not opened.
        """
        if relative not in {entry.path for entry in self.manifest.files}:
            raise BundleError(f"{self.directory}: no file {relative!r} is listed", path=relative)
        owner = _stage_of(relative)
        if owner is not None and owner not in self.stages:
            raise BundleError(
                f"{self.directory}: {relative!r} belongs to stage {owner}, but only "
                f"{list(self.stages)} were opened and checked; pass stages=({owner},)",
                path=relative,
            )
        return self.directory / relative


def open_bundle(path: str | os.PathLike[str], *, stages: Iterable[int] | None = None) -> Bundle:
    """Opens a bundle and checks its files; nothing in it is run.

    Args:
        path: the bundle's folder.
        stages: indices of the stages that are wanted. Files of the others are neither hashed nor
            required then, nor are the reference tensors required. None for the whole bundle.

    Raises:
        UnsupportedVersion: a newer format.
        ManifestError: manifest.json is missing, malformed or contradicts itself.
        UnsafeBundle: a path or link leads outside, or a file is there that is not listed.
        ChecksumMismatch: a file is missing or is not the one that the manifest names.
        BundleError: there is no such folder, or a stage in `stages` does not exist.
    """
    directory = Path(path)
    manifest = read_manifest(directory)
    wanted = tuple(range(len(manifest.stages))) if stages is None else tuple(sorted(set(stages)))
    for index in wanted:
        if not 0 <= index < len(manifest.stages):
            raise BundleError(
                f"{directory}: no stage {index}; the bundle has {len(manifest.stages)}",
                path=str(directory),
            )
    present = _check_folder(directory, manifest)
    to_check = []
    for entry in manifest.files:
        owner = _stage_of(entry.path)
        is_required = stages is None or (entry.path != manifest.reference and owner is None)
        if owner in wanted or is_required or (owner is None and entry.path in present):
            to_check.append(entry)
    # Hashing releases the interpreter's lock; a stage has a large file for each kind of backend.
    with ThreadPoolExecutor(max_workers=_HASHING_THREADS) as pool:
        checks = [pool.submit(_check_file, directory, e, present.get(e.path)) for e in to_check]
        for check in checks:
            check.result()
    return Bundle(directory=directory, manifest=manifest, stages=wanted)


def find_manifest(directory: Path) -> Path:
    """Where the manifest of a bundle is.

    Raises:
        ManifestError: the folder holds none.
        BundleError: there is no such folder.
    """
    if not directory.is_dir():
        found = "a file, not a folder" if directory.exists() else "no such folder"
        raise BundleError(
            f"{directory}: {found}; expected a bundle, as `cutset split` writes it",
            path=str(directory),
        )
    file = directory / MANIFEST_NAME
    if file.is_symlink() or not file.is_file():
        raise ManifestError(
            f"{directory}: no {MANIFEST_NAME} in it; this is no bundle, or was copied in part",
            path="$",
        )
    return file


def read_manifest(directory: Path) -> Manifest:
    """Reads and checks a bundle's manifest; its other files are not looked at.

    Raises:
        UnsupportedVersion, ManifestError, UnsafeBundle: as for `open_bundle`.
        BundleError: there is no such folder, or the manifest cannot be read.
    """
    file = find_manifest(directory)
    try:
        with file.open("rb") as source:
            data = source.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}", path=str(file)) from error
    return decode_manifest(data)


def load_onnx_model(bundle: Bundle, stage_index: int) -> Path:
    """Where a stage's ONNX model is, after checking that it loads nothing but itself.

    Raises:
        UnsafeBundle: it refers to files that the manifest does not list, or to operators that
            ONNX Runtime does not bring along.
        BundleError: the stage has no ONNX model, does not exist or was not opened.
    """
    file, _ = read_stage_model(bundle, stage_index)
    return file


def read_stage_model(bundle: Bundle, stage_index: int) -> tuple[Path, Any]:
    """A stage's ONNX model as an ``onnx.ModelProto``; raises what `load_onnx_model` does.

    Its external tensors are left in their files.
    """
    entry = stage_entry(bundle, stage_index)
    if entry.model is None:
        raise BundleError(
            f"{bundle.directory}: stage {stage_index} has no ONNX model: {entry.model_missing}; "
            f"use the torch backend",
            path=str(bundle.directory),
        )
    from cutset.bundles.reading.onnx_safety import (
        read_onnx_model,  # imports onnx; torch's need not wait
    )

    file = bundle.path(entry.model)
    sizes = {listed.path: listed.num_bytes for listed in bundle.manifest.files}
    model = read_onnx_model(
        file, path=entry.model, listed=frozenset(sizes), max_bytes=sizes[entry.model]
    )
    return file, model


def stage_entry(bundle: Bundle, stage_index: int) -> StageEntry:
    """What the manifest says of a stage.

    Raises:
        BundleError: there is no such stage.
    """
    if not 0 <= stage_index < len(bundle.manifest.stages):
        raise BundleError(
            f"{bundle.directory}: no stage {stage_index}; the bundle has "
            f"{len(bundle.manifest.stages)}",
            path=str(bundle.directory),
        )
    return bundle.manifest.stages[stage_index]


def _stage_of(relative: str) -> int | None:
    """Index of the stage in whose folder a file lies, or None."""
    number = PurePosixPath(relative).parts[0].removeprefix("stage-")
    inside = relative.startswith("stage-") and "/" in relative and number.isdecimal()
    return int(number) if inside else None


def _check_folder(directory: Path, manifest: Manifest) -> dict[str, int]:
    """Sizes of the files that are there, by path; none that is not listed, no link."""
    listed = {entry.path for entry in manifest.files} | {MANIFEST_NAME}
    folders = {str(parent) for path in listed for parent in PurePosixPath(path).parents}
    present: dict[str, int] = {}
    for entry in _walk(directory):
        relative = Path(entry.path).relative_to(directory).as_posix()
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode) and relative in folders:
            continue
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "no plain file"
            raise UnsafeBundle(
                f"{directory}: {relative!r} is {kind}; a bundle holds plain files only",
                path=relative,
            )
        if relative not in listed or stat.S_ISDIR(status.st_mode):
            raise UnsafeBundle(
                f"{directory}: {relative!r} is there, but the manifest does not list it; remove "
                f"it, or copy the bundle again",
                path=relative,
            )
        present[relative] = status.st_size
    return present


def _walk(directory: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder; links are not followed."""
    with os.scandir(directory) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path))


def _check_file(directory: Path, entry: FileEntry, num_bytes: int | None) -> None:
    if num_bytes is None:
        raise ChecksumMismatch(
            f"{directory}: {entry.path} is missing; the manifest lists it with {entry.num_bytes} "
            f"bytes. Copy the bundle again",
            path=entry.path,
            expected=f"{entry.num_bytes} bytes",
            actual="missing",
        )
    if num_bytes != entry.num_bytes:
        raise ChecksumMismatch(
            f"{directory}: {entry.path} has {num_bytes} bytes, the manifest says "
            f"{entry.num_bytes}. Copy the bundle again",
            path=entry.path,
            expected=f"{entry.num_bytes} bytes",
            actual=f"{num_bytes} bytes",
        )
    _refuse_holes(directory, entry)
    if (actual := sha256_of(directory / entry.path)) != entry.sha256:
        raise ChecksumMismatch(
            f"{directory}: {entry.path} was changed or damaged: sha256 {actual[:16]}, "
            f"the manifest says {entry.sha256[:16]}. Copy the bundle again",
            path=entry.path,
            expected=entry.sha256,
            actual=actual,
        )


def _refuse_holes(directory: Path, entry: FileEntry) -> None:
    """Refuses a large file that is nearly nothing but holes, of which terabytes cost nothing.

    A system that does not know where holes are says that there is none.
    """
    if entry.num_bytes < _LARGE_BYTES or not hasattr(os, "SEEK_DATA"):
        return
    data_bytes, place = 0, 0
    with (directory / entry.path).open("rb") as file:
        while data_bytes < entry.num_bytes // _MOST_HOLES:
            try:
                start = os.lseek(file.fileno(), place, os.SEEK_DATA)
                place = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data after this place
                    break
                return
            data_bytes += place - start
        else:
            return
    raise UnsafeBundle(
        f"{directory}: {entry.path} has {entry.num_bytes} bytes, of which only {data_bytes} were "
        "ever written; no bundle has a file of holes",
        path=entry.path,
    )
