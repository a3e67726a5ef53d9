"""Downsets, cost graphs and the simulation against twins that try or walk through everything."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cutset.planning.anyorder.downsets import DagProblem, Tensor, contract, list_downsets
from cutset.planning.anyorder.fewer_downsets import certificates_for_all
from cutset.planning.anyorder.goals import Goals, OutOfReach
from cutset.planning.anyorder.search import open_searches, solve_downsets
from cutset.planning.simulate import simulate

quick = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
SECONDS = st.integers(0, 9).map(float)


@st.composite
def dags(draw):
    num = draw(st.integers(1, 6))
    tensors = []
    for source in range(num - 1):
        targets = draw(st.lists(st.integers(source + 1, num - 1), unique=True, max_size=3))
        if targets:
            seconds = draw(SECONDS) / 4
            size = float(draw(st.integers(0, 3)))
            tensors.append(
                Tensor(source=source, targets=tuple(targets), transfer_s=seconds, num_bytes=size)
            )
    num_classes = draw(st.integers(1, 2))
    counts = tuple(draw(st.integers(1, 2)) for _ in range(num_classes))
    seconds = np.array([[draw(SECONDS) for _ in range(num)] for _ in range(num_classes)])
    if draw(st.booleans()):
        seconds[0, draw(st.integers(0, num - 1))] = math.inf
    limits = [draw(st.sampled_from([math.inf, 4.0, 8.0])) for _ in range(num_classes)]
    through_host = draw(st.booleans())
    costly = draw(st.booleans())
    return DagProblem(
        seconds=seconds,
        weight_bytes=np.array([draw(st.integers(0, 4)) for _ in range(num)], dtype=float),
        tensors=tuple(tensors),
        groups=np.array([draw(st.integers(0, 2)) if draw(st.booleans()) else 9 + k
                         for k in range(num)]),
        counts=counts,
        limit_bytes=np.array(limits),
        through_host=through_host,
        pays=tuple(draw(st.booleans()) for _ in range(num_classes)),
        link_latency_s=draw(SECONDS) / 8,
        serial=draw(st.booleans()),
        num_stages=draw(st.one_of(st.none(), st.integers(1, 3))),
        max_tensors=draw(st.one_of(st.none(), st.integers(1, 2))),
        overhead_s=tuple(draw(SECONDS) / 2 for _ in range(num_classes)) if costly else (),
        send_s_per_byte=draw(SECONDS) / 8 if costly else 0.0,
        receive_s_per_byte=draw(SECONDS) / 8 if costly else 0.0,
        fixed_order=set(counts) == {1} and draw(st.booleans()),
        half_duplex=tuple((draw(SECONDS) / 4, draw(SECONDS) / 4) for _ in range(num_classes))
        if not through_host and draw(st.booleans()) else (),
        medium=(draw(SECONDS) / 4, draw(SECONDS) / 2)
        if not through_host and draw(st.booleans()) else None,
    )  # fmt: skip


def downsets_twin(problem):
    num = problem.seconds.shape[1]
    needs = {k: {t.source for t in problem.tensors if k in t.targets} for k in range(num)}
    kept = []
    for size in range(num + 1):
        for nodes in itertools.combinations(range(num), size):
            inside = set(nodes)
            if all(needs[k] <= inside for k in nodes):
                kept.append(frozenset(inside))
    return kept


def alive(problem, inside):
    return [t for t in problem.tensors if t.source in inside and not set(t.targets) <= inside]


def load(problem, before, after, c, *, alone=False):
    stage = after - before
    groups = {problem.groups[k] for k in stage}
    if {problem.groups[k] for k in before} & groups or not stage:
        return math.inf
    if sum(problem.weight_bytes[k] for k in stage) > problem.limit_bytes[c]:
        return math.inf
    work = math.fsum(problem.seconds[c, k] for k in stage)
    send, receive = problem.send_s_per_byte, problem.receive_s_per_byte
    if alone:
        send = receive = 0.0
    elif problem.overhead_s:
        work += problem.overhead_s[c]
    if problem.through_host:
        if problem.pays[c]:
            for t in problem.tensors:
                if t.source in before and set(t.targets) & stage:
                    work += t.transfer_s + receive * t.num_bytes
                if t.source in stage and set(t.targets) - after:
                    work += t.transfer_s + send * t.num_bytes
        return work
    work += receive * sum(t.num_bytes for t in alive(problem, before))
    work += send * sum(t.num_bytes for t in alive(problem, after))
    if alone:
        work += cut(problem, before)
    elif problem.serial:
        work += cut(problem, before) + cut(problem, after)
    return work


def cut(problem, inside):
    if problem.through_host or len(inside) in (0, problem.seconds.shape[1]):
        return 0.0
    return problem.link_latency_s + sum(t.transfer_s for t in alive(problem, inside))


def plans_twin(problem):
    """Period, latency, seconds of the medium of every plan.

    Every chain of downsets, every choice of devices; the period without the medium.
    """
    parts, _ = contract(problem)
    together = [set(part) for part in parts]
    downs = [
        d for d in downsets_twin(problem)
        if all(not part & d or part <= d for part in together)
        and (problem.max_tensors is None or distinct(problem, d, together) <= problem.max_tensors)
    ]  # fmt: skip
    full = frozenset(range(problem.seconds.shape[1]))

    def grow(before, counts, value, latency, stages, last, air):
        if math.isinf(value):
            return
        if before == full:
            if problem.num_stages in (None, stages):
                yield value, latency, air
            return
        for after in downs:
            if before < after:
                for c, left in enumerate(counts):
                    if left and (c > last or not problem.fixed_order):
                        less = tuple(n - (k == c) for k, n in enumerate(counts))
                        moved = 0.0 if problem.serial else cut(problem, after)
                        ports = port(problem, before, after, c)
                        here = max(value, load(problem, before, after, c), moved, ports)
                        then = latency + load(problem, before, after, c, alone=True)
                        sent = 0.0
                        if problem.medium is not None and after != full:
                            size = sum(t.num_bytes for t in alive(problem, after))
                            sent = problem.medium[0] + problem.medium[1] * size
                        yield from grow(after, less, here, then, stages + 1, c, air + sent)

    return list(grow(frozenset(), problem.counts, 0.0, 0.0, 0, -1, 0.0))


def port(problem, before, after, c):
    """Seconds that a port in half duplex is busy with what a stage receives and sends."""
    if not problem.half_duplex:
        return 0.0
    into, out = problem.half_duplex[c]
    taken = sum(t.num_bytes for t in alive(problem, before))
    given = sum(t.num_bytes for t in alive(problem, after))
    return into * taken + out * given


def best_twin(problem):
    return min((period for period, _, _ in plans_twin(problem)), default=math.inf)


def distinct(problem, inside, together):
    """Tensors that cross; those that never leave a part do not count."""
    return len(alive(problem, inside))


@quick
@given(dags())
def test_downset_plans_are_the_best_there_are(problem):
    expected = best_twin(problem)
    solution = solve_downsets(problem)
    if math.isinf(expected):
        assert solution is None
        return
    assert solution is not None
    assert solution.period_s == pytest.approx(expected, rel=1e-9)
    done = set()
    for stage, c, seconds in zip(solution.stages, solution.classes, solution.loads_s, strict=True):
        before, done = frozenset(done), frozenset(done) | set(stage)
        assert seconds == pytest.approx(load(problem, before, done, c), abs=1e-9)
    assert done == frozenset(range(problem.seconds.shape[1]))
    assert all(solution.classes.count(c) <= n for c, n in enumerate(problem.counts))


@quick
@given(dags())
def test_all_cuts_over_one_medium_are_counted_together(problem):
    if problem.medium is None:
        return
    every = [max(period, air) for period, _, air in plans_twin(problem)]
    expected = min(every, default=math.inf)
    if math.isinf(expected):
        with pytest.raises(LookupError):
            Goals(problem).best(by_latency=False, max_latency_s=math.inf, max_period_s=math.inf)
        return
    reached = Goals(problem).best(by_latency=False, max_latency_s=math.inf, max_period_s=expected)
    assert reached.solution.busiest_s == pytest.approx(expected, rel=1e-9)
    assert reached.bound_s == pytest.approx(expected, rel=1e-9, abs=1e-12)
    if expected:
        with pytest.raises(OutOfReach):
            Goals(problem).best(
                by_latency=False, max_latency_s=math.inf, max_period_s=expected * 0.99
            )


@quick
@given(dags())
def test_too_many_downsets_are_no_claim_about_all(problem):
    """As if only a few could be listed: the bounds hold for every plan all the same."""
    expected = best_twin(problem)
    (*_, last) = open_searches(problem, limit=4)
    found = last.search.run(math.inf)
    parts, _ = contract(problem)
    if found is not None:
        solution = last.solution(found[1])
        assert solution.period_s >= expected * (1 - 1e-9)
        bounds = certificates_for_all(problem, parts, math.inf, by_latency=False)
        assert all(bound.bound_s <= expected * (1 + 1e-9) for bound in bounds)
    if last.family == "downset":
        value = math.inf if found is None else solution.period_s
        assert value == pytest.approx(expected, rel=1e-9)


NUM_QUICK, NUM_SOAK = 60, 1500


def wide(problem, seed):
    """The same graph with seconds from 1e-9 to 1e15."""
    rng = np.random.default_rng(seed)

    def draw(shape):
        values = 10.0 ** rng.uniform(-9, 15, shape)
        return np.where(rng.random(shape) < 0.1, 0.0, values)

    seconds = np.where(np.isinf(problem.seconds), math.inf, draw(problem.seconds.shape))
    moves = draw(len(problem.tensors))
    return dataclasses.replace(
        problem,
        seconds=seconds,
        tensors=tuple(
            dataclasses.replace(tensor, transfer_s=float(each))
            for tensor, each in zip(problem.tensors, moves, strict=True)
        ),
        overhead_s=tuple(draw(len(problem.counts)).tolist()) if rng.random() < 0.5 else (),
        link_latency_s=float(draw(1)[0]),
    )


def check_wide(problem):
    expected = best_twin(problem)
    for limit in (100_000, 4):
        solution = solve_downsets(problem, limit=limit)
        if limit > 4 or (solution is not None and solution.family == "downset"):
            value = math.inf if solution is None else solution.period_s
            assert value == pytest.approx(expected, rel=1e-9, abs=0)
        elif solution is not None:
            assert solution.period_s >= expected * (1 - 1e-9)
    if math.isfinite(expected):
        parts, _ = contract(problem)
        for bound in certificates_for_all(problem, parts, math.inf, by_latency=False):
            assert bound.bound_s <= expected * (1 + 1e-9)


@settings(quick, max_examples=NUM_QUICK)
@given(dags(), st.integers(0, 2**32))
def test_graphs_with_costs_of_any_size_are_solved_exactly(problem, seed):
    check_wide(wide(problem, seed))


@pytest.mark.soak
@settings(quick, max_examples=NUM_SOAK)
@given(dags(), st.integers(0, 2**32))
def test_many_graphs_with_costs_of_any_size_are_solved_exactly(problem, seed):
    check_wide(wide(problem, seed))


@quick
@given(dags())
def test_every_downset_is_listed_once(problem):
    parts, before = contract(problem)
    masks = list_downsets(before)
    together = [set(part) for part in parts]
    whole = [
        d for d in downsets_twin(problem)
        if all(not part & d or part <= d for part in together)
    ]  # fmt: skip
    assert len(masks) == len(set(masks)) == len(whole)


@quick
@given(st.data(), st.integers(1, 4), st.booleans())
def test_the_simulation_agrees_with_the_formulas(data, num, serial):
    compute = [data.draw(SECONDS) for _ in range(num)]
    moves = [data.draw(SECONDS) for _ in range(num + 1)]
    overhead = [data.draw(SECONDS) for _ in range(num)] if data.draw(st.booleans()) else [0.0] * num
    timeline = simulate(
        compute, moves, overhead_s=overhead, num_microbatches=40, window=40, serial=serial
    )
    busy = [a + b for a, b in zip(compute, overhead, strict=True)]
    if serial:
        period = max(moves[k] + busy[k] + moves[k + 1] for k in range(num))
    else:
        period = max(busy + moves)
    assert timeline.first_latency_s == pytest.approx(sum(compute) + sum(moves))
    assert timeline.steady_period_s == pytest.approx(period)


@quick
@given(st.data(), st.integers(1, 3), st.integers(1, 4), st.booleans())
def test_the_simulation_never_does_two_things_at_once(data, num, window, serial):
    compute = [data.draw(SECONDS) for _ in range(num)]
    moves = [data.draw(SECONDS) for _ in range(num + 1)]
    timeline = simulate(compute, moves, num_microbatches=7, window=window, serial=serial)
    used = {}
    for slot in timeline.slots:
        used.setdefault(slot.resource, []).append(slot)
        if serial and slot.kind == "transfer":
            for stage in (slot.stage, slot.stage + 1):
                if 0 <= stage < num:
                    used.setdefault(f"stage {stage}", []).append(slot)
    for slots in used.values():
        busy = sorted((slot.start_s, slot.stop_s) for slot in slots)
        busy = [b for b in busy if b[0] < b[1]]
        assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(busy))
    starts, stops = {}, {}
    for slot in timeline.slots:
        m = slot.microbatch_index
        starts[m] = min(starts.get(m, math.inf), slot.start_s)
        stops[m] = max(stops.get(m, 0.0), slot.stop_s)
    assert all(starts[m] >= stops[m - window] - 1e-9 for m in starts if m >= window)


@quick
@given(dags(), st.sampled_from([0.3, 0.6, 1.0, 1.5, 3.0]), st.sampled_from([0.5, 1.0, 1.7]))
def test_goals_over_downsets_are_reached_as_far_as_they_can_be(problem, share, slack):
    problem = dataclasses.replace(problem, medium=None)  # beside limits it is refused
    plans = [plan[:2] for plan in plans_twin(problem)]
    goals = Goals(problem)
    if not plans:
        for ask in (
            lambda: goals.best(by_latency=False, max_latency_s=9.0, max_period_s=math.inf),
            lambda: goals.front(max_latency_s=math.inf, max_period_s=9.0),
        ):
            with pytest.raises(LookupError):
                ask()
        return
    least_period, least_latency = (min(each) for each in zip(*plans, strict=True))
    max_latency_s = least_latency * slack or 1.0
    max_period_s = least_period * slack / share or 1.0
    kept = [
        (period, latency) for period, latency in plans
        if period <= max_period_s * (1 + 1e-12) and latency <= max_latency_s * (1 + 1e-12)
    ]  # fmt: skip
    limits = {"max_latency_s": max_latency_s, "max_period_s": max_period_s}
    if not kept:
        with pytest.raises(OutOfReach) as caught:
            goals.best(by_latency=False, **limits)
        if caught.value.limit == "period":
            expected = least_period
        elif caught.value.limit == "latency":
            expected = least_latency
        else:
            expected = min(b for a, b in plans if a <= max_period_s * (1 + 1e-12))
        assert caught.value.best_s == pytest.approx(expected, rel=1e-9)
        return
    for by_latency in (False, True):
        reached = goals.best(by_latency=by_latency, **limits)
        solution = reached.solution
        assert solution.period_s <= max_period_s * (1 + 1e-9)
        assert solution.latency_s <= max_latency_s * (1 + 1e-9)
        value = solution.latency_s if by_latency else solution.period_s
        assert value == pytest.approx(min(each[by_latency] for each in kept), rel=1e-9)
        assert reached.bound_s == pytest.approx(value, rel=2e-10)
    expected = []
    for period, latency in sorted(kept):
        if not expected or latency < expected[-1][1] * (1 - 1e-9):
            expected.append((period, latency))
    found = goals.front(**limits)
    assert found.is_complete
    assert [(each.period_s, each.latency_s) for each in reversed(found.plans)] == [
        pytest.approx(pair, rel=1e-9) for pair in expected
    ]


@quick
@given(dags())
def test_the_least_memory_that_would_do(problem):
    class_, everywhere = 0, tuple(range(len(problem.counts)))
    for raised in ((class_,), everywhere):
        needed = Goals(problem).least_memory(raised)
        limits = problem.limit_bytes.copy()
        if needed is None:
            limits[list(raised)] = math.inf
            assert not plans_twin(dataclasses.replace(problem, limit_bytes=limits))
            continue
        limits[list(raised)] = needed
        assert plans_twin(dataclasses.replace(problem, limit_bytes=limits))
        if needed:
            limits[list(raised)] = needed - 1
            assert not plans_twin(dataclasses.replace(problem, limit_bytes=limits))
