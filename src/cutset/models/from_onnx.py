"""Models in ONNX files."""

from __future__ import annotations

from pathlib import Path

from cutset.capture.onnx.onnx_file import read_onnx_file
from cutset.errors import ModelError
from cutset.models.found import FoundModel
from cutset.models.weights_request import WeightsRequest, file_sha256


def find_in_onnx_file(file: str, request: WeightsRequest | None) -> FoundModel:
    """Reads an ONNX file as data; unlike a Python file or a program it cannot run code.

    Raises:
        ModelError: the file is missing or no ONNX model, is not self-contained (see
            `read_onnx_file`), or weights were asked for.
    """
    path = Path(file)
    if request is not None:
        raise ModelError(f"{file} holds its own weights; leave --weights out")
    module = read_onnx_file(path)
    return FoundModel(
        model=module,
        name=file,
        weights=f"held in {path.name}, sha256 {file_sha256(path)}",
        example_inputs=(),
    )
