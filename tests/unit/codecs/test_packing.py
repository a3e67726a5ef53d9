"""Packed payloads: nothing is lost, their length is bounded, and no frame takes memory unasked."""

from __future__ import annotations

import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutset.codecs.coding import (
    CodecError,
    decode,
    encode,
    is_payload_length,
    payload_bytes,
    round_trip,
)
from cutset.codecs.known_codecs import CODECS, allowed_codecs, codec_names, lossy_part
from cutset.codecs.packing import pack, require_packer, unpack
from cutset.dtypes import NUMPY_DTYPES
from cutset.errors import MissingExtra
from cutset.tensors import DTYPE_BYTES, TensorSpec

zstandard = pytest.importorskip("zstandard", reason="needs zstandard: pip install 'cutset[zstd]'")

quick = settings(max_examples=60, deadline=None)
PACKED = {name: codec for name, codec in CODECS.items() if codec.packs}
SPEC = TensorSpec(name="x", shape=("batch", 2, 16), dtype="float32")


def test_each_codec_has_a_packed_form_and_packing_alone_is_one() -> None:
    assert list(PACKED) == ["zstd", "fp16+zstd", "int8+zstd"]
    assert [lossy_part(name) for name in (*PACKED, "fp16", "none", "uint8-image")] == [
        *("none", "fp16", "int8", "fp16", "none", "none")
    ]
    assert allowed_codecs(("int8",)) == ("int8",)
    assert allowed_codecs(("zstd",)) == ("zstd",)
    assert allowed_codecs(("zstd", "int8")) == ("int8", "zstd", "int8+zstd")


def test_what_a_codec_does_not_take_is_packed_where_others_are() -> None:
    specs = tuple(TensorSpec(name=d, shape=("batch", 4), dtype=d) for d in DTYPE_BYTES)
    taken = dict(zip(DTYPE_BYTES, codec_names("fp16+zstd", specs), strict=True))
    assert {taken[d] for d in ("float32", "float64")} == {"fp16+zstd"}
    assert taken.pop("bool") == "none"
    assert {name for d, name in taken.items() if d not in ("float32", "float64")} == {"zstd"}


@pytest.mark.parametrize("dtype", sorted(set(DTYPE_BYTES) - {"bool"}))
@quick
@given(st.data())
def test_every_bit_of_every_dtype_arrives_as_it_was_laid(dtype: str, data) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4)))
    size = int(np.prod(shape)) * DTYPE_BYTES[dtype]
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    flat = rng.integers(0, data.draw(st.sampled_from([1, 3, 256])), size, np.uint8)
    order = data.draw(st.permutations(range(len(shape))))
    laid = flat.view(NUMPY_DTYPES[dtype]).reshape([shape[k] for k in order])
    array = laid.transpose(np.argsort(order))
    spec = TensorSpec(name="x", shape=("batch", *shape[1:]), dtype=dtype)
    payload = encode(CODECS["zstd"], array, spec, shape[0])
    assert is_payload_length(CODECS["zstd"], payload.size, spec, shape[0])
    got = decode(CODECS["zstd"], payload, spec, shape[0])
    assert (got.dtype, got.shape) == (array.dtype, array.shape)
    assert got.tobytes() == array.tobytes()
    lengths = zip(array.shape, array.strides, got.strides, strict=True)
    assert not array.size or all(a == b for length, a, b in lengths if length > 1)


@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_packing_changes_nothing_of_what_a_codec_makes(name: str) -> None:
    array = np.random.default_rng(0).normal(size=(3, 2, 16)).astype(np.float32)
    array[array < 0] = 0
    plain, packed = CODECS[name], CODECS[f"{name}+zstd"]
    assert np.array_equal(round_trip(packed, array, SPEC, 3), round_trip(plain, array, SPEC, 3))
    assert payload_bytes(packed, SPEC, 3) == payload_bytes(plain, SPEC, 3) + 1


