"""Every codec: how near what arrives is, what is refused, and that no payload does harm."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cutset.codecs.coding import CodecError, decode, encode, payload_bytes, round_trip
from cutset.codecs.known_codecs import CODECS, codec_names
from cutset.dtypes import NUMPY_DTYPES, dtype_name
from cutset.tensors import DTYPE_BYTES, TensorSpec

quick = settings(max_examples=60, deadline=None)
FP16, INT8 = CODECS["fp16"], CODECS["int8"]
PLAIN = {name: codec for name, codec in CODECS.items() if not codec.packs}
PAIRS = [(codec, dtype) for codec in PLAIN.values() for dtype in sorted(codec.dtypes)]


def spec_of(array: np.ndarray) -> TensorSpec:
    name = dtype_name(array.dtype)
    assert name is not None
    return TensorSpec(name="x", shape=("batch", *array.shape[1:]), dtype=name)


def arrived(codec, array):
    return round_trip(codec, array, spec_of(array), len(array))


@st.composite
def arrays(draw, dtype):
    """Any finite numbers that the dtype and float16 have, in any order of dimensions."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
    numbers = st.floats(-60000, 60000, width=32)
    flat = draw(hnp.arrays(np.float32, shape, elements=numbers))
    order = draw(st.permutations(range(len(shape))))
    inverse = np.argsort(order)
    return flat.transpose(order).copy().transpose(inverse).astype(NUMPY_DTYPES[dtype], order="K")


@pytest.mark.parametrize(("codec", "dtype"), PAIRS, ids=lambda value: getattr(value, "name", value))
@quick
@given(st.data())
def test_what_arrives_is_near_and_lies_as_it_was_sent(codec, dtype, data) -> None:
    array = data.draw(arrays(dtype))
    payload = encode(codec, array, spec_of(array), len(array))
    got = decode(codec, payload, spec_of(array), len(array))
    assert payload.shape == (payload_bytes(codec, spec_of(array), len(array)),)
    assert (got.dtype, got.shape) == (array.dtype, array.shape)
    lengths = zip(array.shape, array.strides, got.strides, strict=True)
    assert not array.size or all(a == b for length, a, b in lengths if length > 1)
    wide, near = array.astype(np.float64), got.astype(np.float64)
    if codec is FP16:
        assert np.array_equal(near, array.astype(np.float16).astype(np.float64))
    elif array.size:
        low, high = min(wide.min(), 0.0), max(wide.max(), 0.0)
        step = (high - low) / 255
        rounding = {"bfloat16": 2**-8, "float16": 2**-11}.get(dtype, 1e-6)
        assert np.abs(wide - near).max() <= 0.501 * step + rounding * max(-low, high) + 1e-37
        assert (near[wide == 0] == 0).all()


@quick
@given(arrays("float32"), arrays("float32"))
def test_a_row_does_not_hang_on_the_rows_beside_it(array, other) -> None:
    for codec in PLAIN.values():
        together = arrived(codec, array)
        for row in range(len(array)):
            assert np.array_equal(
                arrived(codec, array[row : row + 1].copy("K")), together[row:][:1]
            )


def test_a_payload_is_order_scales_zero_points_zeros_and_numbers() -> None:
    array = np.arange(48, dtype=np.float32).reshape(1, 3, 4, 4) - 7
    payload = encode(INT8, array, spec_of(array), 1)
    assert payload[:4].tolist() == [0, 1, 2, 3]
    scales = np.array([0.058823533, 0.09411765, 0.15686275], "<f4")  # 15, 24, 40 / 255
    assert payload[4:16].tobytes() == scales.tobytes()
    assert payload[16:19].tolist() == [119, 0, 0]
    assert payload[19:64].tolist() == [0] * 45
    assert payload[64:80].tolist() == [*range(0, 256, 17)]
    assert payload[80:83].tolist() == [96, 106, 117]  # 9, 10, 11 of 24


def test_groups_are_rows_and_channels_unless_those_are_tiny() -> None:
    assert INT8.num_parameter_bytes((2, 3, 4, 4)) == 5 * 6
    assert INT8.num_parameter_bytes((2, 3, 3, 3)) == 5 * 2
    assert INT8.num_parameter_bytes((2, 197, 192)) == 5 * 2 * 197
    assert INT8.num_parameter_bytes((2, 1000)) == 5 * 2
    assert INT8.num_parameter_bytes(()) == 5


@pytest.mark.parametrize("value", [65520.0, -1e30, 3.4e38])
def test_half_precision_refuses_what_would_become_infinite(value: float) -> None:
    array = np.array([[1.0, value]], np.float32)
    with pytest.raises(CodecError, match=r"codec fp16: it writes numbers up to 65504; 1 of 2") as e:
        arrived(FP16, array)
    assert e.value.codec == "fp16"


