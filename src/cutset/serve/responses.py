"""The Open Inference Protocol v2, what goes out: arrays to the bytes of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from cutset.dtypes import NUMPY_DTYPES
from cutset.serve.json_numbers import write_numbers
from cutset.serve.refusal import Refusal
from cutset.serve.requests import (
    DATATYPES,
    MODEL_VERSION,
    Contract,
    InferRequest,
    is_finite,
)

_BFLOAT16 = NUMPY_DTYPES["bfloat16"]


def encode_answer(
    contract: Contract, request: InferRequest, outputs: Sequence[np.ndarray]
) -> tuple[list[bytes], int | None]:
    """The body of an answer.

    Args:
        contract: of the model.
        request: what was asked.
        outputs: all outputs of the model, in its order.

    Returns:
        The body in pieces, and the length of its JSON where raw arrays follow, else None.

    Raises:
        Refusal: 400, an output that was wanted as JSON has NaN or infinity in it.
    """
    entries: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for index, binary in request.outputs:
        array = outputs[index]
        name = contract.output_names[index]
        entry: dict[str, Any] = {
            "name": name,
            "datatype": DATATYPES[contract.outputs[index].dtype],
            "shape": list(array.shape),
        }
        if binary:
            raw.append(_to_bytes(array))
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            if not is_finite(array):
                raise Refusal(
                    f"output {name!r} has NaN or infinity in it, which JSON cannot carry; ask "
                    "for it with binary_data",
                    status=400,
                    reason="invalid",
                )
            # Python knows no bfloat16; float32 has all of its numbers.
            plain = array.astype(np.float32) if array.dtype == _BFLOAT16 else array
            entry["data"] = msgspec.Raw(write_numbers(plain.reshape(-1)))
        entries.append(entry)
    document: dict[str, Any] = {"model_name": contract.model_name, "model_version": MODEL_VERSION}
    if request.id:
        document["id"] = request.id
    document["outputs"] = entries
    text = msgspec.json.encode(document)
    return [text, *raw], len(text) if raw else None


def _to_bytes(array: np.ndarray) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
