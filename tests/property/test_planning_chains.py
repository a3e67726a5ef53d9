"""The chain solvers against the twin that tries everything, on thousands of small problems."""

import math
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import planner_twin as twin
from cutset.planning.certificates import (
    latency_certificates,
    period_certificates,
    quick_bound,
)
from cutset.planning.deadline import OverBudget
from cutset.planning.problem import ByteCosts, ChainProblem
from cutset.planning.solvers import solve, threshold
from cutset.planning.solvers.relaxed import Goal, solve_wide
from cutset.planning.solvers.solve import (
    Infeasible,
    find_best,
    solve_front,
    solve_latency,
    solve_period,
)
from cutset.planning.solvers.within_limit import period_oracle
from cutset.planning.variant import Variant

quick = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# Whole numbers make many ties and many plans of equal cost; zero pieces and free links included.
SECONDS = st.integers(0, 9).map(float)
WEIGHTS = st.integers(0, 5)


@st.composite
def problems(
    draw, *, serial=None, fixed=None, uniform=None, max_pieces=6, max_devices=4, costs=SECONDS
):
    num = draw(st.integers(1, max_pieces))
    fixed = draw(st.booleans()) if fixed is None else fixed
    if fixed:
        counts = (1,) * draw(st.integers(1, max_devices))
    else:
        counts = draw(
            st.lists(st.integers(1, 3), min_size=1, max_size=max_devices).filter(
                lambda c: sum(c) <= max_devices
            )
        )
    num_classes = len(counts)
    has_room = draw(st.booleans())
    weights = np.concatenate([[0], np.cumsum(draw(_row(WEIGHTS, num)))])
    variants = []
    for k in range(num_classes):
        limit = draw(st.one_of(st.none(), st.integers(2, 14)))
        room = None
        if has_room and draw(st.booleans()):
            # Bytes that wait at the ends of a stage: what fits is neither a window nor one for all.
            room = np.array(draw(_row(_row(st.integers(0, 5), num + 1), num)))
        for backend in range(draw(st.integers(1, 2))):
            seconds = np.array(draw(_row(costs, num)))
            reach = np.full(num, num)
            if limit is not None:
                reach = np.searchsorted(weights, weights[:-1] + limit, side="right") - 1
            variants.append(
                Variant(
                    device_class=k,
                    backend=f"b{backend}",
                    seconds=seconds,
                    furthest=reach,
                    room=room,
                )
            )
    is_uniform = draw(st.booleans()) if uniform is None else uniform

    def table(element):
        if is_uniform:
            return np.full((num_classes, num_classes), draw(element) / 4)
        return np.array(draw(_row(_row(element, num_classes), num_classes))) / 4

    def maybe(element):
        return np.array(
            draw(_row(element, num_classes)) if draw(st.booleans()) else [0.0] * num_classes
        )

    def by_boundary():
        if draw(st.booleans()):
            return np.zeros((num_classes, num + 1))
        return np.array(draw(_row(_row(costs, num + 1), num_classes)))

    byte_costs = None
    if draw(st.booleans()):
        byte_costs = ByteCosts(
            send_s_per_byte=table(SECONDS),
            receive_s_per_byte=table(SECONDS),
            first_s=maybe(costs),
            last_s=maybe(costs),
            not_first_s=maybe(costs),
            not_last_s=maybe(costs),
            encode_s=by_boundary(),
            decode_s=by_boundary(),
        )
    return ChainProblem(
        num_pieces=num,
        counts=tuple(counts),
        variants=tuple(variants),
        cut_bytes=np.array(draw(_row(SECONDS, num + 1))),
        link_latency_s=table(costs),
        link_s_per_byte=table(SECONDS),
        source_s=maybe(costs),
        sink_s=maybe(costs),
        overhead_s=maybe(costs),
        byte_costs=byte_costs,
        tie_cost=np.array(draw(_row(st.integers(1, 6).map(float), num + 1))),
        serial=draw(st.booleans()) if serial is None else serial,
        fixed_order=fixed,
        num_stages=draw(st.one_of(st.none(), st.integers(1, 4))),
    )


def _row(element, size):
    return st.lists(element, min_size=size, max_size=size)


@quick
@given(problems(costs=st.integers(1, 9).map(float)))
def test_a_plan_is_found_within_a_limit_if_there_is_one_and_memory_allows_it(problem):
    expected = twin.best_period(problem)
    ask = period_oracle(problem)
    if math.isinf(expected):
        assert ask(math.inf) is None
        return
    found = ask(expected)
    assert found is not None
    assert problem.fits(found)
    assert problem.period_s(found) == pytest.approx(expected, rel=1e-9)
    assert ask(expected * (1 - 1e-6)) is None
    assert quick_bound(problem) <= expected * (1 + 1e-9)


@quick
@given(problems())
def test_period_is_the_least_there_is(problem):
    expected = twin.best_period(problem)
    if math.isinf(expected):
        with pytest.raises(Infeasible):
            solve_period(problem)
        return
    solution = solve_period(problem)
    assert problem.period_s(solution.stages) == pytest.approx(expected, rel=1e-9)
    assert solution.bound_s == pytest.approx(expected, rel=1e-9)


@quick
@given(problems())
def test_a_solution_keeps_every_rule_and_costs_what_the_twin_says(problem):
    if math.isinf(twin.best_period(problem)):
        return
    stages = solve_period(problem).stages
    same = [row for row in twin.every_plan(problem) if row[0] == tuple(map(tuple, stages))]
    assert len(same) == 1
    assert problem.period_s(stages) == pytest.approx(same[0][1], rel=1e-9)
    assert problem.latency_s(stages) == pytest.approx(same[0][2], rel=1e-9)


