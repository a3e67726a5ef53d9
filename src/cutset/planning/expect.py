"""What a plan takes on its cluster with more than the planner's sums.

The planner adds up compute, transfers and a constant overhead for each stage. What a byte takes
from the processors at both ends of a link depends on who the neighbours are, and changes which plan
is the best by little; so it is added once the plan is made. And the compute of a stage is more or
less than the sum of its pieces, once it was measured as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from cutset.devices import Cluster
from cutset.planning.plan import Expected, Plan


def expect_on_cluster(
    plan: Plan,
    cluster: Cluster,
    input_bytes_per_sample: int,
    compute_s: Sequence[float] | None = None,
    rested_s: Sequence[float] | None = None,
) -> Plan:
    """The plan with `Plan.expected`; unchanged where there is nothing to add.

    A stage is busy with computing, its overhead, and the bytes that it receives and sends; one on
    the caller's device also with those that the caller does. The period is the largest of these and
    of all transfers.

    Args:
        plan: made for `cluster`.
        cluster: the devices and links.
        input_bytes_per_sample: of the model's inputs, for one row.
        compute_s: seconds that each stage takes for one micro-batch, measured as a whole on its
            device; the planner's sums where None.
        rested_s: the same for one that has rested before, which counts for the latency;
            `compute_s` where None.
    """
    links = (cluster.link, *(override.link for override in cluster.overrides))
    costs_bytes = any(link.send_s_per_byte or link.receive_s_per_byte for link in links)
    if not costs_bytes and compute_s is None:
        return plan
    planned_s = [stage.compute_s for stage in plan.stages]
    stages_s = planned_s if compute_s is None else list(compute_s)
    stages = plan.stages
    places = [cluster.caller, *(stage.device for stage in stages), cluster.caller]
    row_bytes = [
        input_bytes_per_sample,
        *(stage.output_bytes_per_sample for stage in stages),
    ]
    lost_s = dict.fromkeys([stage.device for stage in stages], 0.0)
    message_s = []
    for (source, target), num_bytes in zip(pairwise(places), row_bytes, strict=True):
        ends = {}
        if source is not None and target is not None and source != target:
            link = cluster.link_between(source, target)
            ends = {source: link.send_s_per_byte, target: link.receive_s_per_byte}
        for device, s_per_byte in ends.items():
            if device in lost_s:
                lost_s[device] += s_per_byte * num_bytes * plan.micro_batch
        message_s.append(sum(ends.values()) * num_bytes * plan.micro_batch)
    moves_s = [stages[0].receive_s, *(stage.send_s for stage in stages)]
    busy_s = [
        seconds + stage.overhead_s + lost_s[stage.device]
        for stage, seconds in zip(stages, stages_s, strict=True)
    ]
    if plan.serial:
        loads_s = [a + b + c for a, b, c in zip(moves_s, busy_s, moves_s[1:], strict=False)]
    else:
        loads_s = [*busy_s, *moves_s]
    expected = Expected(
        where="cluster",
        compute_s=tuple(stages_s),
        message_s=tuple(message_s),
        period_s=max(loads_s),
        latency_s=plan.latency_s + sum(rested_s or stages_s) - sum(planned_s),
    )
    return msgspec.structs.replace(plan, expected=expected)
