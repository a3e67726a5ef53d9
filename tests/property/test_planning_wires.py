"""Ports, media, callers and costs of bytes: plans on random clusters against the twin.

`wires_twin` adds up the messages of every plan from first principles.
"""

import itertools
import math

import pytest

from cutset.cluster.cluster_file import cluster_from_toml
from cutset.cluster.file_writer import cluster_to_toml
from cutset.planning.deadline import within
from cutset.planning.formulate import build_problem
from cutset.planning.plan_messages import planned_messages, wire_loads
from cutset.planning.simulate import simulate
from cutset.planning.solvers.relaxed import Goal, solve_wide
from cutset.planning.solvers.solve import (
    Infeasible,
    find_best,
    solve_front,
    solve_latency,
    solve_period,
)
from wires_twin import WiresTwin, draw

NUM_QUICK, NUM_SOAK = 60, 4000
NEAR = 1 + 1e-9


def close(value):
    return pytest.approx(value, rel=1e-9, abs=1e-12)


def devices_of(built, stages):
    free = [list(group) for group in built.classes]
    return [free[stage.device_class].pop(0).name for stage in stages]


def check_cost(built, twin, stages):
    """A solution is possible, and costs what the twin says for the devices that it stands for."""
    names = devices_of(built, stages)
    edges = [0, *(stage.stop for stage in stages)]
    by_name = {codec.name: codec for codec in twin.costs.codecs}
    codecs = [by_name.get(built.codecs[edge]) for edge in edges[1:-1]]
    boundaries = [built.boundaries[edge] for edge in edges]
    assert all(a < b for a, b in itertools.pairwise(boundaries))
    period, latency = twin.cost(boundaries, names, codecs)
    assert built.problem.period_s(stages) == close(period)
    assert built.problem.latency_s(stages) == close(latency)
    return period, latency


def check_limited(built, twin, plans, rng):
    """Each objective under a limit of the other, that some plan keeps or that none may keep."""
    at = plans[int(rng.integers(len(plans)))]
    for limit_s, solve, name, own in (
        (at[3], solve_period, "max_latency_s", 2),
        (at[2], solve_latency, "max_period_s", 3),
    ):
        for factor in (1.0, 0.6):
            limit = limit_s * factor
            fits = [plan[own] for plan in plans if plan[5 - own] <= limit * NEAR]
            if not 0 < limit < math.inf:
                continue
            if not fits:
                with pytest.raises(Infeasible) as caught:
                    solve(built.problem, **{name: limit})
                assert caught.value.is_proven
                continue
            found = solve(built.problem, **{name: limit}).stages
            assert check_cost(built, twin, found)[own - 2] == close(min(fits))


def check(seed):
    """One random problem: period, latency, limits, front, the wide search; and what it is."""
    costs, cluster, choice, rng = draw(seed)
    built = build_problem(costs, cluster, range(costs.num_pieces + 1), **choice)
    twin = WiresTwin(costs, cluster, serial=choice.pop("serial"))
    plans = list(twin.every_plan(**choice))
    if not plans:
        for solve in (solve_period, solve_latency, solve_front):
            with pytest.raises(Infeasible):
                solve(built.problem)
        return built, None
    least_s, quickest_s = min(p[2] for p in plans), min(p[3] for p in plans)
    solution = solve_period(built.problem)
    assert check_cost(built, twin, solution.stages)[0] == close(least_s)
    assert solution.bound_s == close(least_s)
    quickest = solve_latency(built.problem)
    assert check_cost(built, twin, quickest.stages)[1] == close(quickest_s)
    check_limited(built, twin, plans, rng)
    front = [check_cost(built, twin, stages) for stages in solve_front(built.problem).plans]
    for _, _, period, latency in plans:
        assert any(p <= period * NEAR + 1e-12 and q <= latency * NEAR + 1e-12 for p, q in front)
        assert not any(period * NEAR < p - 1e-12 and latency * NEAR < q - 1e-12 for p, q in front)
    wide = solve_wide(built.problem, Goal(), find_best)
    assert wide.bound_s <= least_s * NEAR + 1e-12
    if wide.stages is not None:
        assert built.problem.period_s(wide.stages) >= least_s / NEAR - 1e-12
    return built, solution.stages


