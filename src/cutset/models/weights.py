"""Putting the weights of a file into a model, and saying where they came from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from cutset.errors import ModelError, WeightsMismatch
from cutset.models.checkpoint import StateDict, VersionedState, pick_state, read_checkpoint
from cutset.models.weights_request import WeightsFile, file_sha256
from cutset.printable import first_line

_LOG = logging.getLogger(__name__)

_SHOWN = 3


def describe_file(request: WeightsFile, sha256: str, remark: str = "") -> str:
    """Where weights from a file came from, in words; a remark is said to the user as well."""
    if remark:
        _LOG.warning("weights file %s: %s", request.path, remark)
    order = ", matched by order" if request.by_order else ""
    return f"file {request.path.name}, sha256 {sha256}{f', {remark}' if remark else ''}{order}"


def has_versions(state: StateDict) -> bool:
    """Whether a state dict says which versions of the modules wrote it."""
    return getattr(state, "_metadata", None) is not None


def with_versions_of(expected: StateDict, found: StateDict) -> dict[str, torch.Tensor]:
    """The entries of `found`, taken as written by the module versions of `expected`.

    A file of plain tensors carries no versions, and some modules refuse to guess.
    """
    versioned = VersionedState(found)
    versioned._metadata = getattr(expected, "_metadata", None)
    return versioned


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
    expected = model.state_dict()
    picked = pick_state(read_checkpoint(request.path), request, lambda: expected)
    found = picked.state
    if request.by_order:
        found = in_order_of(expected, found, request.path)
    check_state(expected, found, request.path)
    remark = with_casts(picked.remark, expected, found, request.path)
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
    return describe_file(request, file_sha256(request.path), remark)


def with_casts(remark: str, expected: StateDict, found: StateDict, path: Path) -> str:
    """A remark, and what else happens to the numbers: ``"float16 becomes float32"``.

    Raises:
        ModelError: the model's tensors cannot hold numbers of that kind.
    """
    casts: dict[str, None] = {}
    for name, want in _tensors_of(expected).items():
        have = found.get(name)
        if have is None or have.dtype == want.dtype:
            continue
        words = f"{_dtype(have)} becomes {_dtype(want)}"
        if have.is_quantized != want.is_quantized or not torch.can_cast(have.dtype, want.dtype):
            raise ModelError(
                f"weights file {path}: {name!r} is {_dtype(have)}, and the model's is "
                f"{_dtype(want)}, which cannot hold such numbers"
            )
        casts[words] = None
    return ", ".join([*([remark] if remark else []), *casts])


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


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
