import json
from pathlib import Path

import msgspec
import pytest

from cutset.cluster.cluster_file import load_cluster
from cutset.cluster.devices import Cluster, Device, Link, LinkOverride
from cutset.errors import InfeasiblePlan, PlanError
from cutset.planning import (
    PlanRequest,
    load_cost_graph,
    pareto_cost_graph,
    plan_cost_graph,
    plan_from_json,
    plan_to_json,
)
from cutset.planning.anyorder.cost_graph import CostGraph, CostNode, CostTensor
from cutset.planning.deadline import Deadline, OutOfTime

ROOT = Path(__file__).parents[4]
TWO = Cluster(devices=(Device(name="a"), Device(name="b")))


def diamond(transfers="neighbour", num_bytes=0, group="", weight=0):
    """s feeds l and r, which feed t; in the file's order r comes before l."""
    sizes = {"s": 1.0, "r": 3.0, "l": 1.0, "t": 1.0}
    return CostGraph(
        format="cutset-cost-graph/1",
        transfers=transfers,
        nodes=tuple(
            CostNode(
                name=name,
                seconds={"": seconds},
                weight_bytes=weight,
                group=group if name in "sl" else "",
            )
            for name, seconds in sizes.items()
        ),
        tensors=(
            CostTensor(source="s", targets=("l", "r"), num_bytes=num_bytes),
            CostTensor(source="l", targets=("t",), num_bytes=num_bytes),
            CostTensor(source="r", targets=("t",), num_bytes=num_bytes),
        ),
    )


def test_a_downset_beats_every_prefix_of_the_given_order():
    made = plan_cost_graph(diamond(), PlanRequest(cluster=TWO))
    assert made.period_s == 4.0
    prefix_free = plan_cost_graph(diamond(group="together"), PlanRequest(cluster=TWO))
    assert prefix_free.period_s == 4.0
    assert {"s", "l"} <= set(prefix_free.stages[0].units)
    assert made.family == "downset"
    assert (made.bound_by, made.gap) == ("exhaustion", 0.0)


def test_neighbours_pass_on_what_is_alive():
    link = Link(bandwidth_bytes_per_s=1.0, latency_s=0.5)
    cluster = Cluster(devices=(Device(name="a"), Device(name="b")), link=link)
    made = plan_cost_graph(diamond(num_bytes=2), PlanRequest(cluster=cluster))
    # After s alone its tensor crosses: 2.5 s, beside stages of 1 and 5. After two nodes s and what
    # l or r made cross: 4.5 s, beside 2 and 4. After three, l's and r's: 4.5 s, beside 5 and 1.
    assert made.period_s == 4.5
    assert made.stages[0].send_s == 4.5
    assert made.latency_s == 10.5
    serial = plan_cost_graph(diamond(num_bytes=2), PlanRequest(cluster=cluster, serial=True))
    assert serial.period_s == 6.0  # one device: any cut would cost more
    assert len(serial.stages) == 1


def test_through_the_host_each_tensor_is_paid_where_it_enters_and_leaves():
    link = Link(bandwidth_bytes_per_s=4.0)
    cluster = Cluster(devices=(Device(name="a"), Device(name="b")), link=link)
    made = plan_cost_graph(diamond("host", num_bytes=1), PlanRequest(cluster=cluster))
    # {s, l} and {r, t}: s and l leave (0.5), s and l enter (0.5): 2.5 and 4.5. {s, r}: 4.5, 2.5.
    assert made.period_s == 4.5
    assert made.latency_s == 7.0
    assert [s.compute_s + s.receive_s for s in made.stages] in ([2.5, 4.5], [4.5, 2.5])


def test_exact_numbers_of_stages_and_devices_seconds():
    graph = msgspec.structs.replace(
        diamond(), nodes=tuple(
            CostNode(name=n.name, seconds={"": n.seconds[""], "b": 10.0}) for n in diamond().nodes
        )
    )  # fmt: skip
    assert plan_cost_graph(graph, PlanRequest(cluster=TWO)).period_s == 6.0
    assert plan_cost_graph(graph, PlanRequest(cluster=TWO, num_stages=2)).period_s == 10.0
    with pytest.raises(PlanError, match="no plan has 5 stages over 4 nodes and 2 devices"):
        plan_cost_graph(graph, PlanRequest(cluster=TWO, num_stages=5))


