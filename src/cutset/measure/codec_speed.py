"""What writing and reading a tensor takes on this machine, with each codec."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import msgspec
import numpy as np

from cutset.capture.captured import Captured
from cutset.codecs.coding import decode, encode, payload_bytes
from cutset.codecs.known_codecs import CODECS, NONE, allowed_codecs, codec_names
from cutset.costs.cost_model import CodecCosts, CostModel, PixelCosts
from cutset.data.images import Preprocessing
from cutset.data.pixels import normalised
from cutset.dtypes import NUMPY_DTYPES
from cutset.graph.ir import boundary_specs
from cutset.measure.packed_sizes import PackedSize, packed_size
from cutset.measure.stream_seconds import median_in_stream, timed
from cutset.tensors import TensorSpec

_NUM_RUNS = 7
_SEED = 0


@functools.lru_cache(maxsize=4096)  # planned again and again, with the same tensors
def codec_seconds(name: str, spec: TensorSpec, num_rows: int) -> tuple[float, float]:
    """Seconds to write a tensor, and to read it: medians of a few runs.

    The work of those that do not pack does not hang on the numbers, so they are drawn at random.

    Args:
        name: of a codec that takes the tensor's dtype and does not pack.
        spec: the tensor.
        num_rows: rows of it.
    """
    shape = spec.concrete_shape(num_rows)
    drawn = np.random.default_rng(_SEED).standard_normal(shape, np.float32)
    array, codec = drawn.astype(NUMPY_DTYPES[spec.dtype]), CODECS[name]
    written, read = [], []
    for _ in range(_NUM_RUNS):
        payload, spent = timed(lambda: encode(codec, array, spec, num_rows))
        written.append(spent)
        _, spent = timed(functools.partial(decode, codec, payload, spec, num_rows))
        read.append(spent)
    return median_in_stream(written), median_in_stream(read)


@functools.lru_cache(maxsize=64)
def _pixel_seconds(preprocessing: Preprocessing, num_rows: int) -> float:
    """Seconds to make rows of the pixels of images: the median of a few runs."""
    shape = (num_rows, *preprocessing.crop, 3)
    pixels = np.random.default_rng(_SEED).integers(0, 256, shape, np.uint8)
    made = functools.partial(normalised, pixels, preprocessing)
    return median_in_stream([timed(made)[1] for _ in range(_NUM_RUNS)])


def with_pixels(costs: CostModel, preprocessing: Preprocessing, *, measured: bool) -> CostModel:
    """The costs where the model's inputs travel as the pixels of images.

    Args:
        costs: of a model that takes images.
        preprocessing: how they become rows.
        measured: as for `with_codecs`.
    """
    rows = costs.micro_batch
    return msgspec.structs.replace(
        costs,
        pixels=PixelCosts(
            num_bytes=rows * math.prod(preprocessing.crop) * 3,
            read_s=_pixel_seconds(preprocessing, rows) if measured else 0.0,
        ),
    )


def with_codecs(
    costs: CostModel, captured: Captured, allowed: Sequence[str], *, measured: bool
) -> CostModel:
    """The costs with what some codecs make of each boundary.

    Args:
        costs: of a model.
        captured: the model.
        allowed: what a user allowed (`cutset.codecs.known_codecs.ALLOWABLE`).
        measured: whether to measure what they take here; else it is nothing, as where pieces cost
            multiply-adds.

    Raises:
        MissingExtra: a package is not installed that a codec needs.
    """
    rows, last = costs.micro_batch, costs.num_pieces
    found = []
    for name in allowed_codecs(allowed):
        made = functools.partial(_made, costs, captured, measured=measured)
        sizes: list[int | None] = []
        seconds = []
        for boundary, position in enumerate(costs.positions):
            specs = boundary_specs(captured.graph, position)
            pairs = list(zip(specs, codec_names(name, specs), strict=True))
            if not 0 < boundary < last or all(codec == NONE for _, codec in pairs):
                sizes.append(None)
                seconds.append((0.0, 0.0))
                continue
            each = [
                PackedSize(spec.num_bytes(rows), 0.0, 0.0) if c == NONE else made(c, spec)
                for spec, c in pairs
            ]
            sizes.append(sum(size.num_bytes for size in each))
            seconds.append((sum(s.write_s for s in each), sum(s.read_s for s in each)))
        encode_s, decode_s = zip(*seconds, strict=True)
        found.append(
            CodecCosts(name=name, cut_bytes=tuple(sizes), encode_s=encode_s, decode_s=decode_s)
        )
    return msgspec.structs.replace(costs, codecs=tuple(found))


def _made(
    costs: CostModel, captured: Captured, name: str, spec: TensorSpec, *, measured: bool
) -> PackedSize:
    """What a codec makes of a tensor that crosses a boundary."""
    codec, rows = CODECS[name], costs.micro_batch
    if codec.packs:
        found = packed_size(captured, costs.positions, name, spec, rows)
        return found if measured else PackedSize(found.num_bytes, 0.0, 0.0)
    times = codec_seconds(name, spec, rows) if measured else (0.0, 0.0)
    return PackedSize(payload_bytes(codec, spec, rows), *times)
