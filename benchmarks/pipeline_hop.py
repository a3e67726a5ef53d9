"""What a hop costs: from the end of one stage's computation to the beginning of the next one's."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

import torch
from torch import nn

from cutset.bundles.open import Bundle, open_bundle
from cutset.engines.local import LocalEngine
from cutset.models import FoundModel
from cutset.runtime.session import open_session
from cutset.workflow import plan_stages, prepare_found, split_model

_ROW = (1, 400, 1000)  # of float32: 1.6 MB
_NUM_HOPS = 200


def measure_hops() -> dict[str, float]:
    """Median seconds of a hop of 1.6 MB, one at a time, through shared memory and through TCP."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = _two_small_stages(Path(folder))
        return {
            "shared_s": _hop(bundle, LocalEngine(("a", "b"), num_threads=1)),
            "tcp_s": _hop(bundle, LocalEngine(("a", "b"), num_threads=1, shares_memory=False)),
        }


def _two_small_stages(folder: Path) -> Bundle:
    layers = (nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1), nn.ReLU())
    found = FoundModel(
        model=nn.Sequential(*layers).eval(),
        name="two small layers",
        weights="random",
        example_inputs=(torch.randn(2, *_ROW),),
    )
    prepared = prepare_found(found)
    split_model(prepared, plan_stages(prepared, num_stages=2), folder / "hop.cutset")
    return open_bundle(folder / "hop.cutset")


def _hop(bundle: Bundle, engine: LocalEngine) -> float:
    rows = torch.randn(1, *_ROW)
    with open_session(bundle, engine=engine, backend="torch", num_spans=_NUM_HOPS) as session:
        for _ in range(_NUM_HOPS):
            session.run(rows)
        _, first, second = session.timeline()
    ends = {s.sequence: s.stop_s for s in first.spans if s.activity == "compute"}
    starts = {s.sequence: s.start_s for s in second.spans if s.activity == "compute"}
    return median(starts[sequence] - end for sequence, end in ends.items() if sequence in starts)
