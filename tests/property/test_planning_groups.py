"""Groups of devices: plans on random clusters against the twin, which tries everything."""

import math

import pytest

from cutset.planning.formulate import build_problem
from cutset.planning.group_problem import group_problem
from cutset.planning.solvers.group_search import least_group_period
from groups_twin import GroupsTwin, draw_groups

NUM_QUICK, NUM_SOAK = 60, 4000


def close(value):
    return pytest.approx(value, rel=1e-9, abs=1e-12)


def built_problem(costs, cluster, wanted):
    built = build_problem(
        costs,
        cluster,
        range(costs.num_pieces + 1),
        serial=wanted.serial,
        num_stages=wanted.num_stages,
    )
    return built, group_problem(built, cluster, wanted.most)


def named(built, twin, stages):
    """A solution with its devices by name, as the twin has it."""
    free = [list(group) for group in built.classes]
    groups = [
        [free[c].pop(0).name for c, count in enumerate(stage.members) for _ in range(count)]
        for stage in stages
    ]
    by_name = {codec.name: codec for codec in twin.costs.codecs}
    edges = [0, *(stage.stop for stage in stages)]
    codecs = tuple(by_name.get(built.codecs[edge]) for edge in edges[1:-1])
    return [built.boundaries[edge] for edge in edges], groups, codecs


def check(seed, **sizes):
    costs, cluster, wanted, rng = draw_groups(seed, **sizes)
    built, problem = built_problem(costs, cluster, wanted)
    twin = GroupsTwin(costs, cluster, serial=wanted.serial)
    best = twin.best_period(wanted)
    found = least_group_period(problem)
    if found is None:
        assert best == math.inf
        return "none"
    plan = named(built, twin, found.stages)
    assert problem.fits(found.stages)
    assert problem.period_s(found.stages) == close(twin.period(*plan))
    assert problem.latency_s(found.stages) == close(twin.latency(*plan))
    assert found.proven_by == "exhaustion"
    assert (problem.period_s(found.stages), found.bound_s) == (close(best), close(best))
    for stage, shares in zip(found.stages, problem.shares(found.stages), strict=True):
        assert sum(n * s for n, s in zip(stage.members, shares, strict=True)) == close(1)
    if problem.has_equal_partners:
        limit = problem.latency_s(found.stages) * float(rng.choice([0.7, 0.9]))
        best = twin.best_period(wanted, limit)
        limited = least_group_period(problem, max_latency_s=limit)
        if limited is None:
            assert best == math.inf
        else:
            assert problem.period_s(limited.stages) == close(best)
            assert limited.bound_s == close(best)
            assert problem.latency_s(limited.stages) <= limit * (1 + 1e-9)
    return "group" if any(stage.size > 1 for stage in found.stages) else "single"


def test_random_chains_have_the_plans_that_the_twin_finds():
    kinds = {check(seed) for seed in range(NUM_QUICK)}
    assert kinds == {"none", "single", "group"}


@pytest.mark.soak
def test_thousands_of_random_chains_have_the_plans_that_the_twin_finds():
    for seed in range(NUM_QUICK, NUM_SOAK):
        check(seed)
    for seed in range(200):
        check(seed, most_devices=5, most_pieces=7)