def test_half_precision_keeps_what_is_no_number() -> None:
    array = np.array([[np.nan, np.inf, -np.inf, 65504.0, 65519.0, 1e-9]], np.float32)
    got = arrived(FP16, array)[0]
    assert np.isnan(got[0])
    assert got[1:].tolist() == [np.inf, -np.inf, 65504.0, 65504.0, 0.0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_bytes_refuse_what_is_no_number(value: float, dtype: str) -> None:
    array = np.array([[1.0, value]], NUMPY_DTYPES[dtype])
    with pytest.raises(CodecError, match="codec int8: it writes finite numbers of float32; 1 of 2"):
        arrived(INT8, array)
    with pytest.raises(CodecError, match="2 of 2"):
        arrived(INT8, np.array([[1e39, 1e300]]))


def test_bytes_of_the_largest_and_the_smallest_numbers_stay_finite() -> None:
    for dtype in sorted(INT8.dtypes):
        info = ml_dtypes.finfo(NUMPY_DTYPES["float32" if dtype == "float64" else dtype])
        for ends in ([info.max, -info.max], [info.max, 0], [0, -info.max], [info.tiny, 0], [0, 0]):
            array = np.array([ends], NUMPY_DTYPES[dtype])
            got = arrived(INT8, array)
            assert np.isfinite(got.astype(np.float64)).all(), (dtype, ends)
    tiny = np.array([[1e-42, -1e-42]], np.float32)
    assert np.abs(arrived(INT8, tiny)).max() < 1e-37


def test_what_a_codec_does_not_take_travels_as_it_is() -> None:
    specs = tuple(TensorSpec(name=d, shape=("batch", 4), dtype=d) for d in DTYPE_BYTES)
    taken = dict(zip(DTYPE_BYTES, codec_names("fp16", specs), strict=True))
    assert {d for d, name in taken.items() if name == "fp16"} == {"float32", "float64"}
    taken = dict(zip(DTYPE_BYTES, codec_names("int8", specs), strict=True))
    assert {d for d, n in taken.items() if n != "none"} == {
        *("float16", "bfloat16", "float32", "float64")
    }
    assert set(codec_names("none", specs)) == {"none"}
    with pytest.raises(ValueError, match="codec 'zip' is unknown; there are none, fp16, int8"):
        codec_names("zip", specs)


@pytest.mark.parametrize("codec", PLAIN.values(), ids=list(PLAIN))
@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 3), np.float64), np.zeros((2, 4), np.float32), np.zeros((2, 3), ">f4")],
)
def test_another_tensor_than_promised_is_refused(codec, array: np.ndarray) -> None:
    spec = TensorSpec(name="x", shape=("batch", 3), dtype="float32")
    with pytest.raises(CodecError, match=r"expected float32\[batch, 3\] with 2 rows"):
        encode(codec, array, spec, 2)


@pytest.mark.parametrize("codec", PLAIN.values(), ids=list(PLAIN))
@quick
@given(st.data())
def test_any_bytes_are_a_tensor_or_refused(codec, data) -> None:
    """Nothing but the codec's own error, and never more memory than the contract says."""
    spec = TensorSpec(name="x", shape=("batch", 2, 16), dtype="float32")
    size = payload_bytes(codec, spec, 2)
    drawn = bytearray(data.draw(st.binary(min_size=size - 1, max_size=size + 1)))
    if data.draw(st.booleans()):
        drawn[:3] = bytes(data.draw(st.permutations(range(3))))
    payload = np.frombuffer(bytes(drawn), np.uint8)
    try:
        array = decode(codec, payload, spec, 2)
    except CodecError:
        return
    assert len(drawn) == size
    assert (array.shape, array.dtype) == ((2, 2, 16), np.float32)


@pytest.mark.parametrize("scale", [np.nan, np.inf, 0.0, -1.0, 1e-40])
def test_scales_that_no_writer_gives_are_refused(scale: float) -> None:
    array = np.ones((1, 2, 16), np.float32)
    payload = encode(INT8, array, spec_of(array), 1)
    payload[7:11] = np.array([scale], "<f4").view(np.uint8)
    with pytest.raises(CodecError, match="codec int8: a scale of"):
        decode(INT8, payload, spec_of(array), 1)


@pytest.mark.parametrize("order", [[0, 0, 1], [0, 1, 3], [255, 255, 255]])
def test_orders_that_are_none_are_refused(order: list[int]) -> None:
    array = np.ones((1, 2, 16), np.float32)
    payload = encode(FP16, array, spec_of(array), 1)
    payload[:3] = order
    with pytest.raises(CodecError, match="come in the order"):
        decode(FP16, payload, spec_of(array), 1)
