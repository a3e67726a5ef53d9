"""Reading files of weights without running their code, and putting them into a model."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises with weights_only=True
from typing import TypeAlias

import torch

from cutset.errors import ModelError, WeightsMismatch
from cutset.models.request import WeightsFile

StateDict: TypeAlias = "Mapping[str, torch.Tensor]"

_NESTED_UNDER = ("state_dict", "model")
_WRAPPER_PREFIX = "module."
_SHOWN = 3
_BLOCK_BYTES = 1 << 20


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in lower-case hex.

    Raises:
        ModelError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise ModelError(f"weights file {path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def describe_file(request: WeightsFile, sha256: str) -> str:
    """Where weights from a file came from, in words."""
    order = ", matched by order" if request.by_order else ""
    return f"file {request.path.name}, sha256 {sha256}{order}"


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Reads a state dict; a pickled one with ``weights_only=True``, mapped where it can be.

    A state dict nested under ``state_dict`` or ``model`` is found; the prefix ``module.`` that
    `torch.nn.DataParallel` puts before every name is taken off where every name has it.

    Raises:
        ModelError: the file is damaged, holds code or holds anything but named tensors.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        found = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except UnpicklingError as error:
        raise ModelError(
            f"weights file {path} holds more than tensors, or is damaged; reading it could run "
            "code, so it is not read. Save model.state_dict() instead of the model, or a "
            ".safetensors file"
        ) from error
    except Exception as error:  # damaged files make torch's readers raise nearly anything
        raise ModelError(f"weights file {path} cannot be read: {first_line(error)}") from error
    state = found
    for key in _NESTED_UNDER:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            state = found[key]
            break
    if not isinstance(state, Mapping) or not state:
        raise ModelError(
            f"weights file {path}: expected named tensors (a state dict), "
            f"found {type(state).__name__}{'' if state else ' without entries'}"
        )
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
            raise ModelError(
                f"weights file {path}: expected named tensors (a state dict), "
                f"found {name!r}: {type(value).__name__}"
            )
    if all(name.startswith(_WRAPPER_PREFIX) for name in state):
        state = {name.removeprefix(_WRAPPER_PREFIX): value for name, value in state.items()}
    plain = _VersionedState(state)
    plain._metadata = getattr(state, "_metadata", None)
    return plain


class _VersionedState(dict[str, torch.Tensor]):
    """A state dict with torch's ``_metadata``: the version of each module that wrote it.

    Some modules need it to load what an older version of them wrote.
    """

    _metadata: object = None


def has_versions(state: StateDict) -> bool:
    """Whether a state dict says which versions of the modules wrote it."""
    return getattr(state, "_metadata", None) is not None


def with_versions_of(expected: StateDict, found: StateDict) -> dict[str, torch.Tensor]:
    """The entries of `found`, taken as written by the module versions of `expected`.

    A file of plain tensors carries no versions, and some modules refuse to guess.
    """
    versioned = _VersionedState(found)
    versioned._metadata = getattr(expected, "_metadata", None)
    return versioned


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"weights file {path} cannot be read: {first_line(error)}") from error


def in_order_of(expected: StateDict, found: StateDict, path: Path) -> dict[str, torch.Tensor]:
    """Gives the entries of `found` the names of `expected`, one after the other.

    Raises:
        WeightsMismatch: the numbers of entries differ, or a shape does.
    """
    expected = _tensors_of(expected)
    pairs = list(zip(expected.items(), found.items(), strict=False))
    misshaped = tuple(
        f"{name} expects {list(want.shape)}, found {other} {list(have.shape)}"
        for (name, want), (other, have) in pairs
        if want.shape != have.shape
    )
    missing = tuple(list(expected)[len(pairs) :])
    unexpected = tuple(list(found)[len(pairs) :])
    if misshaped or missing or unexpected:
        raise _mismatch(path, missing, unexpected, misshaped, " when matched by order")
    return {name: have for (name, _), (_, have) in pairs}


def _tensors_of(state: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """The tensors of a state dict; quantised modules keep dtypes and tuples there too."""
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def check_state(expected: StateDict, found: StateDict, path: Path) -> None:
    """Checks that names and shapes are the model's.

    ``num_batches_tracked`` counters may be missing, as in files older than they are: torch sets
    them and nothing reads them in evaluation mode.

    Raises:
        WeightsMismatch: an entry is missing, unexpected or of another shape.
    """
    unexpected = tuple(name for name in found if name not in expected)
    expected = _tensors_of(expected)
    missing = tuple(
        name
        for name in expected
        if name not in found and name.rpartition(".")[2] != "num_batches_tracked"
    )
    misshaped = tuple(
        f"{name} expects {list(want.shape)}, found {list(found[name].shape)}"
        for name, want in expected.items()
        if name in found and want.shape != found[name].shape
    )
    if missing or unexpected or misshaped:
        raise _mismatch(path, missing, unexpected, misshaped, "")


def load_weights_file(model: torch.nn.Module, request: WeightsFile) -> str:
    """Puts the weights of a file into a model and says in words where they came from.

    Raises:
        ModelError: the file cannot be read.
        WeightsMismatch: it belongs to another model; the model is then unchanged.
    """
    found: StateDict = read_state_dict(request.path)
    expected = model.state_dict()
    if request.by_order:
        found = in_order_of(expected, found, request.path)
    check_state(expected, found, request.path)
    try:
        try:
            model.load_state_dict(found, strict=True)
        except (RuntimeError, ValueError):
            if has_versions(found):
                raise
            model.load_state_dict(with_versions_of(expected, found), strict=True)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"weights file {request.path} does not load into the model: {first_line(error)}"
        ) from error
    return describe_file(request, file_sha256(request.path))


def _mismatch(
    path: Path,
    missing: tuple[str, ...],
    unexpected: tuple[str, ...],
    misshaped: tuple[str, ...],
    how: str,
) -> WeightsMismatch:
    parts = [
        f"{len(names)} {what} ({_some(names)})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshaped),
        )
        if names
    ]
    return WeightsMismatch(
        f"weights file {path} is for another model{how}: {', '.join(parts)}. Name the model that "
        "it was saved from; for a changed head, write a factory (FILE.py:FACTORY)",
        path=str(path),
        missing=missing,
        unexpected=unexpected,
        misshaped=misshaped,
    )


def _some(names: tuple[str, ...]) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
