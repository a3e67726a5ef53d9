import json
from pathlib import Path

import msgspec
import pytest

from cutset.devices import Cluster, Device, Link, LinkOverride, load_cluster
from cutset.errors import InfeasiblePlan, PlanError
from cutset.planning import load_cost_graph, plan_cost_graph, plan_from_json, plan_to_json
from cutset.planning.cost_graph import CostGraph, CostNode, CostTensor

ROOT = Path(__file__).parents[3]
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
    made = plan_cost_graph(diamond(), TWO)
    assert made.period_s == 4.0
    prefix_free = plan_cost_graph(diamond(group="together"), TWO)
    assert prefix_free.period_s == 4.0
    assert {"s", "l"} <= set(prefix_free.stages[0].units)
    assert made.family == "downset"
    assert (made.bound_by, made.gap) == ("exhaustion", 0.0)


def test_neighbours_pass_on_what_is_alive():
    link = Link(bandwidth_bytes_per_s=1.0, latency_s=0.5)
    cluster = Cluster(devices=(Device(name="a"), Device(name="b")), link=link)
    made = plan_cost_graph(diamond(num_bytes=2), cluster)
    # After s alone its tensor crosses: 2.5 s, beside stages of 1 and 5. After two nodes s and what
    # l or r made cross: 4.5 s, beside 2 and 4. After three, l's and r's: 4.5 s, beside 5 and 1.
    assert made.period_s == 4.5
    assert made.stages[0].send_s == 4.5
    assert made.latency_s == 10.5
    serial = plan_cost_graph(diamond(num_bytes=2), cluster, serial=True)
    assert serial.period_s == 6.0  # one device: any cut would cost more
    assert len(serial.stages) == 1


def test_through_the_host_each_tensor_is_paid_where_it_enters_and_leaves():
    link = Link(bandwidth_bytes_per_s=4.0)
    cluster = Cluster(devices=(Device(name="a"), Device(name="b")), link=link)
    made = plan_cost_graph(diamond("host", num_bytes=1), cluster)
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
    assert plan_cost_graph(graph, TWO).period_s == 6.0
    assert plan_cost_graph(graph, TWO, num_stages=2).period_s == 10.0
    with pytest.raises(PlanError, match="no plan has 5 stages over 4 nodes and 2 devices"):
        plan_cost_graph(graph, TWO, num_stages=5)


def test_memory_that_nothing_fits_says_the_least_that_would_do():
    cluster = Cluster(
        devices=(Device(name="a", memory_bytes=10), Device(name="b", memory_bytes=25))
    )
    with pytest.raises(InfeasiblePlan) as caught:
        plan_cost_graph(diamond(weight=10), cluster)
    assert caught.value.device == "b"
    assert caught.value.needed_bytes == 30
    assert caught.value.available_bytes == 25


def test_the_example_plans_and_reads_back():
    made = plan_cost_graph(ROOT / "examples/cost-graph.json", one_kind_of_link())
    assert plan_from_json(plan_to_json(made)) == made
    assert sum(len(stage.units) for stage in made.stages) == 5


def one_kind_of_link():
    return msgspec.structs.replace(load_cluster(ROOT / "examples/cluster.toml"), overrides=())


def test_clusters_of_many_kinds_of_links_are_refused():
    other = LinkOverride(source="a", target="b", link=Link())
    with pytest.raises(PlanError, match="one kind of link"):
        plan_cost_graph(diamond(), msgspec.structs.replace(TWO, overrides=(other,)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "cutset-cost-graph/2"}, "expected format 'cutset-cost-graph/1'"),
        ({"transfers": "bus"}, r"\$\.transfers: expected 'neighbour' or 'host'"),
        ({"nodes": []}, r"\$\.nodes: a cost graph needs at least one node"),
        ({"colour": 1}, "unknown field `colour`"),
        ({"nodes": [{"name": "a", "seconds": {"": -1}}]}, r"\$\.nodes\[0\]: seconds and bytes"),
        (
            {"nodes": [{"name": "a", "seconds": {}}, {"name": "a", "seconds": {}}]},
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
