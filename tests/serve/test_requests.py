from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cutset.dtypes import NUMPY_DTYPES
from cutset.serve.refusal import Refusal
from cutset.serve.requests import (
    Contract,
    InferRequest,
    check_content_type,
    decode_request,
    model_metadata,
    parse_header_length,
)
from cutset.serve.responses import encode_answer
from cutset.tensors import TensorSpec


def _contract(
    dtype: str = "float32", shape: tuple[Any, ...] = ("batch", 2), **more: Any
) -> Contract:
    return Contract(
        model_name="m",
        inputs=(TensorSpec(name="x", shape=shape, dtype=dtype),),
        outputs=(TensorSpec(name="y", shape=("batch", 2), dtype=dtype),),
        output_names=("0",),
        **more,
    )


def _decode(document: Any, rest: bytes = b"", contract: Contract | None = None) -> InferRequest:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    length = len(text) if rest else None
    return decode_request(bytearray(text + rest), length, contract or _contract())


def _input(**changes: Any) -> dict[str, Any]:
    given = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2.5], **changes}
    return {"inputs": [{key: value for key, value in given.items() if value is not None}]}


def test_flat_and_nested_data() -> None:
    flat = _decode(_input(shape=[2, 2], data=[1, 2, 3, 4.5]))
    nested = _decode(_input(shape=[2, 2], data=[[1, 2], [3, 4.5]]))
    assert flat.num_rows == nested.num_rows == 2
    assert flat.inputs[0].tolist() == nested.inputs[0].tolist() == [[1, 2], [3, 4.5]]
    assert flat.inputs[0].dtype == np.float32
    assert flat.outputs == ((0, False),)


