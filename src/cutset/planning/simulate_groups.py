"""The simulation of a pipeline in which stages have groups of devices.

A micro-batch's replica in each group follows from its number as it does where the plan runs
(`cutset.planning.turns`). Every replica, and every link between two, takes what comes its way in
the order of numbers. Ports and media that several messages share are not looked at.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TypeAlias

from cutset.planning.plan import Plan
from cutset.planning.turns import Turns, whole_weights

TellSlot: TypeAlias = Callable[[str, str, int, int, float, float], None]
"""Told of all that was done: its resource, ``"compute"`` or ``"transfer"``, the stage that computes
or sends, which micro-batch, its start, its end."""


def run_groups(
    plan: Plan, *, num_microbatches: int, window: int | None, done: TellSlot
) -> list[float]:
    """When each answer comes; `done` is told of all on the way."""
    groups = [stage.group for stage in plan.stages]
    shares = [[replica.share for replica in group] for group in groups]
    turns = Turns(weights=tuple(map(whole_weights, shares)))
    moves_s = {(m.source, m.target, m.after): m.seconds for m in plan.messages}
    caller = [m.source for m in plan.messages if m.after is None]
    home = caller[0] if caller else ""
    free_s: dict[str, float] = {}
    link_free_s: dict[tuple[str, str, int | None], float] = {}
    answers: list[float] = []
    for number in range(num_microbatches):
        route = [group[turns.replica(k, number)] for k, group in enumerate(groups)]
        places = [home, *(replica.device for replica in route), home]
        is_held = window is not None and number >= window
        ready_s = answers[number - window] if is_held and window is not None else 0.0
        for k, (source, target) in enumerate(itertools.pairwise(places)):
            link = (source, target, k - 1 if k else None)
            move_s = moves_s.get(link, 0.0)
            if move_s > 0:
                start_s = max(ready_s, link_free_s.get(link, 0.0))
                if plan.serial and k < len(route):
                    start_s = max(start_s, free_s.get(target, 0.0))
                ready_s = link_free_s[link] = start_s + move_s
                done(_link_name(k, len(route)), "transfer", k - 1, number, start_s, ready_s)
                if plan.serial and k:
                    free_s[source] = ready_s + route[k - 1].overhead_s
            if k < len(route):
                replica = route[k]
                start_s = max(ready_s, free_s.get(target, 0.0))
                ready_s = start_s + replica.compute_s
                free_s[target] = ready_s + replica.overhead_s
                name = f"stage {k}"
                if len(groups[k]) > 1:
                    name += f" replica {groups[k].index(replica)}"
                done(name, "compute", k, number, start_s, ready_s)
        answers.append(ready_s)
    return answers


def _link_name(k: int, num_stages: int) -> str:
    ends = ["caller", *map(str, range(num_stages)), "caller"]
    return f"link {ends[k]} -> {ends[k + 1]}"