def test_zeros_travel_in_few_bytes_and_noise_in_one_more_than_it_has() -> None:
    spec = TensorSpec(name="x", shape=("batch", 4096), dtype="float32")
    zeros = encode(CODECS["zstd"], np.zeros((1, 4096), np.float32), spec, 1)
    assert zeros.size < 100
    noise = np.random.default_rng(0).integers(0, 256, 4 * 4096, np.uint8).view(np.float32)
    payload = encode(CODECS["zstd"], noise.reshape(1, -1), spec, 1)
    assert payload.size <= 64 + 4 * 4096 + 1 == payload_bytes(CODECS["zstd"], spec, 1)
    random = np.random.default_rng(0).integers(0, 256, 640, np.uint8)
    packed = pack(random, 4)
    assert (packed.size, packed[-1]) == (641, 0)
    assert np.array_equal(unpack(packed, 640, 4), random)


@pytest.mark.parametrize("codec", PACKED.values(), ids=list(PACKED))
@quick
@given(st.data())
def test_any_bytes_are_a_tensor_or_refused(codec, data) -> None:
    array = np.zeros((2, 2, 16), np.float32)
    whole = bytearray(encode(codec, array, SPEC, 2).tobytes())
    if data.draw(st.booleans()):
        whole = bytearray(data.draw(st.binary(max_size=payload_bytes(codec, SPEC, 2) + 2)))
    for _ in range(data.draw(st.integers(0, 4))):
        if whole:
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        got = decode(codec, np.frombuffer(bytes(whole), np.uint8), SPEC, 2)
    except CodecError:
        return
    assert (got.shape, got.dtype) == ((2, 2, 16), np.float32)


def bomb(num_bytes: int, *, says_size: bool) -> np.ndarray:
    """A few hundred bytes that unpack to many zeros."""
    if says_size:
        frame = zstandard.ZstdCompressor(level=19).compress(bytes(num_bytes))
    else:
        stream = zstandard.ZstdCompressor(level=19, write_content_size=False).compressobj()
        frame = stream.compress(bytes(num_bytes)) + stream.flush()
    return np.frombuffer(frame + b"\x01", np.uint8)


@pytest.mark.parametrize("says_size", [True, False], ids=["says so", "does not say"])
def test_a_bomb_is_refused_before_it_takes_memory(says_size: bool) -> None:
    spec = TensorSpec(name="x", shape=("batch", 4096), dtype="float32")
    payload = bomb(1 << 26, says_size=says_size)
    assert is_payload_length(CODECS["zstd"], payload.size, spec, 1)
    tracemalloc.start()
    with pytest.raises(CodecError, match=r"its frame claims to hold .* bytes, expected 16448"):
        decode(CODECS["zstd"], payload, spec, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: [*p[:-1], 2], "it is of kind 2, expected 0 or 1"),
        (lambda p: [*p[:-1], 0], "bytes, not packed, in the place of 16448"),
        (lambda p: [*p[:9], 1], "its frame is none"),
        (lambda p: [1], "its frame is none"),
        (lambda p: [*p[:-1], 0, 1], "its frame is none"),
        (lambda p: [*p[:-1], *p[:-1], 1], "its frame is none"),
    ],
    ids=["kind", "content", "cut short", "empty", "more behind it", "two frames"],
)
def test_what_is_no_packed_payload_is_refused(change, words: str) -> None:
    spec = TensorSpec(name="x", shape=("batch", 4096), dtype="float32")
    payload = encode(CODECS["zstd"], np.zeros((1, 4096), np.float32), spec, 1)
    forged = np.array(change(payload.tolist()), np.uint8)
    with pytest.raises(CodecError, match=words):
        decode(CODECS["zstd"], forged, spec, 1)


@pytest.mark.parametrize("num_bytes", [0, 16450])
def test_a_length_that_none_has_is_refused(num_bytes: int) -> None:
    spec = TensorSpec(name="x", shape=("batch", 4096), dtype="float32")
    with pytest.raises(CodecError, match=f"{num_bytes} bytes of 'x', expected at most 16449"):
        decode(CODECS["zstd"], np.zeros(num_bytes, np.uint8), spec, 1)


def test_without_the_package_a_line_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    require_packer()
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtra) as caught:
        require_packer()
    assert str(caught.value) == (
        "codec zstd needs the package 'zstandard', which is not installed: pip install"
        " 'cutset[zstd]'"
    )
