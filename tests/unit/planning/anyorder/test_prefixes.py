import msgspec

from cutset.costs.cost_model import costs_from_flops
from cutset.graph.cuts import CutPoint, CutPoints
from cutset.graph.ir import Graph, Operation
from cutset.planning.anyorder.prefixes import prefixes_are_all_cuts
from planner_graphs import chain, spec


def branching(outputs=("join",)):
    """x feeds a and b, which feed join; every position between two operations may be cut."""
    reads = {"a": ("x",), "b": ("x",), "join": ("a", "b")}
    operations = tuple(
        Operation(
            name=name,
            target="aten.add.Tensor",
            inputs=inputs,
            outputs=(spec(name, 1),),
            parameters=(),
            modules=(),
            flops=1,
        )
        for name, inputs in reads.items()
    )
    graph = Graph(
        model_class="tests.Fork",
        inputs=(spec("x", 1),),
        operations=operations,
        outputs=outputs,
        parameters=(),
    )
    points = tuple(
        CutPoint(
            position=k, after=name, kind="block", tensors=(), cumulative_flops=k,
            cumulative_parameters=0,
        )
        for k, name in ((1, "a"), (2, "b"))
    )  # fmt: skip
    return graph, CutPoints(units=(), points=points, refused=(), max_tensors=2)


def test_a_chain_has_no_other_cuts():
    graph, cuts = chain([1, 1, 1, 1])
    assert prefixes_are_all_cuts(graph, costs_from_flops(graph, cuts), 1)


def test_another_order_of_branches_is_another_cut_if_its_tensors_may_cross():
    graph, cuts = branching()
    costs = costs_from_flops(graph, cuts)
    # {b} leaves x and b alive: two tensors.
    assert not prefixes_are_all_cuts(graph, costs, 2)
    assert prefixes_are_all_cuts(graph, costs, 1)


def test_an_early_output_is_alive_to_the_end():
    graph, cuts = branching(outputs=("b", "join"))
    costs = costs_from_flops(graph, cuts)
    assert not prefixes_are_all_cuts(graph, costs, 2)
    more = msgspec.structs.replace(graph, inputs=(spec("x", 1), spec("unused", 1)))
    assert not prefixes_are_all_cuts(more, costs, 2)


def test_too_many_downsets_are_not_called_all():
    graph, cuts = branching()
    assert not prefixes_are_all_cuts(graph, costs_from_flops(graph, cuts), 1, limit=3)
