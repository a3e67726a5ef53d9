"""How many questions the search for the least period asks: each may take seconds."""

import random

import pytest

from cutset.cluster.devices import Cluster, Device, Link, LinkOverride
from cutset.costs.cost_model import costs_from_flops
from cutset.planning.certificates import quick_bound
from cutset.planning.formulate import build_problem
from cutset.planning.problem import ChainProblem
from cutset.planning.solvers.period_search import candidate_periods, least_period
from cutset.planning.solvers.within_limit import period_oracle
from planner_graphs import chain


def serial_problem(seed: int) -> ChainProblem:
    """Five devices that differ, over links that all differ: a load depends on both neighbours."""
    rng = random.Random(seed)
    flops = [rng.randint(50, 400) for _ in range(16)]
    graph, cuts = chain(flops, widths=[rng.randint(5, 60) for _ in flops])
    names = "abcde"
    cluster = Cluster(
        devices=tuple(Device(name=name, speed=rng.uniform(0.5, 4)) for name in names),
        overrides=tuple(
            LinkOverride(
                source=a, target=b, link=Link(bandwidth_bytes_per_s=rng.uniform(200, 3000))
            )
            for a in names
            for b in names
            if a != b
        ),
    )
    costs = costs_from_flops(graph, cuts, flops_per_s=100.0)
    return build_problem(costs, cluster, range(17), serial=True).problem


@pytest.mark.parametrize("seed", range(8))
def test_once_the_best_plan_is_found_three_questions_prove_it(seed: int) -> None:
    problem = serial_problem(seed)
    oracle, periods = period_oracle(problem), []

    def asked(limit_s: float):
        stages = oracle(limit_s)
        periods.append(None if stages is None else problem.period_s(stages))
        return stages

    found = least_period(problem, asked, quick_bound(problem))
    assert found is not None
    assert found.is_complete
    assert found.bound_s == found.period_s
    assert len(periods) - 1 - periods.index(found.period_s) <= 3
    # Nothing is better: said by a question just below, of hundreds of values.
    values = candidate_periods(problem, 0.0, found.period_s)
    assert values is not None
    assert len(values) > 500
    assert oracle(found.period_s * (1 - 1e-9)) is None
