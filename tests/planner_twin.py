"""The planner's twin: the same questions answered by trying everything, in plain Python.

It shares no code with the solver but the dataclass that states the problem, and costs plans from
the problem's numbers by its own formulas.
"""

import itertools
import math

from cutset.planning.problem import ChainProblem


def stage_seconds(problem, start, stop, device_class, num_stages):
    best = math.inf
    for variant in problem.variants:
        is_possible = variant.device_class == device_class and stop <= variant.furthest[start]
        if is_possible and (variant.room is None or variant.room[start, stop] >= num_stages):
            best = min(best, math.fsum(variant.seconds[start:stop]))
    return best


def every_plan(problem: ChainProblem):
    """Yields (stages, period, latency, ties); stages are (start, stop, class)."""
    num = problem.num_pieces
    devices = [c for c, count in enumerate(problem.counts) for _ in range(count)]
    most = min(num, len(devices))
    sizes = range(1, most + 1) if problem.num_stages is None else [problem.num_stages]
    choose = itertools.combinations if problem.fixed_order else itertools.permutations
    for size in sizes:
        if size > most:
            continue
        orders = set(choose(devices, size))
        for cuts in itertools.combinations(range(1, num), size - 1):
            edges = (0, *cuts, num)
            for order in orders:
                yield _cost(problem, edges, order)


def _cost(problem, edges, order):
    size = len(order)
    work = [stage_seconds(problem, edges[k], edges[k + 1], order[k], size) for k in range(size)]
    moves = [float(problem.source_s[order[0]])]
    for k in range(1, size):
        a, b = order[k - 1], order[k]
        moves.append(
            problem.link_latency_s[a, b]
            + problem.cut_bytes[edges[k]] * problem.link_s_per_byte[a, b]
        )
    moves.append(float(problem.sink_s[order[-1]]))
    codecs = 0.0
    busy = [[work[k], problem.overhead_s[order[k]]] for k in range(size)]
    if problem.serial:
        for k in range(size):
            busy[k] += [moves[k], moves[k + 1]]
    costs = problem.byte_costs
    if costs is not None:
        for k, c in enumerate(order):
            if k == 0:
                busy[k] += [costs.first_s[c], costs.decode_s[c, 0]]
                codecs += costs.decode_s[c, 0]
            else:
                taken = problem.cut_bytes[edges[k]] * costs.receive_s_per_byte[order[k - 1], c]
                busy[k] += [taken, costs.not_first_s[c], costs.decode_s[c, edges[k]]]
                codecs += costs.decode_s[c, edges[k]]
            if k == size - 1:
                busy[k].append(costs.last_s[c])
            else:
                taken = problem.cut_bytes[edges[k + 1]] * costs.send_s_per_byte[c, order[k + 1]]
                busy[k] += [taken, costs.not_last_s[c], costs.encode_s[c, edges[k + 1]]]
                codecs += costs.encode_s[c, edges[k + 1]]
    loads = [math.fsum(parts) for parts in busy]
    period = max(_shared(problem, edges, order) + (loads if problem.serial else loads + moves))
    stages = tuple((edges[k], edges[k + 1], order[k]) for k in range(size))
    ties = sum(problem.tie_cost[e] for e in edges[1:-1])
    return stages, period, math.fsum([*work, *moves, codecs]), ties


def _shared(problem, edges, order):
    """Seconds of everything that several messages share."""
    shared = problem.shared
    if shared is None:
        return [0.0]
    busy = [] if shared.caller_class in (order[0], order[-1]) else [shared.caller_s]
    for port in shared.ports:
        for k, c in enumerate(order):
            if c == port.device_class:
                busy.append(port.by_start[edges[k]] + port.by_stop[edges[k + 1]])
    for medium in shared.media:
        parts = [medium.source_s[order[0]], medium.sink_s[order[-1]]]
        for k in range(1, len(order)):
            a, b = order[k - 1], order[k]
            parts.append(medium.latency_s[a, b])
            parts.append(problem.cut_bytes[edges[k]] * medium.s_per_byte[a, b])
        busy.append(math.fsum(parts))
    return [*busy, 0.0]


def best_period(problem, max_latency_s=math.inf):
    fits = [p for _, p, lat, _ in every_plan(problem) if lat <= max_latency_s * (1 + 1e-9)]
    return min(fits, default=math.inf)


def best_latency(problem, max_period_s=math.inf):
    fits = [lat for _, p, lat, _ in every_plan(problem) if p <= max_period_s * (1 + 1e-9)]
    return min(fits, default=math.inf)


def best_ties(problem, period_s):
    return min(t for _, p, _, t in every_plan(problem) if p <= period_s * (1 + 1e-9))


def front(problem):
    """Period and latency of every plan that no other beats in both, of rising period."""
    points = sorted((p, lat) for _, p, lat, _ in every_plan(problem) if math.isfinite(lat))
    kept = []
    for period, latency in points:
        if not kept or latency < kept[-1][1] * (1 - 1e-9):
            if kept and period <= kept[-1][0] * (1 + 1e-9):
                kept.pop()
            kept.append((period, latency))
    return kept
