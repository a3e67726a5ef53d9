"""Plans MobileNetV2 for a server and two small boards, and says what each choice would bring.

Run it with ``python examples/plan_unequal.py [CLUSTER.toml]``; nothing but the plan is computed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cutset

CLUSTER = Path(__file__).with_name("cluster.toml")


def main() -> int:
    """Runs the example."""
    cluster = cutset.load_cluster(Path(sys.argv[1]) if len(sys.argv) > 1 else CLUSTER)
    prepared = cutset.prepare_model("torchvision:mobilenet_v2", weights="random:0")
    request = cutset.PlanRequest(cluster=cluster)

    # Multiply-adds stand for seconds here; for real devices give each one its own profile.
    plan = cutset.plan_model(prepared, request, costs="flops")
    print("the best plan:")
    for stage in plan.stages:
        print(f"  {stage.device:<8} up to {stage.last:<14} {stage.compute_s * 1e3:6.1f} ms a row")
    print(
        f"  a row every {plan.period_s * 1e3:.1f} ms, {plan.latency_s * 1e3:.1f} ms for one alone"
    )
    print(f"  nothing is faster than {plan.bound_s * 1e3:.1f} ms here ({plan.bound_by})")

    print("other numbers of stages:")
    for other in plan.alternatives:
        what = "do not split" if other.num_stages == 1 else f"{other.num_stages} stages"
        if other.period_s is None:
            print(f"  {what}: {other.reason}")
        else:
            print(f"  {what}: a row every {other.period_s * 1e3:.1f} ms")

    print("every plan that no other beats in both throughput and latency:")
    for each in cutset.plan_front(prepared, request, costs="flops"):
        where = ", ".join(f"{stage.last} on {stage.device}" for stage in each.stages)
        print(f"  {each.rows_per_s:6.1f} rows/s, {each.latency_s * 1e3:6.1f} ms: {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
