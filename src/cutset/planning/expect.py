"""What a plan takes on its cluster with what the bytes of messages take from computing.

The planner adds up compute, transfers and a constant overhead for each stage. What a byte takes
from the processors at both ends of a link depends on who the neighbours are, and changes which plan
is the best by little; so it is added once the plan is made.
"""

from __future__ import annotations

from itertools import pairwise

import msgspec

from cutset.devices import Cluster
from cutset.planning.plan import Expected, Plan


def expect_on_cluster(plan: Plan, cluster: Cluster, input_bytes_per_sample: int) -> Plan:
    """The plan with `Plan.expected`; unchanged where bytes cost no processor anything.

    A stage is busy with computing, its overhead, and the bytes that it receives and sends; one on
    the caller's device also with those that the caller does. The period is the largest of these and
    of all transfers.

    Args:
        plan: made for `cluster`.
        cluster: the devices and links.
        input_bytes_per_sample: of the model's inputs, for one row.
    """
    links = (cluster.link, *(override.link for override in cluster.overrides))
    if not any(link.send_s_per_byte or link.receive_s_per_byte for link in links):
        return plan
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
    busy_s = [stage.busy_s + lost_s[stage.device] for stage in stages]
    if plan.serial:
        loads_s = [a + b + c for a, b, c in zip(moves_s, busy_s, moves_s[1:], strict=False)]
    else:
        loads_s = [*busy_s, *moves_s]
    expected = Expected(
        where="cluster",
        compute_s=tuple(stage.compute_s for stage in stages),
        message_s=tuple(message_s),
        period_s=max(loads_s),
        latency_s=plan.latency_s,
    )
    return msgspec.structs.replace(plan, expected=expected)
