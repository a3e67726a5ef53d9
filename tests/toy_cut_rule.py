"""A cut rule in one file: what crosses a cut fits into one frame of a radio, and packs well."""

from __future__ import annotations

from cutset import CutPoint, Graph

FRAME_BYTES = 8192
NEVER_NEGATIVE = {"relu", "relu6", "sigmoid", "softmax"}


def for_the_radio(graph: Graph, point: CutPoint) -> str:
    """Why a cut may not be at a point, or ``""`` where it may."""
    if point.bytes_per_sample > FRAME_BYTES:
        return f"{point.bytes_per_sample} bytes a row do not fit into a frame of {FRAME_BYTES}"
    last = graph.operations[point.position - 1]
    if last.base_name not in NEVER_NEGATIVE:
        return f"{last.base_name} gives numbers below 0, which pack badly"
    return ""
