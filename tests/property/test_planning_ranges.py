"""Costs over 24 orders of magnitude in one problem, against the twin that tries everything."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

import planner_twin as twin
from cutset.planning.deadline import within
from cutset.planning.problem import ByteCosts, ChainProblem
from cutset.planning.shared_wires import SharedMedium, SharedWires, StagePort
from cutset.planning.solvers.relaxed import Goal, solve_wide
from cutset.planning.solvers.solve import (
    Infeasible,
    find_best,
    solve_front,
    solve_latency,
    solve_period,
)
from cutset.planning.variant import Variant

LIMIT_S = 20.0
NUM_QUICK, NUM_SOAK = 120, 3000


def draw_seconds(rng: np.random.Generator, shape: object, zeros: float = 0.1) -> np.ndarray:
    """Seconds of any size from 1e-9 to 1e15, some of them 0, or all of one size."""
    if rng.random() < 0.3:
        scale = 10.0 ** rng.uniform(-9, 12)
        values = rng.integers(0, 10, shape) * scale
    else:
        values = 10.0 ** rng.uniform(-9, 15, shape)
    return np.where(rng.random(shape) < zeros, 0.0, values)


def draw_chain(rng: np.random.Generator) -> ChainProblem:
    """A small chain with any mixture of what a problem can have."""
    num = int(rng.integers(1, 7))
    is_fixed = rng.random() < 0.3
    counts = [1] * int(rng.integers(1, 5))
    if not is_fixed:
        while sum(counts) > 4 or (rng.random() < 0.4 and sum(counts) < 4):
            counts[int(rng.integers(len(counts)))] += 1 if sum(counts) < 4 else 0
            if sum(counts) >= 4:
                break
    size = len(counts)
    has_room = rng.random() < 0.4
    weights = np.concatenate([[0], np.cumsum(rng.integers(0, 6, num))])
    variants = []
    for k in range(size):
        reach = np.full(num, num)
        if rng.random() < 0.4:
            limit = rng.integers(3, 15)
            reach = np.searchsorted(weights, weights[:-1] + limit, side="right") - 1
        # Bytes that wait at the ends of a stage: what fits is neither a window nor one for all.
        room = rng.integers(0, 6, (num, num + 1)) if has_room and rng.random() < 0.7 else None
        for backend in range(int(rng.integers(1, 3))):
            seconds = draw_seconds(rng, num)
            if rng.random() < 0.4:
                seconds[rng.random(num) < 0.3] = math.inf
            variants.append(
                Variant(
                    device_class=k,
                    backend=f"b{backend}",
                    seconds=seconds,
                    furthest=reach,
                    room=room,
                )
            )
    is_uniform = rng.random() < 0.5

    def table() -> np.ndarray:
        if is_uniform:
            return np.full((size, size), float(draw_seconds(rng, 1)[0]))
        return draw_seconds(rng, (size, size))

    def maybe() -> np.ndarray:
        return draw_seconds(rng, size) if rng.random() < 0.4 else np.zeros(size)

    def by_boundary() -> np.ndarray:
        shape = (size, num + 1)
        return draw_seconds(rng, shape) if rng.random() < 0.4 else np.zeros(shape)

    costs = None
    if rng.random() < 0.4:
        costs = ByteCosts(
            send_s_per_byte=table(),
            receive_s_per_byte=table(),
            first_s=maybe(),
            last_s=maybe(),
            not_first_s=maybe(),
            not_last_s=maybe(),
            encode_s=by_boundary(),
            decode_s=by_boundary(),
        )
    shared = None
    if rng.random() < 0.5:
        ports, media = int(rng.integers(0, 3)), int(rng.integers(0, 3))
        shared = SharedWires(
            ports=tuple(
                StagePort(
                    device_class=int(rng.integers(size)),
                    by_start=draw_seconds(rng, num + 1),
                    by_stop=draw_seconds(rng, num + 1),
                )
                for _ in range(ports)
            ),
            media=tuple(
                SharedMedium(
                    latency_s=table() if rng.random() < 0.7 else np.zeros((size, size)),
                    s_per_byte=table() / 1e6,
                    source_s=maybe(),
                    sink_s=maybe(),
                )
                for _ in range(media)
            ),
            caller_class=int(rng.integers(-1, size)),
            caller_s=float(draw_seconds(rng, 1, zeros=0.5)[0]),
        )
    return ChainProblem(
        num_pieces=num,
        counts=tuple(counts),
        variants=tuple(variants),
        cut_bytes=draw_seconds(rng, num + 1) / 1e3,
        link_latency_s=table() if rng.random() < 0.7 else np.zeros((size, size)),
        link_s_per_byte=table() / 1e6 if rng.random() < 0.7 else np.zeros((size, size)),
        source_s=maybe(),
        sink_s=maybe(),
        overhead_s=maybe(),
        tie_cost=rng.integers(1, 7, num + 1).astype(float),
        byte_costs=costs,
        serial=bool(rng.random() < 0.4),
        fixed_order=is_fixed,
        shared=shared,
        num_stages=None if rng.random() < 0.7 else int(rng.integers(1, 4)),
        deadline=within(LIMIT_S),
    )


def close(value: float) -> object:
    return pytest.approx(value, rel=1e-9, abs=0)


def value_or_none(solve, problem, **limits):
    """The objective's value and what the solution claims, or None where it says that none is."""
    try:
        return solve(problem, **limits)
    except Infeasible as reason:
        proven = reason.is_proven
    assert proven
    return None


