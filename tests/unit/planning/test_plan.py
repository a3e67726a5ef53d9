import json

import msgspec
import pytest

from cutset.cluster.devices import Cluster, Device, Link
from cutset.costs.cost_model import costs_from_flops
from cutset.errors import PlanError
from cutset.planning import (
    PlanRequest,
    load_plan,
    make_plan,
    plan_from_json,
    plan_to_json,
    simulate_plan,
)
from planner_graphs import chain


def made():
    graph, cuts = chain([4, 4, 2])
    cluster = Cluster(
        devices=(Device(name="a", memory_bytes=10**6), Device(name="b")),
        link=Link(bandwidth_bytes_per_s=40.0, latency_s=0.5),
    )
    return make_plan(
        graph, cuts, costs_from_flops(graph, cuts, flops_per_s=1.0), PlanRequest(cluster=cluster)
    )


def test_a_plan_reads_back_equal(tmp_path):
    plan = made()
    assert plan_from_json(plan_to_json(plan)) == plan
    (tmp_path / "plan.json").write_text(plan_to_json(plan))
    assert load_plan(tmp_path / "plan.json") == plan


def test_json_has_the_keys_that_scripts_rely_on():
    document = json.loads(plan_to_json(made()))
    assert {"stages", "period_s", "latency_s", "bound_s", "gap"} <= set(document)
    assert {
        "index", "first", "last", "units", "device", "compute_s", "weight_bytes",
        "output_bytes_per_sample",
    } <= set(document["stages"][0])  # fmt: skip


def test_unknown_keys_wrong_types_and_newer_formats_are_errors(tmp_path):
    document = json.loads(plan_to_json(made()))
    with pytest.raises(PlanError, match="unknown field `colour`"):
        plan_from_json(json.dumps(document | {"colour": "red"}))
    with pytest.raises(PlanError, match=r"Expected `float`, got `str` - at `\$\.period_s`"):
        plan_from_json(json.dumps(document | {"period_s": "4"}))
    with pytest.raises(PlanError, match=r"or 'cutset-plan/2', got 'cutset-plan/3'"):
        plan_from_json(json.dumps(document | {"format": "cutset-plan/3"}))
    with pytest.raises(PlanError, match="'cutset-plan/2' is not the format of plans with these"):
        plan_from_json(json.dumps(document | {"format": "cutset-plan/2"}))
    with pytest.raises(PlanError, match="cannot be read"):
        load_plan(tmp_path / "none.json")


def _grouped(*replicas, **changed):
    """A plan of two stages as a document, of which the first one has a group."""
    document = json.loads(plan_to_json(made()))
    rows = [
        {"device": name, "share": share, "compute_s": 1.0, "memory_bytes": 10}
        for name, share in replicas
    ]
    document["stages"][0]["replicas"] = rows
    return json.dumps(document | {"format": "cutset-plan/2"} | changed)


def test_a_plan_with_a_group_reads_back_equal():
    first, _ = made().stages
    plan = plan_from_json(_grouped((first.device, 0.25), ("c", 0.75)))
    assert plan_from_json(plan_to_json(plan)) == plan
    assert [(r.device, r.share, r.busy_s) for r in plan.stages[0].group] == [
        (first.device, 0.25, 1.0),
        ("c", 0.75, 1.0),
    ]


def test_plans_without_groups_are_written_as_they_always_were():
    plan = made()
    assert "replicas" not in plan_to_json(plan)
    assert msgspec.structs.replace(plan.stages[0], replicas=()) == plan.stages[0]
    (alone,) = plan.stages[0].group
    assert (alone.device, alone.share, alone.busy_s) == (
        plan.stages[0].device, 1.0, plan.stages[0].busy_s
    )  # fmt: skip


@pytest.mark.parametrize(
    ("replicas", "changed", "words"),
    [
        ([("{0}", 1.0)], {}, "2 to 1024 distinct devices, got 1"),
        ([("{0}", 0.5), ("{0}", 0.5)], {}, "2 to 1024 distinct devices, got 2"),
        ([("c", 0.5), ("{0}", 0.5)], {}, "replicas begin with 'c', device is another one"),
        ([("{0}", 0.5), ("c", 0.4)], {}, "shares of a group add up to 1, got 0.9"),
        ([("{0}", 0.5), ("c", 0.5 + 2e-9)], {}, "shares of a group add up to 1, got 1.00000000"),
        ([("{0}", 1.0), ("c", 0.0)], {}, r"Expected `float` > 0.0 - at `\$.stages\[0\].replicas"),
        ([("{0}", 0.5), ("c", 1.5)], {}, "Expected `float` <= 1.0"),
        ([("{0}", 0.5), ("{1}", 0.5)], {}, "a device is in two groups"),
        ([("{0}", 0.5), ("c", 0.5)], {"format": "cutset-plan/1"}, "is not the format of plans"),
    ],
)
def test_groups_that_cannot_be_are_errors(replicas, changed, words):
    first, second = (stage.device for stage in made().stages)
    rows = [(name.format(first, second), share) for name, share in replicas]
    with pytest.raises(PlanError, match=words):
        plan_from_json(_grouped(*rows, **changed))


def test_the_simulation_of_a_plan_agrees_with_its_predictions():
    plan = made()
    timeline = simulate_plan(plan, num_microbatches=20)
    assert timeline.first_latency_s == pytest.approx(plan.latency_s)
    assert timeline.steady_period_s == pytest.approx(plan.period_s)
    assert {slot.resource for slot in timeline.slots} == {"stage 0", "link 0 -> 1", "stage 1"}
    assert plan.rows_per_s == pytest.approx(1 / plan.period_s)


def test_a_plan_is_frozen():
    with pytest.raises(AttributeError):
        made().period_s = 1.0
    assert msgspec.structs.replace(made(), period_s=1.0).period_s == 1.0


@pytest.mark.parametrize(("caller", "links"), [(None, 3), ("a", 2)])
def test_a_plan_says_which_links_go_without_keys(caller, links):
    graph, cuts = chain([4, 4])
    costs = costs_from_flops(graph, cuts, flops_per_s=1.0)
    cluster = Cluster(
        devices=(Device(name="a"), Device(name="b")),
        link=Link(bandwidth_bytes_per_s=1e6, secured=False),
        caller=caller,
    )
    plan = make_plan(graph, cuts, costs, PlanRequest(cluster=cluster, num_stages=2))
    notes = [note for note in plan.notes if "are not encrypted" in note]
    assert len(notes) == links
    between = ("rows from a to b", "rows from b to a")
    assert any(words in note for note in notes for words in between)
    assert all(note.startswith("run with this cluster file, ") for note in notes)
    with_keys = msgspec.structs.replace(cluster, link=Link(bandwidth_bytes_per_s=1e6))
    plan = make_plan(graph, cuts, costs, PlanRequest(cluster=with_keys, num_stages=2))
    assert not any("encrypted" in note for note in plan.notes)