def test_memory_that_nothing_fits_says_the_least_that_would_do():
    cluster = Cluster(
        devices=(Device(name="a", memory_bytes=10), Device(name="b", memory_bytes=25))
    )
    with pytest.raises(InfeasiblePlan) as caught:
        plan_cost_graph(diamond(weight=10), PlanRequest(cluster=cluster))
    assert caught.value.device == "b"
    assert caught.value.needed_bytes == 30
    assert caught.value.available_bytes == 25


def test_the_example_plans_and_reads_back():
    made = plan_cost_graph(
        ROOT / "examples/cost-graph.json", PlanRequest(cluster=one_kind_of_link())
    )
    assert plan_from_json(plan_to_json(made)) == made
    assert sum(len(stage.units) for stage in made.stages) == 5


def one_kind_of_link():
    return msgspec.structs.replace(load_cluster(ROOT / "examples/cluster.toml"), overrides=())


def test_clusters_of_many_kinds_of_links_are_refused():
    other = LinkOverride(source="a", target="b", link=Link())
    with pytest.raises(PlanError, match="one kind of link"):
        plan_cost_graph(
            diamond(), PlanRequest(cluster=msgspec.structs.replace(TWO, overrides=(other,)))
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "cutset-cost-graph/2"}, "expected format 'cutset-cost-graph/1'"),
        ({"transfers": "bus"}, r"\$\.transfers: expected 'neighbour' or 'host'"),
        ({"nodes": []}, r"\$\.nodes: a cost graph needs at least one node"),
        ({"colour": 1}, "unknown field `colour`"),
        ({"nodes": [{"name": "a", "seconds": {"": -1}}]}, r"\$\.nodes\[0\]: seconds and bytes"),
        (
            {"nodes": [{"name": "a", "seconds": {"": 1}}, {"name": "a", "seconds": {"": 1}}]},
            r"\$\.nodes\[1\]\.name: 'a' is the name of another node",
        ),
        (
            {"tensors": [{"source": "a", "targets": ["z"], "num_bytes": 1}]},
            r"\$\.tensors\[0\]: 'z' is no node",
        ),
        (
            {"tensors": [{"source": "a", "targets": ["a"], "num_bytes": -1}]},
            r"\$\.tensors\[0\]\.num_bytes: must be 0 or more",
        ),
    ],
)
def test_a_bad_file_is_an_error_with_its_path(tmp_path, change, message):
    good = {
        "format": "cutset-cost-graph/1",
        "nodes": [{"name": "a", "seconds": {"": 1.0}}],
        "tensors": [],
    }
    path = tmp_path / "g.json"
    path.write_text(json.dumps(good))
    assert load_cost_graph(path).nodes[0].name == "a"
    path.write_text(json.dumps(good | change))
    with pytest.raises(PlanError, match=message):
        load_cost_graph(path)


def graph_of(seconds, tensors=(), **changes):
    """A graph of nodes n0, n1, ... with these seconds; `tensors` are (source, targets, bytes)."""
    return CostGraph(
        format="cutset-cost-graph/1",
        nodes=tuple(
            CostNode(name=f"n{k}", seconds=each, **{key: v[k] for key, v in changes.items()})
            for k, each in enumerate(seconds)
        ),
        tensors=tuple(
            CostTensor(source=f"n{a}", targets=tuple(f"n{b}" for b in targets), num_bytes=size)
            for a, targets, size in tensors
        ),
    )  # fmt: skip


def two_branches():
    """Device a is quick at the first node of each branch, b at the second."""
    first, second, ends = {"a": 0.01, "b": 0.1}, {"a": 0.1, "b": 0.01}, {"": 0.001}
    return graph_of(
        [ends, first, second, first, second, ends],
        [(0, (1, 3), 10), (1, (2,), 10), (3, (4,), 10), (2, (5,), 10), (4, (5,), 10)],
    )


def on(*devices, **link):
    return Cluster(devices=devices, link=Link(**{"bandwidth_bytes_per_s": 12.5e6, **link}))


def test_overhead_counts_in_the_period():
    cluster = on(Device(name="a", overhead_s=0.05), Device(name="b"), latency_s=0.001)
    made = plan_cost_graph(two_branches(), PlanRequest(cluster=cluster))
    # b would take 100 ms for the first node of a branch, so a does both: 1 + 10 + 10 + 50.
    assert made.period_s == pytest.approx(0.071)
    assert [stage.overhead_s for stage in made.stages] == [pytest.approx(0.05), 0.0]
    assert made.latency_s == pytest.approx(0.021 + 0.021 + 0.001 + 20 / 12.5e6)


