"""The Open Inference Protocol v2, what comes in: requests to arrays; `answers` goes back.

Pure functions: no network, no session. A body is one JSON document, or, with the binary tensor data
extension, a JSON document of ``Inference-Header-Content-Length`` bytes followed by the raw
little-endian tensors in the order in which the document names them. Sources: the protocol's
"Predict Protocol - Version 2" and Triton's "Binary Tensor Data Extension".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from cutset.bundles.manifest import Manifest
from cutset.dtypes import NUMPY_DTYPES
from cutset.serve.json_numbers import read_numbers
from cutset.serve.refusal import Refusal, invalid
from cutset.tensors import TensorSpec, dim_factor

MODEL_VERSION = "1"
MAX_RANK = 16
MAX_ID_LENGTH = 1024

DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
}
"""The protocol's names of the dtypes."""

_CONTENT_TYPES = ("application/json", "application/octet-stream")

_REFUSED_PARAMETERS = {
    "sequence_id": "sequences are not kept",
    "sequence_start": "sequences are not kept",
    "sequence_end": "sequences are not kept",
    "shared_memory_region": "shared memory is not supported; send the data",
    "classification": "is not supported; POST /classify gives labels",
}


_Parameters = dict[str, bool | int | float | str]
"""Of the protocol's kinds and no others: what is nested would grow many times when it is read."""


class InferInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor of a request."""

    name: str
    shape: list[int]
    datatype: str
    parameters: _Parameters = {}
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class InferOutput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An output that a request asks for."""

    name: str
    parameters: _Parameters = {}


class InferBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a request, or the JSON that it begins with."""

    inputs: list[InferInput]
    id: str = ""
    parameters: _Parameters = {}
    outputs: list[InferOutput] | msgspec.UnsetType = msgspec.UNSET


_DECODER = msgspec.json.Decoder(InferBody)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contract:
    """What a model takes and gives over HTTP.

    Attributes:
        model_name: its name in URLs and answers.
        inputs: in the model's order.
        outputs: in the model's order.
        output_names: how clients know the outputs, in the same order.
        nan_policy: as in `ServeSettings`.
    """

    model_name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    output_names: tuple[str, ...]
    nan_policy: str = "reject"

    def answer_bytes(self, num_rows: int) -> int:
        """Bytes of the outputs of so many rows."""
        return sum(spec.num_bytes(num_rows) for spec in self.outputs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferRequest:
    """A request that was understood.

    Attributes:
        id: what the client called it, or ``""``.
        inputs: an array per input of the model, in the model's order.
        num_rows: rows of each of them.
        outputs: index of each wanted output, and whether it is wanted in binary.
        timeout_s: how long the client would wait, or None.
    """

    id: str
    inputs: tuple[np.ndarray, ...]
    num_rows: int
    outputs: tuple[tuple[int, bool], ...]
    timeout_s: float | None


def make_contract(manifest: Manifest, *, model_name: str, nan_policy: str = "reject") -> Contract:
    """The contract of a bundle.

    Raises:
        ValueError: a tensor has a dtype that the protocol does not know.
    """
    for spec in (*manifest.graph.inputs, *manifest.outputs):
        if spec.dtype not in DATATYPES:
            raise ValueError(
                f"tensor {spec.name!r} is {spec.dtype}, which the Open Inference Protocol lacks; "
                f"it knows {', '.join(DATATYPES)}"
            )
    return Contract(
        model_name=model_name,
        inputs=manifest.graph.inputs,
        outputs=manifest.outputs,
        output_names=manifest.output_names,
        nan_policy=nan_policy,
    )


def model_metadata(contract: Contract) -> dict[str, Any]:
    """The document of ``GET /v2/models/NAME``; -1 stands for any number of rows."""
    return {
        "name": contract.model_name,
        "versions": [MODEL_VERSION],
        "platform": "cutset",
        "inputs": [_described(spec, spec.name) for spec in contract.inputs],
        "outputs": [
            _described(spec, name)
            for spec, name in zip(contract.outputs, contract.output_names, strict=True)
        ],
    }


def _described(spec: TensorSpec, name: str) -> dict[str, Any]:
    return {"name": name, "datatype": DATATYPES[spec.dtype], "shape": _wire_shape(spec)}


def _wire_shape(spec: TensorSpec) -> list[int]:
    return [int(dim) if dim_factor(dim) is None else -1 for dim in spec.shape]


def parse_header_length(text: str | None, body_bytes: int | None) -> int | None:
    """The value of ``Inference-Header-Content-Length``, or None where it was not sent.

    Args:
        text: the header.
        body_bytes: length of the body, or None where it is not known yet.

    Raises:
        Refusal: 400, it is no number or longer than the body.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise invalid("Inference-Header-Content-Length", f"{text[:40]!r} is no length")
    if body_bytes is not None and int(text) > body_bytes:
        raise invalid(
            "Inference-Header-Content-Length", f"is {text}, but the body has {body_bytes} bytes"
        )
    return int(text)


