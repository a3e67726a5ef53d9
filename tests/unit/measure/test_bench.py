from __future__ import annotations

from cutset.measure.bench import quantiles


def test_quantiles_are_nearest_ranks() -> None:
    samples = [float(number) for number in range(100, 0, -1)]
    result = quantiles(samples)
    assert (result.p50, result.p95, result.p99) == (50.0, 95.0, 99.0)
    alone = quantiles([7.0])
    assert (alone.p50, alone.p95, alone.p99) == (7.0, 7.0, 7.0)