def test_what_bytes_take_from_computing_counts_in_the_period():
    graph = graph_of(
        [{"": 0.1}, {"": 0.005}, {"": 0.095}], [(0, (1,), 10_000_000), (1, (2,), 100_000)]
    )
    free = on(Device(name="a"), Device(name="b"), bandwidth_bytes_per_s=125e6)
    assert plan_cost_graph(graph, PlanRequest(cluster=free)).period_s == pytest.approx(0.1)
    costly = msgspec.structs.replace(
        free,
        link=msgspec.structs.replace(free.link, send_s_per_byte=3e-9, receive_s_per_byte=8e-9),
    )
    made = plan_cost_graph(graph, PlanRequest(cluster=costly))
    # After n0 the receiver would take 100 + 10 MB x 8 ns = 180 ms, the sender 130.
    assert [stage.last for stage in made.stages] == ["n1", "n2"]
    assert made.period_s == pytest.approx(0.105 + 100_000 * 3e-9)


def test_limits_hold_or_the_best_that_there_is_is_said():
    cluster = on(Device(name="a"), Device(name="b"), latency_s=0.001)
    made = plan_cost_graph(
        two_branches(), PlanRequest(cluster=cluster, max_latency_s=0.05, min_rows_per_s=40)
    )
    assert made.period_s == pytest.approx(0.021)
    assert (made.max_latency_s, made.min_rows_per_s) == (0.05, 40)
    with pytest.raises(PlanError, match=r"at most 1e-06 s for one .*: the least is 0.0430016"):
        plan_cost_graph(two_branches(), PlanRequest(cluster=cluster, max_latency_s=1e-6))
    with pytest.raises(PlanError, match=r"no plan gives 60 rows/s: the most is 47.619 rows/s$"):
        plan_cost_graph(two_branches(), PlanRequest(cluster=cluster, min_rows_per_s=60))
    slow = on(Device(name="a"), Device(name="b"), latency_s=1.0)
    halves = graph_of([{"": 1.0}, {"": 1.0}], [(0, (1,), 0)])
    assert plan_cost_graph(halves, PlanRequest(cluster=slow, max_latency_s=2.5)).period_s == 2.0
    with pytest.raises(PlanError, match="and gives 1 rows/s: the least is 3 s"):
        plan_cost_graph(halves, PlanRequest(cluster=slow, max_latency_s=2.5, min_rows_per_s=1))


def test_objectives_and_the_front():
    slow = on(Device(name="a"), Device(name="b"), latency_s=1.0)
    halves = graph_of([{"": 1.0}, {"": 1.0}], [(0, (1,), 0)])
    alone = plan_cost_graph(halves, PlanRequest(cluster=slow, objective="latency"))
    assert (alone.objective, alone.latency_s, len(alone.stages)) == ("latency", 2.0, 1)
    front = pareto_cost_graph(halves, PlanRequest(cluster=slow))
    assert [(each.period_s, each.latency_s) for each in front] == [(1.0, 3.0), (2.0, 2.0)]
    with pytest.raises(ValueError, match="objective is"):
        plan_cost_graph(halves, PlanRequest(cluster=slow, objective="pareto"))


def test_a_fixed_order_of_devices_is_kept():
    swapped = on(Device(name="b"), Device(name="a"), latency_s=0.001)
    assert plan_cost_graph(two_branches(), PlanRequest(cluster=swapped)).period_s == pytest.approx(
        0.021
    )
    made = plan_cost_graph(two_branches(), PlanRequest(cluster=swapped, fixed_order=True))
    # b has to begin, so each gets a branch: 1 + 100 + 10 ms and 10 + 100 + 1 ms.
    assert [stage.device for stage in made.stages] == ["b", "a"]
    assert made.period_s == pytest.approx(0.111)
    first_on_a = graph_of([{"a": 1.0}, {"b": 1.0}], [(0, (1,), 0)])
    with pytest.raises(PlanError, match="with --fixed-order; without it there is one"):
        plan_cost_graph(first_on_a, PlanRequest(cluster=swapped, fixed_order=True))