def check_content_type(text: str | None) -> None:
    """Refuses what is no inference request by its type.

    Clients of the protocol send JSON as ``application/json``, as bytes, or without a type. The
    types of forms and ``text/plain`` are what a page of another site can send unasked.

    Args:
        text: the header ``Content-Type``, or None.

    Raises:
        Refusal: 415.
    """
    if text is None:
        return
    if text.partition(";")[0].strip().lower() not in _CONTENT_TYPES:
        raise Refusal(
            f"Content-Type: {text[:80]!r}, expected {' or '.join(_CONTENT_TYPES)}",
            status=415,
            reason="invalid",
        )


def decode_request(body: bytearray, header_length: int | None, contract: Contract) -> InferRequest:
    """Understands the body of an inference request, or says what is wrong with it.

    Args:
        body: the body; binary inputs share its memory, so it must not be changed afterwards.
        header_length: as `parse_header_length` gives it.
        contract: of the model.

    Raises:
        Refusal: 400, names the field.
    """
    document, rest = _split(body, header_length)
    try:
        request = _DECODER.decode(document)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        raise invalid("body", f"is no inference request: {error}") from error
    except RecursionError as error:
        raise invalid("body", "is no inference request: JSON nested too deeply") from error
    if len(request.id) > MAX_ID_LENGTH:
        raise invalid("$.id", f"has {len(request.id)} characters, at most {MAX_ID_LENGTH}")
    _check_parameters(request.parameters, "$.parameters")
    tensors, num_rows = _read_inputs(request.inputs, rest, contract)
    return InferRequest(
        id=request.id,
        inputs=tensors,
        num_rows=num_rows,
        outputs=_wanted_outputs(request, contract),
        timeout_s=_timeout_s(request.parameters),
    )


def _split(body: bytearray, header_length: int | None) -> tuple[memoryview, memoryview]:
    view = memoryview(body)
    if header_length is None:
        return view, view[:0]
    return view[:header_length], view[header_length:]


def _check_parameters(parameters: dict[str, Any], field: str) -> None:
    for name, why in _REFUSED_PARAMETERS.items():
        if parameters.get(name):
            raise invalid(f"{field}.{name}", why)


def _timeout_s(parameters: dict[str, Any]) -> float | None:
    """Triton's ``timeout``: microseconds; 0 stands for the server's own."""
    value = parameters.get("timeout", 0)
    if type(value) is not int or value < 0:
        raise invalid("$.parameters.timeout", "expected microseconds, a whole number from 0")
    return min(value, 10**12) / 1e6 if value else None