def check_simulation(seed, built, stages):
    """What happens when messages share wires takes as long as the formula says."""
    _, cluster, choice, _ = draw(seed)
    problem = built.problem
    edges = [0, *(stage.stop for stage in stages)]
    sizes = [problem.cut_bytes[e] for e in edges]
    messages = planned_messages(cluster, devices_of(built, stages), sizes)
    moves = list(problem.transfers_s(stages))
    shared = [{} for _ in moves]
    for message in messages:
        at = 0 if message.after is None else message.after + 1
        shared[at] = {use.wire: use.busy_s for use in message.uses[1:]}
        assert message.seconds == close(moves[at])
    loads = [use.busy_s for use in wire_loads(messages)]
    if choice["serial"]:
        own = {message.uses[0].wire for message in messages}
        loads = [use.busy_s for use in wire_loads(messages) if use.wire not in own]
    else:
        loads += moves
    period_s = problem.period_s(stages)
    assert max([*problem.loads_s(stages), *loads]) == close(period_s)
    costs = problem.byte_costs
    coding = [0.0] * len(stages)
    for k, stage in enumerate(stages if costs is not None else ()):
        into, out = costs.decode_s[stage.device_class], costs.encode_s[stage.device_class]
        coding[k] = float(into[stage.start] + out[stage.stop])
    number, servers = 40, 2 * len(stages) + 1
    timeline = simulate(
        [problem.compute_s(stage) + own for stage, own in zip(stages, coding, strict=True)],
        moves,
        overhead_s=[max(0.0, a - b) for a, b in zip(problem.lost_s(stages), coding, strict=True)],
        num_microbatches=number,
        window=servers,
        serial=choice["serial"],
        shared_s=shared,
    )
    assert timeline.first_latency_s >= problem.latency_s(stages) / NEAR - 1e-9
    assert timeline.total_s >= (number - 1) * period_s / NEAR
    if not choice["serial"]:  # no promise where a slow message keeps two stages from computing
        assert timeline.total_s <= (number + servers) * period_s * NEAR + 1e-9


def check_many(first, number):
    """Checks that many problems, and prints what was among them."""
    kinds = ["ports", "one medium", "media", "caller's port", "possible", "codecs"]
    seen = dict.fromkeys(kinds, 0)
    for seed in range(first, first + number):
        try:
            built, stages = check(seed)
            if stages is not None:
                check_simulation(seed, built, stages)
        except BaseException:
            print(f"seed {seed}")
            raise
        shared = built.problem.shared
        seen["possible"] += stages is not None
        used = {built.codecs[stage.stop] for stage in stages or ()}
        seen["codecs"] += len(used) > 1
        if shared is not None:
            seen["ports"] += bool(shared.ports)
            seen["one medium"] += len(shared.media) == 1
            seen["media"] += len(shared.media) > 1
            seen["caller's port"] += shared.caller_s > 0
    return seen


def test_clusters_with_wires_are_written_so_that_they_read_back() -> None:
    for seed in range(100):
        cluster = draw(seed)[1]
        assert cluster_from_toml(cluster_to_toml(cluster)) == cluster


def test_a_search_that_is_ended_claims_no_more_than_is_so() -> None:
    for seed in range(20):
        costs, cluster, choice, _ = draw(seed)
        built = build_problem(
            costs, cluster, range(costs.num_pieces + 1), deadline=within(1e-9), **choice
        )
        twin = WiresTwin(costs, cluster, serial=choice.pop("serial"))
        periods = [plan[2] for plan in twin.every_plan(**choice)]
        try:
            solution = solve_period(built.problem)
            bound_s, period_s = solution.bound_s, built.problem.period_s(solution.stages)
        except Infeasible as reason:
            bound_s, period_s = (math.inf if reason.is_proven else 0.0), math.inf
        assert bound_s <= min(periods, default=math.inf) * NEAR + 1e-12
        assert period_s >= min(periods, default=math.inf) / NEAR - 1e-12


def test_a_stage_has_pieces_in_a_fixed_order_with_ports_too() -> None:
    check(2496)  # once a stage of no pieces kept a port less busy than any


def test_plans_on_wires_as_they_are_are_the_best() -> None:
    seen = check_many(0, NUM_QUICK)
    assert all(count >= 5 for count in seen.values()), seen


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_many_plans_on_wires_as_they_are_are_the_best() -> None:
    print(check_many(NUM_QUICK, NUM_SOAK))