def test_null_forbids_a_device_that_the_reference_would_allow():
    graph = graph_of([{"": 1.0, "a": None}, {"": 1.0}], [(0, (1,), 0)])
    made = plan_cost_graph(graph, PlanRequest(cluster=TWO))
    assert [stage.device for stage in made.stages] == ["b", "a"]


def test_names_and_profiles_that_are_not_used_are_said():
    graph = graph_of([{"": 0.01, "pi-7": 0.5}, {"": 0.01}], [(0, (1,), 10)])
    cluster = on(Device(name="pi-1", profile="p.json"), Device(name="b"))
    unknown, profile = plan_cost_graph(graph, PlanRequest(cluster=cluster)).notes
    assert unknown == (
        "the graph has seconds for 'pi-7', which is no device of the cluster and not used; did you "
        "mean 'pi-1'?"
    )
    assert profile == "the profile of device 'pi-1' is not used: a cost graph holds its own seconds"


def plan_on_two(graph, max_tensors=None, **wanted):
    return plan_cost_graph(graph, PlanRequest(cluster=TWO, **wanted), max_tensors=max_tensors)


def test_named_cuts_are_no_wish_for_a_cost_graph():
    with pytest.raises(PlanError, match="a cost graph takes no cuts"):
        plan_on_two(two_branches(), cut_names=("n0",))


@pytest.mark.parametrize(
    ("graph", "wanted", "message"),
    [
        (
            graph_of([{"pi-7": 0.5}, {"": 0.01}], [(0, (1,), 10)]),
            {},
            r"node 'n0' runs on 'pi-7' only, which the cluster does not have",
        ),
        (
            graph_of([{"a": 1}, {"b": 1}], group=["g", "g"]),
            {},
            r"nodes 'n0', 'n1' must share a stage, and no device can run them all",
        ),
        (
            graph_of([{"": 1}, {"": 1}], group=["g", "g"]),
            {"num_stages": 2},
            r"leave 1 parts",
        ),
        (
            graph_of([{"a": 1}, {"b": 1}, {"b": 1}], [(0, (1,), 1), (0, (2,), 1), (1, (2,), 1)]),
            {"num_stages": 1},
            r"no plan has 1 stages over 3 nodes and 2 devices; with another number",
        ),
        (
            graph_of([{"a": 1}, {"a": 1}, {"b": 1}], [(0, (2,), 1), (1, (2,), 1)]),
            {"max_tensors": 1},
            r"with --max-tensors; without it there is one",
        ),
        (
            graph_of([{"a": 1}, {"b": 1}, {"a": 1}], [(0, (1,), 1), (1, (2,), 1)]),
            {},
            r"no plan has any number of stages over 3 nodes and 2 devices where each node runs",
        ),
    ],
)
def test_why_there_is_no_plan(graph, wanted, message):
    with pytest.raises(PlanError, match=message):
        plan_on_two(graph, **wanted)


def test_the_device_that_has_to_grow_least_is_named():
    graph = graph_of([{"b": 0.6}, {"": 0.1}], [(0, (1,), 0)], weight_bytes=[6, 1])
    cluster = on(Device(name="a", memory_bytes=2), Device(name="b", memory_bytes=1))
    with pytest.raises(InfeasiblePlan, match="'b' has 1 bytes and lacks 5; with 6 bytes") as caught:
        plan_cost_graph(graph, PlanRequest(cluster=cluster))
    assert (caught.value.device, caught.value.needed_bytes) == ("b", 6)
    graph = graph_of([{"a": 1}, {"b": 1}], [(0, (1,), 0)], weight_bytes=[9, 7])
    with pytest.raises(InfeasiblePlan, match="one device alone would not do: with 9 bytes on"):
        plan_cost_graph(graph, PlanRequest(cluster=cluster))


