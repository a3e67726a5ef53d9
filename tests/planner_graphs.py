"""Small captured models as plain data, for tests of planning that need no torch."""

from cutset.graph.cuts import CutPoint, CutPoints
from cutset.graph.ir import Graph, Operation, Parameter
from cutset.graph.units import Unit
from cutset.tensors import TensorSpec


def chain(flops, *, kinds=None, widths=None, weights=None, shared=None):
    """A chain of operations ``op0`` ..., a cut point after each but the last.

    ``shared`` maps a parameter's name to (bytes, indices of the operations that read it).
    """
    num = len(flops)
    kinds = kinds or ["block"] * (num - 1)
    widths = widths or [10] * num
    weights = weights or [100] * num
    shared = shared or {}
    operations = []
    for k in range(num):
        names = [f"op{k}.weight", *(n for n, (_, users) in shared.items() if k in users)]
        operations.append(
            Operation(
                name=f"op{k}",
                target="aten.linear.default",
                inputs=("x",) if k == 0 else (f"op{k - 1}",),
                outputs=(spec(f"op{k}", widths[k]),),
                parameters=tuple(names),
                modules=(),
                flops=flops[k],
            )
        )
    parameters = [parameter(f"op{k}.weight", weights[k]) for k in range(num)]
    parameters += [parameter(name, size) for name, (size, _) in shared.items()]
    graph = Graph(
        model_class="tests.Chain",
        inputs=(spec("x", 10),),
        operations=tuple(operations),
        outputs=(f"op{num - 1}",),
        parameters=tuple(parameters),
    )
    points = tuple(
        CutPoint(
            position=k,
            after=f"op{k - 1}",
            kind=kinds[k - 1],
            tensors=(spec(f"op{k - 1}", widths[k - 1]),),
            cumulative_flops=sum(flops[:k]),
            cumulative_parameters=0,
        )
        for k in range(1, num)
    )
    units = (Unit(path="block0", class_name="tests.Block", start=0, stop=1),)
    return graph, CutPoints(units=units, points=points, refused=(), max_tensors=1)


def refuse(cuts, position, reason):
    """The same cut points with one of them refused."""
    import msgspec

    (point,) = (p for p in cuts.points if p.position == position)
    return msgspec.structs.replace(
        cuts,
        points=tuple(p for p in cuts.points if p.position != position),
        refused=(*cuts.refused, msgspec.structs.replace(point, reason=reason)),
    )


def spec(name, width):
    return TensorSpec(name=name, shape=("batch", width), dtype="float32")


def parameter(name, num_bytes):
    return Parameter(name=name, kind="parameter", num_elements=num_bytes // 4, num_bytes=num_bytes)