def _flag(parameters: dict[str, Any], name: str, field: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise invalid(f"{field}.parameters.{name}", "expected true or false")
    return value


def _wanted_outputs(request: InferBody, contract: Contract) -> tuple[tuple[int, bool], ...]:
    binary = _flag(request.parameters, "binary_data_output", "$", default=False)
    if isinstance(request.outputs, msgspec.UnsetType) or not request.outputs:
        return tuple((index, binary) for index in range(len(contract.outputs)))
    wanted: dict[int, bool] = {}
    for position, output in enumerate(request.outputs):
        field = f"$.outputs[{position}]"
        if output.name not in contract.output_names:
            known = ", ".join(repr(name) for name in contract.output_names)
            raise invalid(
                f"{field}.name", f"the model has no output {output.name[:80]!r}; it has {known}"
            )
        index = contract.output_names.index(output.name)
        if index in wanted:
            raise invalid(f"{field}.name", f"{output.name!r} is wanted twice")
        _check_parameters(output.parameters, f"{field}.parameters")
        wanted[index] = _flag(output.parameters, "binary_data", field, default=binary)
    return tuple(wanted.items())


def _read_inputs(
    given: Sequence[InferInput], rest: memoryview, contract: Contract
) -> tuple[tuple[np.ndarray, ...], int]:
    """The inputs in the model's order, and their number of rows."""
    positions = {spec.name: index for index, spec in enumerate(contract.inputs)}
    found: dict[int, np.ndarray] = {}
    num_rows: int | None = None
    offset = 0
    for position, tensor in enumerate(given):
        field = f"$.inputs[{position}]"
        index = positions.get(tensor.name)
        if index is None or index in found:
            known = ", ".join(repr(name) for name in positions)
            problem = "is given twice" if index is not None else f"the model takes {known}"
            raise invalid(f"{field}.name", f"{tensor.name[:80]!r}: {problem}")
        spec = contract.inputs[index]
        _check_parameters(tensor.parameters, f"{field}.parameters")
        num_rows = _check_shape(tensor, spec, num_rows, field)
        if "binary_data_size" in tensor.parameters:
            length = _binary_size(tensor, spec, num_rows or 1, len(rest) - offset, field)
            found[index] = _from_bytes(rest[offset : offset + length], spec, tensor.shape, field)
            offset += length
        else:
            found[index] = _from_json(tensor, spec, field)
        _check_finite(found[index], contract.nan_policy, field)
    missing = [name for name, index in positions.items() if index not in found]
    if missing:
        raise invalid("$.inputs", f"{missing[0]!r} is missing")
    if offset != len(rest):
        raise invalid(
            "body", f"{len(rest)} bytes follow the JSON, but the inputs account for {offset}"
        )
    return tuple(found[index] for index in range(len(contract.inputs))), num_rows or 1


def _check_shape(
    tensor: InferInput, spec: TensorSpec, num_rows: int | None, field: str
) -> int | None:
    """Checks datatype and shape; gives the number of rows once it is known."""
    expected = DATATYPES[spec.dtype]
    if tensor.datatype != expected:
        raise invalid(f"{field}.datatype", f"is {tensor.datatype[:40]!r}, expected {expected!r}")
    shape = tensor.shape
    shown = str(shape[:MAX_RANK])
    if len(shape) != len(spec.shape):
        raise invalid(f"{field}.shape", f"is {shown}, expected {_wire_shape(spec)}")
    for length, dim in zip(shape, spec.shape, strict=True):
        factor = dim_factor(dim)
        if factor is not None and num_rows is None and 0 < length < 1 << 40:
            num_rows = length // factor
        wanted = dim if factor is None else factor * (num_rows or 0)
        if length != wanted or (factor is not None and length < 1):
            rows = f" with {num_rows} rows" if num_rows else ""
            raise invalid(f"{field}.shape", f"is {shown}, expected {_wire_shape(spec)}{rows}")
    return num_rows


def _binary_size(
    tensor: InferInput, spec: TensorSpec, num_rows: int, available_bytes: int, field: str
) -> int:
    declared = tensor.parameters["binary_data_size"]
    place = f"{field}.parameters.binary_data_size"
    needed = spec.num_bytes(num_rows)
    if not isinstance(tensor.data, msgspec.UnsetType):
        raise invalid(place, "the tensor has `data` as well; send one of them")
    if type(declared) is not int or declared != needed:
        raise invalid(place, f"is {str(declared)[:40]}, the shape needs {needed} bytes")
    if declared > available_bytes:
        raise invalid(place, f"is {declared}, but only {available_bytes} bytes follow")
    return needed


def _from_bytes(data: memoryview, spec: TensorSpec, shape: Sequence[int], field: str) -> np.ndarray:
    dtype = NUMPY_DTYPES[spec.dtype]
    if spec.dtype == "bool":
        flags = np.frombuffer(data, dtype=np.uint8)
        if bool((flags > 1).any()):
            raise invalid(field, "BOOL data has a byte that is neither 0 nor 1")
    array = np.frombuffer(data, dtype=dtype.newbyteorder("<")).reshape(shape)
    # The JSON before it may have any length; kernels expect numbers at their natural places.
    return np.require(array, dtype=dtype, requirements=("A", "W"))


def _from_json(tensor: InferInput, spec: TensorSpec, field: str) -> np.ndarray:
    if isinstance(tensor.data, msgspec.UnsetType):
        raise invalid(f"{field}.data", "is missing, and there is no binary_data_size")
    kind = DATATYPES[spec.dtype]
    is_float = spec.dtype in ("float16", "bfloat16", "float32", "float64")
    wide = np.dtype(np.float64 if is_float else np.bool_ if spec.dtype == "bool" else np.int64)
    array = read_numbers(bytes(tensor.data), tensor.shape, wide, kind, f"{field}.data")
    with np.errstate(over="ignore"):
        converted = array.reshape(tensor.shape).astype(NUMPY_DTYPES[spec.dtype])
    if not is_finite(converted):  # JSON itself has no infinity
        raise invalid(f"{field}.data", f"a number is out of {kind}")
    if not is_float and not np.array_equal(converted.reshape(-1), array):
        raise invalid(f"{field}.data", f"a number is out of {kind}")
    return converted


def _check_finite(array: np.ndarray, nan_policy: str, field: str) -> None:
    if nan_policy == "reject" and not is_finite(array):
        raise invalid(field, "has NaN or infinity in it; this server rejects them (--nan)")


def is_finite(array: np.ndarray) -> bool:
    """Whether an array is free of NaN and infinities."""
    return array.dtype.kind in "biu" or bool(np.isfinite(array).all())
