"""Which codec a cut may have: each boundary once for each of them, with nothing between.

So a cut is still one place, and everything that solves, bounds or checks finds the best codec of
every cut as it finds the best cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cutset.cluster.devices import Device
from cutset.codecs.known_codecs import NONE, PIXELS
from cutset.costs.cost_model import CostModel
from cutset.planning.totals import Floats, Ints

KIND_PREFERENCE = ("block", "pool", "activation", "", "head")
"""Kinds of cuts, the preferred first; "" is an operation inside a unit."""


class CodecChoice(NamedTuple):
    """A boundary with one of the codecs that a cut there may have.

    Attributes:
        boundary: index in the cost model.
        codec: its name.
        num_bytes: that cross a cut, of one micro-batch.
        rank: place of the codec among those that are allowed; 0 for none.
    """

    boundary: int
    codec: str
    num_bytes: int
    rank: int


def choices_of(costs: CostModel, boundaries: Sequence[int]) -> list[CodecChoice]:
    """Each boundary, once as tensors are and once for each codec; the inputs as pixels, if any."""
    found = []
    for k in boundaries:
        found.append(CodecChoice(k, NONE, costs.cut_bytes_per_row[k] * costs.micro_batch, 0))
        for rank, codec in enumerate(costs.codecs, start=1):
            num_bytes = codec.cut_bytes[k]
            if num_bytes is not None:
                found.append(CodecChoice(k, codec.name, num_bytes, rank))
    if costs.pixels is not None:
        found[0] = CodecChoice(0, PIXELS, costs.pixels.num_bytes, 0)
    return found


def codec_seconds_of(
    costs: CostModel, devices: Sequence[Device], choices: Sequence[CodecChoice]
) -> dict[str, Floats]:
    """What codecs take from computing, by class and boundary, as `ByteCosts` wants it."""
    is_used = bool(costs.codecs or costs.pixels)
    slowness = np.asarray([costs.codec_slowness(d) if is_used else 1.0 for d in devices])
    encode_s, decode_s = (
        np.asarray(
            [
                getattr(costs.codecs[c.rank - 1], field)[c.boundary] if c.rank else 0.0
                for c in choices
            ]
        )
        for field in ("encode_s", "decode_s")
    )
    if costs.pixels is not None:
        decode_s[0] = costs.pixels.read_s
    return {
        "encode_s": slowness[:, None] * encode_s,
        "decode_s": slowness[:, None] * decode_s,
    }


def without_empty(edges: Ints, room: Ints | None, most: int) -> Ints | None:
    """`Variant.room` without the stages between two codecs of one boundary, which hold nothing."""
    if (np.diff(edges) > 0).all():
        return room
    num = len(edges) - 1
    full = room if room is not None else np.full((num, num + 1), most, dtype=np.int64)
    return np.where(edges[:-1, None] < edges[None, :], full, 0)


def tie_costs(costs: CostModel, choices: Sequence[CodecChoice]) -> Floats:
    """Fewer bytes, then milder codecs, then kinds, then fewer stages, in one number a cut.

    Bytes count before any codec: one that does not pay is not chosen. Exact while all bytes of a
    plan are below 2^29, and up to 30 stages with codecs, 1,000 without.
    """
    ranks = {kind: rank for rank, kind in enumerate(KIND_PREFERENCE)}
    return np.asarray(
        [
            costs.cut_bytes_per_row[k] * costs.micro_batch * 2.0**24
            + rank * 2.0**18
            + ranks.get(costs.kinds[k], len(ranks)) * 2.0**10
            + 1.0
            for k, _, _, rank in choices
        ]
    )