def test_memory_that_is_there_is_never_rounded_up():
    most = 2**53 - 1
    graph = graph_of([{"": 1}], weight_bytes=[most])
    assert plan_cost_graph(
        graph, PlanRequest(cluster=on(Device(name="a", memory_bytes=most)))
    ).stages
    with pytest.raises(InfeasiblePlan, match="lacks 1;"):
        plan_cost_graph(graph, PlanRequest(cluster=on(Device(name="a", memory_bytes=most - 1))))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"source": "a", "targets": ["b"]}, {"source": "b", "targets": ["a"]}',
         r"\$\.tensors: 'a' -> 'b' -> 'a' is a cycle"),
        ('{"source": "a", "targets": ["a"]}', r"tensors\[0\]\.targets: 'a' would read its own"),
        ('{"source": "a", "targets": []}', r"tensors\[0\]\.targets: nobody reads what 'a' gives"),
        ('{"source": "a", "targets": ["b", "b"]}', r"targets: 'b' is there 2 times"),
        ('{"source": "a", "targets": ["c"]}', r"tensors\[0\]: 'c' is no node"),
    ],
)  # fmt: skip
def test_edges_that_cannot_be_are_refused(tmp_path, text, message):
    path = tmp_path / "g.json"
    text = text.replace("}", ', "num_bytes": 1}')
    nodes = '[{"name": "a", "seconds": {"": 1}}, {"name": "b", "seconds": {"": 1}}]'
    path.write_text(f'{{"format": "cutset-cost-graph/1", "nodes": {nodes}, "tensors": [{text}]}}')
    with pytest.raises(PlanError, match=message):
        load_cost_graph(path)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ('{"name": "", "seconds": {"": 1}}', r"nodes\[0\]\.name: a node needs a name"),
        ('{"name": "a", "seconds": {}}', "'a' has seconds for no device"),
        ('{"name": "a", "seconds": {"": null}}', "'a' has seconds for no device"),
        ('{"name": "a", "seconds": {"": 1, "": 2}}', "an object has the key '' twice"),
        ('{"name": "a", "seconds": {"": NaN}}', "cannot be read"),
        ('{"name": "a", "seconds": {"": 1e999}}', "cannot be read|null says"),
        ('{"name": "a", "seconds": {"": 1e300}}', "too large, the most is 1e[+]18; null says"),
        ('{"name": "a", "seconds": {"": "1 ms"}}', "Expected `float"),
        ('{"name": "a", "seconds": {"": 1}, "weight_bytes": -1}', "got -1 bytes"),
        ('{"name": "a", "seconds": {"": 1}, "weight_bytes": 1.5}', "Expected `int`"),
        (f'{{"name": "a", "seconds": {{"": 1}}, "weight_bytes": {2**53 + 1}}}', r"most is 2\*\*53"),
        ('{"name": "a", "seconds": {"": 1}, "wieght": 1}', "unknown field `wieght`"),
        ("[" * 100_000, "cannot be read"),
        ("\udcff", "cannot be read"),
    ],
)
def test_nodes_that_cannot_be_are_refused(tmp_path, node, message):
    path = tmp_path / "g.json"
    text = f'{{"format": "cutset-cost-graph/1", "nodes": [{node}], "tensors": []}}'
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(PlanError, match=message):
        load_cost_graph(path)


def test_numbers_that_no_file_can_hold_are_refused_too():
    with pytest.raises(PlanError, match="0 or more and finite, got nan for ''"):
        plan_cost_graph(graph_of([{"": float("nan")}]), PlanRequest(cluster=TWO))
    for wanted in ({"num_stages": 0}, {"max_tensors": 0}, {"max_latency_s": float("nan")}):
        with pytest.raises(ValueError, match="must be"):
            plan_on_two(graph_of([{"": 1.0}]), **wanted)


def test_planning_ends_with_its_time():
    with pytest.raises(PlanError, match="no plan was found: the time limit of 1e-09 s was reached"):
        plan_cost_graph(two_branches(), PlanRequest(cluster=TWO, time_limit_s=1e-9))


def test_a_plan_that_was_found_before_the_time_is_over_is_kept(monkeypatch):
    over = iter([*[False] * 7, *[True] * 99])
    monkeypatch.setattr(Deadline, "check", lambda self: _raise() if next(over) else None)
    made = plan_cost_graph(
        two_branches(), PlanRequest(cluster=on(Device(name="a"), Device(name="b")), time_limit_s=9)
    )
    # Along one order the first branch is done before the second begins.
    assert made.period_s == pytest.approx(0.111)
    # All work on the quicker device of each node, over two devices: 42 ms / 2.
    assert (made.bound_by, made.bound_s) == ("volume", pytest.approx(0.021))
    assert made.gap == pytest.approx(111 / 21 - 1)


def _raise():
    raise OutOfTime("over")


def _over_after(monkeypatch, number):
    """Has the time be over at so many looks at the clock."""
    over = iter([*[False] * number, *[True] * 999])
    monkeypatch.setattr(Deadline, "check", lambda self: _raise() if next(over) else None)


