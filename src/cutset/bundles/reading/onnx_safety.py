"""What is checked in ``model.onnx`` before ONNX Runtime may see it.

External tensors must lie in files that the manifest lists, operators must be of ONNX's own domains
or of ONNX Runtime's contributed one, and those that load something themselves are refused; see
`cutset.capture.onnx.walk`.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from cutset.capture.onnx.walk import external_place, external_tensors, operator_fault
from cutset.errors import UnsafeBundle


def read_onnx_model(file: Path, *, path: str, listed: frozenset[str], max_bytes: int) -> Any:
    """Reads a model, and refuses one that could load anything but the bundle's own files.

    Args:
        file: where the model is on disk.
        path: its path within the bundle.
        listed: paths of all files that the manifest lists.
        max_bytes: the size that the manifest promises; not a byte more is read.

    Returns:
        The ``onnx.ModelProto``, its external tensors left in their files.

    Raises:
        UnsafeBundle: see above; the message names the entry.
    """
    with file.open("rb") as source:
        data = source.read(max_bytes + 1)
    try:
        model = onnx.ModelProto.FromString(data)
    except (DecodeError, ValueError) as error:
        raise UnsafeBundle(f"{path}: not an ONNX model ({error})", path=path) from error
    fault = operator_fault(model)
    if fault is not None:
        raise _refusal(path, *fault)
    for tensor in external_tensors(model):
        _check_external(tensor, file, path, listed)
    return model


def _refusal(path: str, entry: str, why: str) -> UnsafeBundle:
    return UnsafeBundle(f"{path}: {entry} {why}; the model was not loaded", path=path)


def _check_external(tensor: Any, file: Path, path: str, listed: frozenset[str]) -> None:
    entry = f"tensor {tensor.name!r}"
    try:
        location, start, length = external_place(tensor)
    except ValueError as error:
        raise _refusal(path, entry, str(error)) from error
    if not location or "/" in location or "\\" in location or location in (".", ".."):
        raise _refusal(path, entry, f"lies outside the bundle, in {location!r}")
    if str(PurePosixPath(path).parent / location) not in listed:
        raise _refusal(path, entry, f"lies in {location!r}, which the manifest does not list")
    if start + length > (file.parent / location).stat().st_size:
        raise _refusal(path, entry, f"ends beyond {location!r}")
