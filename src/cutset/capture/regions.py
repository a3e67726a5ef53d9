"""Takes regions out of a captured program: code under ``no_grad``, ``enable_grad``, ``autocast``.

`torch.export` wraps what runs under such a context into a submodule that one node of the program
calls. Pipelines compute without gradients anyway, and a region in which autocast is switched off
is what the code around it is; so the node is replaced by the submodule's operations, and the
region's tensors can cross a cut like any other.
"""

from __future__ import annotations

import operator
from typing import Any

from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from cutset.capture.diagnosis import error_at
from cutset.capture.source_lines import source_line

_GRAD_REGION = "wrap_with_set_grad_enabled"
_AUTOCAST_REGION = "wrap_with_autocast"


def inline_regions(exported: ExportedProgram) -> None:
    """Replaces every call of a region by the region's operations, in place.

    Raises:
        CaptureError: a region switches autocast on, or the program calls another kind of
            subprogram (``torch.cond`` and its like).
    """
    module = exported.graph_module
    found = False
    while calls := [node for node in module.graph.nodes if _regions_of(node)]:
        found = True
        for node in calls:
            _inline(exported, node)
        # A region may hold further ones.
        module.graph.eliminate_dead_code()
    if found:
        module.recompile()


def _regions_of(node: Node) -> list[Node]:
    """The arguments of a call that are subprograms."""
    if node.op != "call_function":
        return []
    return [
        argument
        for argument in node.all_input_nodes
        if argument.op == "get_attr" and isinstance(_subprogram(argument), GraphModule)
    ]


def _subprogram(node: Node) -> Any:
    owner: Any = node.graph.owning_module
    for part in str(node.target).split("."):
        owner = getattr(owner, part)
    return owner


def _inline(exported: ExportedProgram, node: Node) -> None:
    module = exported.graph_module
    holder = _regions_of(node)[0]
    region = _subprogram(holder)
    _check_kind(node, region)
    given = node.args[node.args.index(holder) + 1 :]
    inner = list(region.graph.nodes)
    copies: dict[Node, Any] = dict(
        zip((n for n in inner if n.op == "placeholder"), given, strict=True)
    )
    with module.graph.inserting_before(node):
        for source in inner:
            if source.op == "get_attr":
                name = f"{holder.name}_{source.name}"
                module.add_submodule(name, _subprogram(source))
                copies[source] = module.graph.get_attr(name)
            elif source.op == "call_function":
                copies[source] = module.graph.node_copy(source, copies.__getitem__)
    results = next(n for n in inner if n.op == "output").args[0]
    for user in tuple(node.users):
        assert user.target is operator.getitem
        result = copies[results[user.args[1]]]
        user.replace_all_uses_with(result)
        for spec in exported.graph_signature.output_specs:
            if getattr(spec.arg, "name", None) == user.name:
                spec.arg.name = result.name
        module.graph.erase_node(user)
    module.graph.erase_node(node)


def _check_kind(node: Node, region: GraphModule) -> None:
    """Refuses what is more than a context around operations."""
    kind = getattr(node.target, "__name__", str(node.target))
    if kind == _AUTOCAST_REGION and node.args[2]:
        dtype = str(node.args[1]).removeprefix("torch.")
        why = (
            f"autocast to {dtype} is switched on inside the model; convert the model to that "
            "dtype instead (model.bfloat16(), model.half())"
        )
    elif kind not in (_GRAD_REGION, _AUTOCAST_REGION):
        why = (
            f"control flow inside the model ({kind}) cannot be split: which branch is taken "
            "depends on values. Write both branches as one computation (torch.where), or fix the "
            "decision when the model is built"
        )
    else:
        return
    within = [n for n in region.graph.nodes if n.op == "call_function" and source_line(n)]
    places = [n for n in (node, *within) if source_line(n)] or [node]
    raise error_at(places[0], why, operation=kind)
