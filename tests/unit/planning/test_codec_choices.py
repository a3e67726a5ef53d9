"""The codec of every cut is chosen with the cuts."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest

from cutset.cluster.devices import Cluster, Device, Link
from cutset.costs.cost_model import CodecCosts, CostModel, PieceSeconds, with_more_rows
from cutset.planning.formulate import build_problem
from cutset.planning.solvers.solve import solve_period
from cutset.planning.variant import Variant


def costs_of(codecs: tuple[CodecCosts, ...], num: int = 4) -> CostModel:
    """Equal pieces of a second, 100 bytes at each boundary, shared weights across the second."""
    return CostModel(
        micro_batch=1,
        positions=tuple(range(num + 1)),
        names=tuple(f"n{k}" for k in range(num + 1)),
        kinds=("", *("block",) * (num - 1), ""),
        cut_bytes_per_row=(100,) * (num + 1),
        flops_per_row=(1,) * num,
        own_weight_bytes=(10, 20, 30, 40)[:num],
        shared_weights=(),
        peak_bytes_per_row=(1, 2, 3, 4)[:num],
        seconds=(PieceSeconds(device="", backend="", seconds=(1.0,) * num),),
        codecs=codecs,
    )


def codec(name: str, sizes: tuple[int | None, ...], write_s: float, read_s: float) -> CodecCosts:
    return CodecCosts(
        name=name,
        cut_bytes=sizes,
        encode_s=(write_s,) * len(sizes),
        decode_s=(read_s,) * len(sizes),
    )


def cluster(bytes_per_s: float, *, speeds: tuple[float, ...] = (1.0, 1.0)) -> Cluster:
    return Cluster(
        devices=tuple(Device(name=n, speed=s) for n, s in zip("abcd", speeds, strict=False)),
        link=Link(latency_s=0.0, bandwidth_bytes_per_s=bytes_per_s),
    )


HALF = codec("fp16", (None, 50, 50, 50, None), 0.1, 0.2)
FOURTH = codec("int8", (None, None, 25, 25, None), 0.3, 0.4)


@pytest.mark.parametrize(
    ("bytes_per_s", "chosen", "period_s"),
    [
        (50.0, "none", 2.0),  # 2 s on the wire too
        (25.0, "fp16", 2.2),  # 2 s on the wire, and 0.2 to read
        (12.5, "int8", 2.4),
        (6.25, "int8", 4.0),  # as good as one device, with the first cut of the two
    ],
)
def test_a_slower_wire_takes_a_stronger_codec(
    bytes_per_s: float, chosen: str, period_s: float
) -> None:
    costs = costs_of((HALF, FOURTH))
    built = build_problem(costs, cluster(bytes_per_s), range(5), num_stages=2)
    solution = solve_period(built.problem)
    assert built.codecs[solution.stages[0].stop] == chosen
    assert built.problem.period_s(solution.stages) == pytest.approx(period_s)
    assert solution.bound_s == pytest.approx(period_s)


def test_a_slow_device_takes_longer_to_read_and_write() -> None:
    costs = costs_of((codec("fp16", (None, 50, 50, 50, None), 0.25, 0.25),))
    built = build_problem(costs, cluster(20.0, speeds=(1.0, 0.5)), range(5), num_stages=2)
    solution = solve_period(built.problem)
    assert built.codecs[solution.stages[0].stop] == "fp16"
    # Three pieces of 1 s and 0.25 for the codec, one of 2 s and 0.5; and 2.5 s on the wire.
    assert sorted(built.problem.loads_s(solution.stages)) == pytest.approx([2.5, 3.25])
    assert built.problem.latency_s(solution.stages) == pytest.approx(8.25)


def test_no_stage_holds_nothing_and_memory_counts_what_a_stage_holds() -> None:
    costs = costs_of((HALF, FOURTH))
    plain = build_problem(costs_of(()), cluster(1.0), range(5))
    built = build_problem(costs, cluster(1.0), range(5))
    assert built.boundaries == (0, 1, 1, 2, 2, 2, 3, 3, 3, 4)
    (variant,) = built.problem.variants
    assert isinstance(variant, Variant)
    for a, b in itertools.combinations(range(10), 2):
        first, last = built.boundaries[a], built.boundaries[b]
        assert np.isfinite(variant.cost_s(a, b)) == (first < last)
        if first < last:
            needed = built.memory.needed(np.array([a]), np.array([b]), num_stages=2)
            alike = plain.memory.needed(np.array([first]), np.array([last]), num_stages=2)
            assert needed == alike == costs.memory_bytes(first, last, num_stages=2)


def test_more_rows_take_more_bytes_and_seconds() -> None:
    (found,) = with_more_rows(costs_of((HALF,)), 4).codecs
    assert found.cut_bytes == (None, 200, 200, 200, None)
    assert found.encode_s[1] == pytest.approx(0.4)
    assert found.decode_s[1] == pytest.approx(0.8)


def test_ties_prefer_no_codec() -> None:
    free = codec("fp16", (None, 50, 50, 50, None), 0.0, 0.0)
    built = build_problem(costs_of((free,)), cluster(1e9), range(5), num_stages=2)
    solution = solve_period(built.problem)
    assert built.codecs[solution.stages[0].stop] == "none"
    heads = msgspec.structs.replace(costs_of((free,)), kinds=("", "head", "block", "block", ""))
    built = build_problem(heads, cluster(1e9), range(5), num_stages=2)
    assert built.codecs[solve_period(built.problem).stages[0].stop] == "none"