@quick
@given(problems())
def test_ties_are_broken_by_the_cheapest_cuts(problem):
    expected = twin.best_period(problem)
    if math.isfinite(expected):
        stages = solve_period(problem).stages
        assert problem.ties(stages) == twin.best_ties(problem, expected)


@quick
@given(problems(fixed=False))
def test_ties_and_periods_do_not_depend_on_how_they_are_searched(problem):
    """Large problems take other paths than small ones; force them onto the small ones."""
    expected = twin.best_period(problem)
    if math.isinf(expected):
        return
    with mock.patch.object(solve, "MAX_TIE_SIZE", 0), mock.patch.object(threshold, "FEW_STATES", 0):
        stages = solve_period(problem).stages
    assert problem.period_s(stages) == pytest.approx(expected, rel=1e-9)
    if not problem.is_coupled or problem.has_uniform_moves:
        assert problem.ties(stages) == twin.best_ties(problem, expected)


@quick
@given(problems())
def test_latency_is_the_least_there_is(problem):
    expected = twin.best_latency(problem)
    if math.isinf(expected):
        with pytest.raises(Infeasible):
            solve_latency(problem)
        return
    stages = solve_latency(problem).stages
    assert problem.latency_s(stages) == pytest.approx(expected, rel=1e-9)
    fastest = min(p for _, p, lat, _ in twin.every_plan(problem) if lat <= expected * (1 + 1e-9))
    assert problem.period_s(stages) == pytest.approx(fastest, rel=1e-8)


@quick
@given(problems(), st.floats(0.5, 2.0))
def test_limits_on_the_other_objective_are_kept(problem, factor):
    least_s, fastest_s = twin.best_latency(problem), twin.best_period(problem)
    if math.isinf(least_s) or least_s == 0 or fastest_s == 0:
        return
    limit_s = least_s * factor
    expected = twin.best_period(problem, limit_s)
    if math.isinf(expected):
        with pytest.raises(Infeasible) as caught:
            solve_period(problem, max_latency_s=limit_s)
        assert caught.value.best_s == pytest.approx(least_s, rel=1e-9)
    else:
        stages = solve_period(problem, max_latency_s=limit_s).stages
        assert problem.period_s(stages) == pytest.approx(expected, rel=1e-9)
        assert problem.latency_s(stages) <= limit_s * (1 + 1e-9)
    limit_s = fastest_s * factor
    expected = twin.best_latency(problem, limit_s)
    if math.isinf(expected):
        with pytest.raises(Infeasible) as caught:
            solve_latency(problem, max_period_s=limit_s)
        assert caught.value.best_s == pytest.approx(fastest_s, rel=1e-9)
    else:
        stages = solve_latency(problem, max_period_s=limit_s).stages
        assert problem.latency_s(stages) == pytest.approx(expected, rel=1e-9)


@quick
@given(problems())
def test_the_front_is_exact_point_by_point(problem):
    expected = twin.front(problem)
    if not expected:
        with pytest.raises(Infeasible):
            solve_front(problem)
        return
    actual = [(problem.period_s(s), problem.latency_s(s)) for s in solve_front(problem).plans]
    assert actual == [pytest.approx(point, rel=1e-8) for point in expected]


@quick
@given(problems())
def test_no_certificate_exceeds_the_optimum(problem):
    period_s, latency_s = twin.best_period(problem), twin.best_latency(problem)
    if math.isinf(period_s):
        return
    for certificate in period_certificates(problem, math.inf, period_s, "exhaustion"):
        assert certificate.bound_s <= period_s * (1 + 1e-9), certificate
    for certificate in latency_certificates(problem, math.inf, latency_s, "exhaustion"):
        assert certificate.bound_s <= latency_s * (1 + 1e-9), certificate


@quick
@given(problems(fixed=False), st.booleans(), st.sampled_from([math.inf, 1.0, 1.5]))
def test_the_wide_search_brackets_the_optimum(problem, by_latency, factor):
    """What is used where there are too many states, held against small problems."""
    twin_of, other_of = twin.best_period, twin.best_latency
    if by_latency:
        twin_of, other_of = other_of, twin_of
    least_s = other_of(problem)
    limit_s = least_s * factor if 0 < least_s < math.inf else math.inf
    expected = twin_of(problem, limit_s)
    goal = Goal(by_latency=by_latency, limit_s=limit_s)
    found = solve_wide(problem, goal, find_best)
    if math.isinf(expected):
        assert found.stages is None
        return
    assert found.bound_s <= expected * (1 + 1e-9)
    if found.stages is not None:
        assert goal.value_s(problem, found.stages) >= expected * (1 - 1e-9)
        assert goal.is_kept(problem, found.stages)


@quick
@given(problems(fixed=False, uniform=False), st.permutations(range(4)))
def test_the_order_of_classes_does_not_matter(problem, shuffled):
    index = [c for c in shuffled if c < problem.num_classes]
    other = problem.of_classes(index, [problem.counts[c] for c in index])
    try:
        expected = problem.period_s(solve_period(problem).stages)
    except (Infeasible, OverBudget):
        return
    assert other.period_s(solve_period(other).stages) == pytest.approx(expected, rel=1e-9)
