"""What the planner needs to know of a model and of the devices, as plain numbers."""

from __future__ import annotations

import msgspec

PROFILE_FORMAT = "cutset-profile/1"


class Timing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds that one piece took for one micro-batch, over repeated runs."""

    median_s: float
    p10_s: float
    p90_s: float
    num_runs: int


class PieceProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one piece (the operations between two neighbouring candidate cut points) cost.

    Attributes:
        last: name of the cut point that ends it (``CutPoint.after``); ``"output"`` for the last.
        flops: multiply-adds for one row.
        timings: measured seconds per micro-batch, by backend name (``"torch"``,
            ``"onnxruntime"``, ...).
    """

    last: str
    flops: int
    timings: dict[str, Timing]


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measured costs of one model on one device, as `cutset profile` writes them.

    Attributes:
        format: ``"cutset-profile/1"``.
        model: the model's name as it was given.
        device: name of the device it was measured on.
        micro_batch: rows in each run.
        num_threads: threads that computed.
        pieces: in execution order; one more than there are candidate cut points.
        software: versions of what computed, e.g. ``{"torch": "2.14.1"}``.
    """

    format: str
    model: str
    device: str
    micro_batch: int
    num_threads: int
    pieces: tuple[PieceProfile, ...]
    software: dict[str, str]