@pytest.mark.parametrize(
    ("dtype", "name", "values", "raw"),
    [
        ("bool", "BOOL", [True, False], b"\x01\x00"),
        ("uint8", "UINT8", [0, 255], b"\x00\xff"),
        ("int8", "INT8", [-128, 127], b"\x80\x7f"),
        ("int16", "INT16", [-2, 258], b"\xfe\xff\x02\x01"),
        ("int32", "INT32", [-1, 1], b"\xff\xff\xff\xff\x01\x00\x00\x00"),
        ("int64", "INT64", [-1, 1], b"\xff" * 8 + b"\x01" + b"\x00" * 7),
        ("float16", "FP16", [1.0, -2.0], b"\x00\x3c\x00\xc0"),
        ("bfloat16", "BF16", [1.0, -2.0], b"\x80\x3f\x00\xc0"),
        ("float32", "FP32", [1.0, -2.0], b"\x00\x00\x80\x3f\x00\x00\x00\xc0"),
        ("float64", "FP64", [1.0, -2.0], b"\x00" * 6 + b"\xf0\x3f" + b"\x00" * 7 + b"\xc0"),
    ],
)
def test_every_datatype_both_ways(dtype: str, name: str, values: list[Any], raw: bytes) -> None:
    contract = _contract(dtype)
    from_json = _decode(_input(datatype=name, data=values), contract=contract)
    binary = {"binary_data_size": len(raw)}
    from_raw = _decode(_input(datatype=name, data=None, parameters=binary), raw, contract)
    assert np.array_equal(from_json.inputs[0], from_raw.inputs[0])
    assert from_raw.inputs[0].tolist() == [values]
    assert from_json.inputs[0].dtype == from_raw.inputs[0].dtype == NUMPY_DTYPES[dtype]
    assert from_raw.inputs[0].flags.aligned
    assert from_raw.inputs[0].flags.writeable
    wanted = InferRequest(
        id="a", inputs=from_raw.inputs, num_rows=1, outputs=((0, True),), timeout_s=None
    )
    pieces, length = encode_answer(contract, wanted, from_raw.inputs)
    assert length == len(pieces[0])
    assert pieces[1:] == [raw]
    as_text, no_length = encode_answer(contract, from_json, from_json.inputs)
    assert no_length is None
    assert json.loads(as_text[0])["outputs"] == [
        {"name": "0", "datatype": name, "shape": [1, 2], "data": values}
    ]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"", "body: is no inference request"),
        (b"\xff", "body: is no inference request"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "missing required field `inputs`"),
        ({"inputs": [], "ouputs": []}, "unknown field `ouputs`"),
        ({"inputs": []}, "$.inputs: 'x' is missing"),
        (_input(name="z"), "$.inputs[0].name: 'z': the model takes 'x'"),
        (_input(datatype="FP64"), "$.inputs[0].datatype: is 'FP64', expected 'FP32'"),
        (_input(shape=[1, 3]), "$.inputs[0].shape: is [1, 3], expected [-1, 2] with 1 rows"),
        (_input(shape=[-1, 2]), "$.inputs[0].shape"),
        (_input(shape=[0, 2], data=[]), "$.inputs[0].shape"),
        (_input(shape=[1 << 62, 2]), "$.inputs[0].shape"),
        (_input(shape=[1 << 39, 2]), "$.inputs[0].data: has 2 values"),
        (_input(shape="12"), "$.inputs[0].shape"),
        (_input(data=None), "$.inputs[0].data: is missing"),
        (_input(data=[1]), "$.inputs[0].data: has 1 values, its shape needs 2"),
        (_input(data=[[1], [2]]), "is neither flat nor nested as its shape [1, 2]"),
        (_input(data=[[1, [2]]]), "is neither flat nor nested as its shape [1, 2]"),
        (_input(data=[1, [2]]), "is neither flat nor nested as its shape [1, 2]"),
        (_input(data=["[[", "2"]), "is neither flat nor nested as its shape [1, 2]"),
        (_input(data=[["1", "2"]]), "$.inputs[0].data: '1' is no value of FP32"),
        (_input(data=[[1, 2, 3]]), "is neither flat nor nested as its shape [1, 2]"),
        (_input(data={"0": 1}), "is neither flat nor nested as its shape [1, 2]"),
        (_input(data=3), "is neither flat nor nested as its shape [1, 2]"),
        (_input(data=[1, "2"]), "$.inputs[0].data: '2' is no value of FP32"),
        (_input(data=[1, None]), "$.inputs[0].data: 'None' is no value of FP32"),
        (_input(data=[1, True]), "$.inputs[0].data: 'True' is no value of FP32"),
        (_input(data=[1, 1e39]), "$.inputs[0].data: a number is out of FP32"),
        (_input(data=[1, 10**400]), "$.inputs[0].data: a number is out of FP32"),
        (_input(data=[1, 10**30]), None),
        (b'{"inputs": [{"name":"x","shape":[1,2],"datatype":"FP32","data":[NaN,1]}]}', "body"),
        (b"[" * 100_000, "body: is no inference request"),
        (b'{"inputs": ' + b"[" * 100_000, "body: is no inference request"),
        ({**_input(), "id": "a" * 1025}, "$.id: has 1025 characters"),
        ({**_input(), "id": 7}, "$.id"),
        ({**_input(), "parameters": {"timeout": -1}}, "$.parameters.timeout"),
        ({**_input(), "parameters": {"timeout": "1"}}, "$.parameters.timeout"),
        ({**_input(), "parameters": {"a": []}}, "$.parameters[...]"),
        ({**_input(), "parameters": {"sequence_id": 4}}, "$.parameters.sequence_id: sequences"),
        ({**_input(), "parameters": {"binary_data_output": 1}}, "$.parameters.binary_data_output"),
        ({**_input(), "outputs": [{"name": "1"}]}, "$.outputs[0].name: the model has no output"),
        ({**_input(), "outputs": [{"name": "0"}, {"name": "0"}]}, "$.outputs[1].name"),
        (_input(parameters={"shared_memory_region": "a"}), "shared memory is not supported"),
        (_input(parameters={"binary_data_size": 8}), "has `data` as well"),
        (_input(data=None, parameters={"binary_data_size": 8}), "only 0 bytes follow"),
        (_input(data=None, parameters={"binary_data_size": 7}), "the shape needs 8 bytes"),
        (_input(data=None, parameters={"binary_data_size": True}), "the shape needs 8 bytes"),
    ],
)
def test_wrong_requests_are_named(document: Any, message: str | None) -> None:
    if message is None:
        assert _decode(document).inputs[0].tolist()[0][1] == pytest.approx(1e30)
        return
    with pytest.raises(Refusal) as caught:
        _decode(document)
    assert message in str(caught.value)
    assert caught.value.status == 400


@pytest.mark.parametrize("values", [[1.5, 1], [1, 300], [1, -1], [1, 1 << 70], [1, True]])
def test_integers_must_be_whole_and_fit(values: list[Any]) -> None:
    with pytest.raises(Refusal, match=r"data: .*UINT8"):
        _decode(_input(datatype="UINT8", data=values), contract=_contract("uint8"))


def test_bytes_that_are_no_truth_value() -> None:
    document = _input(datatype="BOOL", data=None, parameters={"binary_data_size": 2})
    with pytest.raises(Refusal, match="neither 0 nor 1"):
        _decode(document, b"\x01\x02", _contract("bool"))


