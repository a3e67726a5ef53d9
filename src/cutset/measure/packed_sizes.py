"""What packing makes of a model's own activations: bytes and seconds, on rows of its example.

How far numbers pack hangs on the numbers: those behind a ReLU are zeros for a good part.
"""

from __future__ import annotations

import functools
import math
import weakref
from typing import NamedTuple

import numpy as np

from cutset.capture.captured import Captured
from cutset.codecs.coding import decode, encode
from cutset.codecs.known_codecs import CODECS
from cutset.graph.ir import boundary_specs
from cutset.measure.stream_seconds import Spent, median_in_stream, timed
from cutset.tensors import TensorSpec

_NUM_ROWS = 2
_NUM_RUNS = 3


class PackedSize(NamedTuple):
    """What a codec makes of a tensor: bytes that travel, seconds to write and to read."""

    num_bytes: int
    write_s: float
    read_s: float


class _Measured:
    """Of one model: what was packed already, by codec, tensor and boundary."""

    def __init__(self) -> None:
        self.sizes: dict[tuple[str, str], PackedSize] = {}
        self.activations: dict[str, np.ndarray] = {}


_of_models: weakref.WeakKeyDictionary[Captured, _Measured] = weakref.WeakKeyDictionary()


def packed_size(
    captured: Captured, positions: tuple[int, ...], name: str, spec: TensorSpec, num_rows: int
) -> PackedSize:
    """What a codec makes of a tensor of a model, worked out from a few rows of it.

    Args:
        captured: the model.
        positions: of all boundaries; their tensors are computed together, once.
        name: of a codec that packs.
        spec: the tensor, which crosses one of the boundaries.
        num_rows: rows of a micro-batch.

    Raises:
        CodecError: the codec refuses a number.
        MissingExtra: the package that packs is not installed.
    """
    known = _of_models.setdefault(captured, _Measured())
    rows = captured.micro_batch_only or _NUM_ROWS
    if (name, spec.name) not in known.sizes:
        if spec.name not in known.activations:
            known.activations |= _activations(captured, positions, rows)
        array = known.activations[spec.name]
        known.sizes[name, spec.name] = _measure(name, array, spec, rows)
    found, factor = known.sizes[name, spec.name], num_rows / rows
    return PackedSize(
        math.ceil(found.num_bytes * factor), found.write_s * factor, found.read_s * factor
    )


def _activations(
    captured: Captured, positions: tuple[int, ...], num_rows: int
) -> dict[str, np.ndarray]:
    """Every tensor at a boundary within the model, by name."""
    stop = len(captured.graph.operations)
    inner = [position for position in positions if 0 < position < stop]
    inputs = captured.rows(num_rows)
    given = {spec.name: a for spec, a in zip(captured.graph.inputs, inputs, strict=True)}
    specs = {s.name: s for p in inner for s in boundary_specs(captured.graph, p)}
    watched = [spec for name, spec in specs.items() if name not in given]
    with captured.computing(1):
        made = captured.piece_run(0, stop, watched)(inputs)
    return {name: np.array(given[name] if name in given else made[name]) for name in specs}


def _measure(name: str, array: np.ndarray, spec: TensorSpec, num_rows: int) -> PackedSize:
    codec, written, read = CODECS[name], list[Spent](), list[Spent]()
    for _ in range(_NUM_RUNS):
        payload, spent = timed(lambda: encode(codec, array, spec, num_rows))
        written.append(spent)
        _, spent = timed(functools.partial(decode, codec, payload, spec, num_rows))
        read.append(spent)
    return PackedSize(payload.size, median_in_stream(written), median_in_stream(read))
