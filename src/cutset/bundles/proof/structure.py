"""What can be proven about a bundle without running it: completeness and undivided units.

The manifest says what each stage does. That the stages' files say the same is looked at in
`cutset.bundles.proof.torch.program_structure` and `cutset.bundles.proof.onnx_checks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cutset.bundles.manifest import Manifest
from cutset.errors import CutsetError
from cutset.graph.cuts import find_cut_points

_MAX_FAULTS = 5


def summary(faults: Sequence[str], otherwise: str) -> str:
    """The first faults in one line, or `otherwise` where there are none."""
    if not faults:
        return otherwise
    rest = len(faults) - _MAX_FAULTS
    return "; ".join(faults[:_MAX_FAULTS]) + (f"; and {rest} more" if rest > 0 else "")


def rows_in_words(numbers: Iterable[int]) -> str:
    """``"1, 2 and 5 rows"``."""
    counts = sorted(numbers)
    named = ", ".join(map(str, counts[:-1])) + " and " if len(counts) > 1 else ""
    return f"{named}{count(counts[-1], 'row')}"


def count(number: int, noun: str) -> str:
    """``"1 row"``, ``"2 boundaries"``."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def completeness_faults(manifest: Manifest, in_files: Sequence[str] = ()) -> tuple[str, ...]:
    """What the manifest lacks, names twice, or names needlessly.

    Args:
        manifest: the contract.
        in_files: what the stages' files have otherwise; it is told first where no operation is
            missing, since wrong parameters often follow from it.

    Returns:
        One sentence for each fault; none if every parameter, buffer and operation is in exactly
        one stage, or listed as shared, or as unused.
    """
    return (*_operation_faults(manifest), *in_files, *_parameter_faults(manifest))


def unit_faults(manifest: Manifest) -> tuple[str, ...]:
    """Every boundary that is no legal cut point, with the reason; none if no unit is divided."""
    graph = manifest.graph
    try:
        points = find_cut_points(
            graph, keep=manifest.keep, divide=manifest.divide, max_tensors=manifest.max_tensors
        )
    except (CutsetError, ValueError) as error:
        return (f"the units cannot be found again: {error}",)
    legal = {point.position: point for point in points.points}
    refused = {point.position: point for point in points.refused}
    positions = {operation.name: i for i, operation in enumerate(graph.operations)}
    faults: list[str] = []
    position = 0
    for stage in manifest.stages:
        start, position = position, position + len(stage.operations)
        spans = [positions[name] for name in stage.operations]
        if spans != list(range(start, position)):
            faults.append(f"stage {stage.index} is no contiguous part of the graph")
        faults += [
            f"stage {stage.index} lists the unit {path!r}, which it does not hold whole"
            for path in stage.units
            if not any(
                u.path == path and start <= u.start and u.stop <= position for u in points.units
            )
        ]
        if stage.index == len(manifest.stages) - 1:
            continue
        where = f"the cut between stages {stage.index} and {stage.index + 1}"
        if position in legal:
            taken = {spec.name for spec in stage.outputs}
            if taken != {spec.name for spec in legal[position].tensors}:
                faults.append(f"{where} sends other tensors than live there: {sorted(taken)}")
        elif position in refused:
            point = refused[position]
            faults.append(f"{where}, after {point.after}, is refused: {point.reason}")
        else:
            faults.append(f"{where} lies at no position between two operations")
    return tuple(faults)


def _operation_faults(manifest: Manifest) -> list[str]:
    holders: dict[str, list[int]] = {}
    for stage in manifest.stages:
        for name in stage.operations:
            holders.setdefault(name, []).append(stage.index)
    faults = [
        f"operation {operation.name!r} is in no stage"
        for operation in manifest.graph.operations
        if operation.name not in holders
    ]
    faults += [
        f"operation {name!r} is in stages {', '.join(map(str, stages))}"
        for name, stages in holders.items()
        if len(stages) > 1
    ]
    return faults


def _parameter_faults(manifest: Manifest) -> list[str]:
    operations = {operation.name: operation for operation in manifest.graph.operations}
    holders: dict[str, list[int]] = {}
    faults: list[str] = []
    for stage in manifest.stages:
        needed = {p for name in stage.operations for p in operations[name].parameters}
        held = set(stage.parameters)
        faults += [f"stage {stage.index} lacks {name!r}" for name in sorted(needed - held)]
        faults += [
            f"stage {stage.index} holds {name!r}, which none of its operations reads"
            for name in sorted(held - needed)
        ]
        for name in held:
            holders.setdefault(name, []).append(stage.index)
    names = [parameter.name for parameter in manifest.graph.parameters]
    for key, found in (
        ("shared", [name for name in names if len(holders.get(name, ())) > 1]),
        ("unused", [name for name in names if name not in holders]),
    ):
        listed = set(getattr(manifest, f"{key}_parameters"))
        faults += [
            f"{name!r} is {key}, but not listed as {key}" for name in found if name not in listed
        ]
        faults += [
            f"{name!r} is listed as {key}, but is not" for name in sorted(listed - set(found))
        ]
    return faults