def check_front(front: list[tuple[float, float]], plans: list) -> None:
    """Every plan is matched by one of the front, and beats none of it in both, to 1e-9."""
    near = 1 + 1e-9
    for _, period_s, latency_s, _ in plans:
        assert any(p <= period_s * near and lat <= latency_s * near for p, lat in front)
        assert not any(period_s * near < p and latency_s * near < lat for p, lat in front)
    assert front == sorted(front)
    assert [lat for _, lat in front] == sorted((lat for _, lat in front), reverse=True)


def check_chain(problem: ChainProblem, rng: np.random.Generator) -> None:
    plans = [plan for plan in twin.every_plan(problem) if math.isfinite(plan[1])]
    if not plans:
        for solve in (solve_period, solve_latency, solve_front):
            with pytest.raises(Infeasible):
                solve(problem)
        return
    least_s, quickest_s = min(p for _, p, _, _ in plans), min(lat for _, _, lat, _ in plans)
    solution = solve_period(problem)
    assert problem.period_s(solution.stages) == close(least_s)
    assert solution.bound_s == close(least_s)
    solution = solve_latency(problem)
    assert problem.latency_s(solution.stages) == close(quickest_s)
    front = solve_front(problem)
    assert front.is_complete
    check_front([(problem.period_s(s), problem.latency_s(s)) for s in front.plans], plans)
    # A limit that some plan just keeps, and one that is half of it.
    at = plans[int(rng.integers(len(plans)))]
    for factor in (1.0, 0.5):
        for solve, name, limit_s, place in (
            (solve_period, "max_latency_s", at[2] * factor, 1),
            (solve_latency, "max_period_s", at[1] * factor, 2),
        ):
            fits = [plan[place] for plan in plans if plan[3 - place] <= limit_s * (1 + 1e-12)]
            near = [plan for plan in plans if plan[3 - place] == pytest.approx(limit_s, rel=1e-9)]
            if factor != 1.0 and near:
                continue  # rounding decides
            found = value_or_none(solve, problem, **{name: limit_s})
            assert (found is None) == (not fits)
            if found is not None:
                value_s = (problem.period_s, problem.latency_s)[place - 1](found.stages)
                assert value_s == close(min(fits))
    goal = Goal(by_latency=bool(rng.random() < 0.5))
    wide = solve_wide(problem, goal, find_best)
    best_s = quickest_s if goal.by_latency else least_s
    assert wide.bound_s <= best_s * (1 + 1e-9)
    if wide.stages is not None:
        assert goal.value_s(problem, wide.stages) >= best_s * (1 - 1e-9)


def check_many(first: int, number: int) -> float:
    """Checks that many problems; returns the longest time that one took."""
    longest_s = 0.0
    for seed in range(first, first + number):
        rng = np.random.default_rng(seed)
        problem = draw_chain(rng)
        begin = time.monotonic()
        try:
            check_chain(problem, rng)
        except BaseException:
            print(f"seed {seed}")
            raise
        longest_s = max(longest_s, time.monotonic() - begin)
    return longest_s


def test_chains_with_costs_of_any_size_are_solved_exactly() -> None:
    check_many(0, NUM_QUICK)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_many_chains_with_costs_of_any_size_are_solved_exactly() -> None:
    """Every search ends by itself: a limit that ended one would leave it unproven."""
    longest_s = check_many(NUM_QUICK, NUM_SOAK)
    print(f"{NUM_SOAK} chains, the longest {longest_s:.2f} s")
