"""What writing and reading a tensor takes on this machine, with each codec."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import msgspec
import numpy as np

from cutset.codecs.coding import decode, encode, payload_bytes
from cutset.codecs.known_codecs import CODECS, NONE, codec_names
from cutset.costs.cost_model import CodecCosts, CostModel, PixelCosts
from cutset.data.images import Preprocessing
from cutset.data.pixels import normalised
from cutset.dtypes import NUMPY_DTYPES
from cutset.graph.ir import Graph, boundary_specs
from cutset.measure.stream_seconds import median_in_stream, timed
from cutset.tensors import TensorSpec

_NUM_RUNS = 7
_SEED = 0


@functools.lru_cache(maxsize=4096)  # planned again and again, with the same tensors
def codec_seconds(name: str, spec: TensorSpec, num_rows: int) -> tuple[float, float]:
    """Seconds to write a tensor, and to read it: medians of a few runs.

    No codec's work hangs on the numbers, so they are drawn at random.

    Args:
        name: of a codec that takes the tensor's dtype.
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
    costs: CostModel, graph: Graph, allowed: Sequence[str], *, measured: bool
) -> CostModel:
    """The costs with what some codecs make of each boundary.

    Args:
        costs: of a model.
        graph: the model.
        allowed: names of codecs.
        measured: whether to measure what they take here; else it is nothing, as where pieces cost
            multiply-adds.

    Raises:
        ValueError: there is no such codec.
    """
    rows, last = costs.micro_batch, costs.num_pieces
    found = []
    for name in dict.fromkeys(allowed):
        sizes: list[int | None] = []
        seconds = []
        for boundary, position in enumerate(costs.positions):
            specs = boundary_specs(graph, position)
            pairs = list(zip(specs, codec_names(name, specs), strict=True))
            coded = [spec for spec, codec in pairs if codec != NONE]
            num_bytes = sum(
                spec.num_bytes(rows) if c == NONE else payload_bytes(CODECS[c], spec, rows)
                for spec, c in pairs
            )
            is_inner = 0 < boundary < last
            sizes.append(num_bytes if is_inner and coded else None)
            times = [codec_seconds(name, s, rows) for s in coded] if measured and is_inner else []
            seconds.append((sum(t[0] for t in times), sum(t[1] for t in times)))
        encode_s, decode_s = zip(*seconds, strict=True)
        found.append(
            CodecCosts(name=name, cut_bytes=tuple(sizes), encode_s=encode_s, decode_s=decode_s)
        )
    return msgspec.structs.replace(costs, codecs=tuple(found))