THREE = Cluster(
    devices=(Device(name="a"), Device(name="b"), Device(name="c")), link=Link(latency_s=1.0)
)
"""Devices that each do some node the quickest; a link takes 1 s."""


def _triangle():
    nodes = [{"a": 1, "b": 9, "c": 9}, {"a": 9, "b": 2, "c": 9}, {"a": 9, "b": 9, "c": 4}]
    return graph_of([*nodes, {"": 3}], [(0, (1, 2), 10), (1, (3,), 10), (2, (3,), 10)])


@pytest.mark.parametrize("number", [1, 3, 5, 7, 9, 11])
@pytest.mark.parametrize(
    "wanted",
    [
        {"objective": "latency"},
        {"objective": "latency", "num_stages": 3},
        {"objective": "latency", "min_rows_per_s": 1 / 30},
        {"objective": "throughput", "max_latency_s": 40.0},
        {"objective": "throughput", "max_latency_s": 20.0, "num_stages": 2},
    ],
)
def test_whenever_the_time_ends_the_best_so_far_and_its_bound_are_given(
    monkeypatch, number, wanted
):
    graph = _triangle()
    best = plan_cost_graph(graph, PlanRequest(cluster=THREE, **wanted))
    limited = PlanRequest(cluster=THREE, **wanted, time_limit_s=9)
    by_latency = wanted["objective"] == "latency"
    least_s = best.latency_s if by_latency else best.period_s
    assert best.gap == 0.0
    _over_after(monkeypatch, number)
    if number == 1 and "num_stages" in wanted:  # no plan is complete after one step
        with pytest.raises(PlanError, match="no plan was found: over"):
            plan_cost_graph(graph, limited)
        return
    made = plan_cost_graph(graph, limited)
    value_s = made.latency_s if by_latency else made.period_s
    assert made.bound_s <= least_s * (1 + 1e-9) <= value_s * (1 + 2e-9)
    assert made.gap == pytest.approx(value_s / made.bound_s - 1, abs=1e-9)
    if made.gap > 1e-9:
        assert "the time limit of 9 s was reached: more time may" in made.notes[0]
        assert made.bound_by != "exhaustion"


def test_a_latency_cut_off_by_the_time_has_what_was_found_along_one_order(monkeypatch):
    _over_after(monkeypatch, 5)
    request = PlanRequest(cluster=THREE, objective="latency", num_stages=2, time_limit_s=9)
    made = plan_cost_graph(_triangle(), request)
    # What is quickest everywhere adds up to 1 + 2 + 4 + 3 s.
    assert made.bound_s >= 10.0
    assert made.latency_s > made.bound_s
    assert plan_from_json(plan_to_json(made)) == made
    assert json.loads(plan_to_json(made))["gap"] == pytest.approx(made.latency_s / made.bound_s - 1)


def test_a_limit_that_nothing_kept_in_time_is_not_called_impossible(monkeypatch):
    graph = _triangle()
    request = PlanRequest(cluster=THREE, objective="latency", num_stages=3, time_limit_s=9)
    least_s = plan_cost_graph(graph, request).latency_s
    _over_after(monkeypatch, 5)
    with pytest.raises(PlanError) as caught:
        plan_cost_graph(graph, msgspec.structs.replace(request, max_latency_s=10.5))
    message = str(caught.value)
    assert least_s > 10.5
    assert message.startswith("no plan was found that takes at most 10.5 s for one micro-batch")
    assert "none can take less than 10 s" in message
    assert message.endswith("One may exist: the time limit of 9 s was reached")


def test_a_front_cut_off_by_the_time_says_what_may_be_missing(monkeypatch):
    graph = graph_of([{"": 2}, {"": 2}, {"": 2}], [(0, (1,), 10), (1, (2,), 10)])
    devices = Cluster(
        devices=(Device(name="a"), Device(name="b"), Device(name="c")), link=Link(latency_s=1.0)
    )
    whole = pareto_cost_graph(graph, PlanRequest(cluster=devices))
    assert [made.period_s for made in whole] == [2.0, 4.0, 6.0]
    _over_after(monkeypatch, 7)
    some = pareto_cost_graph(graph, PlanRequest(cluster=devices, time_limit_s=9))
    assert [made.period_s for made in some] == [4.0, 6.0]
    assert some[0].notes == (
        "the time limit of 9 s was reached: plans of a smaller period may be missing",
    )