def test_bytes_that_nobody_declared() -> None:
    with pytest.raises(Refusal, match="3 bytes follow the JSON, but the inputs account for 0"):
        _decode(_input(), b"abc")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_policy(value: float) -> None:
    raw = np.array([1.0, value], np.float32).tobytes()
    document = _input(data=None, parameters={"binary_data_size": 8})
    with pytest.raises(Refusal, match=r"\$.inputs\[0\]: has NaN or infinity"):
        _decode(document, raw)
    allowing = _contract(nan_policy="allow")
    request = _decode(document, raw, allowing)
    assert request.inputs[0].tobytes() == raw
    with pytest.raises(Refusal, match="output '0' has NaN or infinity in it, which JSON cannot"):
        encode_answer(allowing, request, request.inputs)


def test_inputs_must_agree_on_their_rows() -> None:
    contract = Contract(
        model_name="m",
        inputs=(
            TensorSpec(name="x", shape=("batch", 1), dtype="float32"),
            TensorSpec(name="z", shape=("batch*3",), dtype="float32"),
        ),
        outputs=(),
        output_names=(),
    )
    x = {"name": "x", "shape": [2, 1], "datatype": "FP32", "data": [1, 2]}
    z = {"name": "z", "shape": [6], "datatype": "FP32", "data": [0] * 6}
    assert _decode({"inputs": [z, x]}, contract=contract).num_rows == 2
    short = {**z, "shape": [3], "data": [0] * 3}
    with pytest.raises(Refusal, match=r"\$.inputs\[1\].shape: is \[3\], expected \[-1\] with 2"):
        _decode({"inputs": [x, short]}, contract=contract)
    with pytest.raises(Refusal, match=r"\$.inputs\[1\].name: 'x': is given twice"):
        _decode({"inputs": [x, x]}, contract=contract)


def test_timeout_is_in_microseconds() -> None:
    assert _decode({**_input(), "parameters": {"timeout": 1500}}).timeout_s == 0.0015
    assert _decode(_input()).timeout_s is None


@pytest.mark.parametrize("text", ["-1", "1.0", "", "abc", "\u0661", "9" * 19, "12"])
def test_header_lengths(text: str) -> None:
    with pytest.raises(Refusal, match="Inference-Header-Content-Length"):
        parse_header_length(text, 11)
    assert parse_header_length("11", 11) == 11
    assert parse_header_length(None, 11) is None
    assert parse_header_length("12", None) == 12


@pytest.mark.parametrize(
    "text",
    [None, "application/json", "Application/JSON; charset=utf-8", "application/octet-stream"],
)
def test_content_types(text: str | None) -> None:
    check_content_type(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "text/plain", "text/plain;application/json", "application/jsonp", "image/png"),
        *("application/x-www-form-urlencoded", "multipart/form-data; boundary=a"),
    ],
)
def test_other_content_types(text: str) -> None:
    with pytest.raises(Refusal, match=r"^Content-Type: .*, expected application/json") as caught:
        check_content_type(text)
    assert caught.value.status == 415


def test_metadata_says_minus_one_for_rows() -> None:
    assert model_metadata(_contract(shape=("batch*3", 2)))["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
    ]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=12,
)
_TENSOR = st.fixed_dictionaries(
    {"name": st.just("x") | _JSON, "shape": st.just([1, 2]) | _JSON},
    optional={
        "datatype": st.just("FP32") | _JSON,
        "data": st.just([1, 2]) | _JSON,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "binary_data", "shared_memory_region"]),
            st.integers(-1, 20) | _JSON,
        ),
    },
)
_DOCUMENT = st.fixed_dictionaries(
    {"inputs": st.lists(_TENSOR, max_size=3) | _JSON},
    optional={
        "id": st.text() | _JSON,
        "outputs": st.lists(st.fixed_dictionaries({"name": st.just("0") | _JSON})) | _JSON,
        "parameters": st.dictionaries(
            st.sampled_from(["timeout", "binary_data_output", "sequence_id"]), _JSON
        ),
    },
)


@settings(max_examples=400, deadline=None)
@given(
    text=st.binary(max_size=60) | _DOCUMENT.map(lambda each: json.dumps(each).encode()),
    rest=st.binary(max_size=24),
    cut=st.integers(-3, 3),
)
@example(
    text=json.dumps(_input(data=None, parameters={"binary_data_size": 8})).encode(),
    rest=b"\x00" * 8,
    cut=0,
)
def test_whatever_comes_is_understood_or_refused(text: bytes, rest: bytes, cut: int) -> None:
    body = bytearray(text + rest)
    for length in (None, min(len(body), max(0, len(text) + cut))):
        try:
            request = decode_request(body, length, _contract())
        except Refusal as refusal:
            assert refusal.status == 400  # noqa: PT017  # it need not be raised
            continue
        assert tuple(request.inputs[0].shape) == (request.num_rows, 2)
        assert bool(np.isfinite(request.inputs[0]).all())
