"""What a plan takes on its cluster where its stages were measured there as wholes.

The planner adds up the pieces of a stage; the stage takes more or less than that.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cutset.cluster.devices import Cluster
from cutset.planning.plan import Expected, Plan
from cutset.planning.plan_messages import ways_of


def expect_on_cluster(
    plan: Plan,
    cluster: Cluster,
    input_bytes_per_sample: int,
    compute_s: Sequence[float],
    rested_s: Sequence[float] | None = None,
) -> Plan:
    """The plan with `Plan.expected`.

    A stage is busy with computing, its overhead, and the bytes that it receives and sends; one on
    the caller's device also with those that the caller does. The period is the largest of these, of
    all transfers, and of what ports and media are busy with.

    Args:
        plan: made for `cluster`.
        cluster: the devices and links.
        input_bytes_per_sample: of the model's inputs, for one row.
        compute_s: seconds that each stage takes for one micro-batch, measured as a whole on its
            device.
        rested_s: the same for one that has rested before, which counts for the latency;
            `compute_s` where None.
    """
    devices = {device.name: device for device in cluster.devices}
    planned_s = [stage.compute_s for stage in plan.stages]
    stages_s = list(compute_s)
    stages = plan.stages
    sent = plan.input_bytes_per_sample
    row_bytes = [
        input_bytes_per_sample if sent is None else sent,
        *(stage.travelling_bytes for stage in stages),
    ]
    lost_s = dict.fromkeys([stage.device for stage in stages], 0.0)
    message_s = []
    ways = ways_of(cluster, [stage.device for stage in stages])
    for (source, target, way), num_bytes in zip(ways, row_bytes, strict=True):
        ends = {} if way is None else {source: way.send_s_per_byte, target: way.receive_s_per_byte}
        for device, s_per_byte in ends.items():
            if device in lost_s:
                lost_s[device] += s_per_byte * num_bytes * plan.micro_batch
        message_s.append(sum(ends.values()) * num_bytes * plan.micro_batch)
    moves_s = [stages[0].receive_s, *(stage.send_s for stage in stages)]
    busy_s = [
        seconds + stage.coding_s + cluster.overhead_on(devices[stage.device]) + lost_s[stage.device]
        for stage, seconds in zip(stages, stages_s, strict=True)
    ]
    if plan.serial:
        loads_s = [a + b + c for a, b, c in zip(moves_s, busy_s, moves_s[1:], strict=False)]
    else:
        loads_s = [*busy_s, *moves_s]
    loads_s += [use.busy_s for use in plan.shared_wires]
    expected = Expected(
        where="nodes",
        compute_s=tuple(stages_s),
        message_s=tuple(message_s),
        period_s=max(loads_s),
        latency_s=plan.latency_s + sum(rested_s or stages_s) - sum(planned_s),
    )
    return msgspec.structs.replace(plan, expected=expected)
