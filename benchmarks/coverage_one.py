"""Splits one model and compares the pieces with the whole; `coverage_models.py` calls it.

Run as a program it prints one line of JSON about one model. Each model has a process of its own,
so that a crash, a time limit or a lack of memory is a result like any other.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import logging
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch.utils import _pytree as pytree

from cutset.costs.model import costs_from_flops
from cutset.devices import equal_cluster
from cutset.errors import CaptureError, CutsetError
from cutset.graph.capture import capture_model, export_piece
from cutset.graph.cuts import CutPoints, find_cut_points
from cutset.graph.lowering import CapturedModel
from cutset.graph.parts import CapturedPart, capture_largest_part
from cutset.graph.pieces import Piece, build_piece
from cutset.models import FoundModel, find_model
from cutset.planning import Plan, make_plan
from cutset.runtime.wire import is_dense
from cutset.shards.archive import ProgramArchive
from cutset.shards.build import build_module
from cutset.shards.decode import read_program
from cutset.shards.onnx_export import export_onnx
from cutset.shards.running_checks import max_abs_difference, tolerance_of

ROW_COUNTS = (1, 2, 5)
STAGE_COUNTS = (2, 4)
MORE_TENSORS = (2, 3, 4, 6, 8, 12)
"""Numbers of tensors across a cut that are tried where one allows no four even stages."""

GOOD_RATIO = 1.25
"""Slowest stage over ideal from which on no more tensors are tried."""

SMALL_SIDES = (96, 64)
OWN_SIZE_FLOPS = 6e9
"""Multiply-adds a row up to which a model is tried at its own size."""


@dataclasses.dataclass(kw_only=True)
class Row:
    """What is said about one model: a line of docs/models.md."""

    spec: str
    status: str = "error"
    cause: str = ""
    step: str = ""
    input_shape: str = ""
    part: str = ""
    num_operations: int = 0
    num_points: int = 0
    num_units: int = 0
    most_stages: int = 1
    flops: int = 0
    max_tensors: int = 1
    points_with_more: int = 0
    ratios: dict[str, float] = dataclasses.field(default_factory=dict)
    ratios_with_more: dict[str, float] = dataclasses.field(default_factory=dict)
    onnx: str = ""
    seconds: float = 0.0


def check_model(found: FoundModel, row: Row, *, with_onnx: bool) -> None:
    """Captures, cuts, plans, exports and compares one model; fills in the row."""
    row.step = "capture"
    found, captured, row.part = _captured(found)
    if not row.part:
        found, captured = _smaller(found, captured)
    graph = captured.graph
    row.input_shape = "; ".join(str(spec) for spec in graph.inputs)
    row.flops = graph.flops
    row.num_operations = len(graph.operations)
    row.step = "cuts"
    cuts = find_cut_points(graph)
    row.num_points, row.num_units = len(cuts.points), len(cuts.units)
    row.most_stages = len(cuts.points) + 1
    plans = _plans(captured, cuts)
    row.ratios = {str(n): _ratio(plan, n) for n, plan in plans.items()}
    chosen = [(cuts, plan) for plan in plans.values()]
    more = _with_more_tensors(captured, plans)
    if more is not None:
        cuts, plans = more
        row.max_tensors, row.points_with_more = cuts.max_tensors, len(cuts.points)
        row.ratios_with_more = {str(n): _ratio(plan, n) for n, plan in plans.items()}
        chosen += [(cuts, plan) for plan in plans.values()]
    if not chosen:
        row.step = "cuts"
        raise CutsetError(f"no cut point, with up to {MORE_TENSORS[-1]} tensors across a cut")
    seen: set[tuple[int, ...]] = set()
    wholes = [(rows, _whole(captured, found.model, rows)) for rows in _row_sets(captured)]
    for index, (_, plan) in enumerate(reversed(chosen)):
        edges = (0, *(stage.stop for stage in plan.stages))
        if edges not in seen:
            seen.add(edges)
            _compare(captured, edges, wholes, row, with_onnx=with_onnx and index == 0)
    row.status, row.step = "exact", ""


def _captured(found: FoundModel) -> tuple[FoundModel, CapturedModel, str]:
    """The captured model; else the largest part of it that can be, and that part's path."""
    try:
        return found, capture_model(found.model, found.example_inputs), ""
    except CaptureError as refusal:
        resizing = getattr(found.model, "transform", None)
        if not hasattr(resizing, "min_size"):
            raise
        if not getattr(resizing, "fixed_size", None):
            # A detector brings every image to 800 pixels; a fifth will do here.
            resizing.min_size, resizing.max_size = (160,), 256
        images = (torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0)),)
        whole = found.model
        part = capture_largest_part(whole, images)
        _check_around(whole, part, images, refusal)
        inner = whole.get_submodule(part.path)
        return (
            dataclasses.replace(found, model=inner, example_inputs=part.example_inputs),
            part.captured,
            part.path,
        )


def _check_around(
    whole: torch.nn.Module,
    part: CapturedPart,
    images: tuple[torch.Tensor, ...],
    refusal: CaptureError,
) -> None:
    """The whole model with its part cut at every candidate, against the whole model.

    Raises:
        CutsetError: they differ.
    """
    cuts = find_cut_points(part.captured.graph)
    edges = (0, *(point.position for point in cuts.points), len(part.captured.graph.operations))
    pieces = [build_piece(part.captured, start, stop) for start, stop in itertools.pairwise(edges)]

    def run(values: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        for piece in pieces:
            values = piece(*values)
        return values

    expected = pytree.tree_leaves(whole(*images))
    with part.run_elsewhere(whole, run):
        found = pytree.tree_leaves(whole(*images))
    if len(found) != len(expected) or not all(map(_equal, found, expected)):
        raise CutsetError(f"with {part.path} cut, the whole model's results differ") from refusal


def _smaller(found: FoundModel, captured: CapturedModel) -> tuple[FoundModel, CapturedModel]:
    """The same model at a smaller image, where it is costly and takes one."""
    inputs = found.example_inputs
    images = inputs if isinstance(inputs, tuple) and all(t.dim() >= 4 for t in inputs) else ()
    if captured.graph.flops <= OWN_SIZE_FLOPS or not images:
        return found, captured
    for side in SMALL_SIDES:
        small = tuple(t[..., :side, :side].clone() for t in images)
        with contextlib.suppress(Exception):
            smaller = capture_model(found.model, small)
            found.model(*small)
            return dataclasses.replace(found, example_inputs=small), smaller
    return found, captured


def _plans(captured: CapturedModel, cuts: CutPoints) -> dict[int, Plan]:
    """Plans with two and with four stages, or with as many as there can be."""
    costs = costs_from_flops(captured.graph, cuts)
    return {
        n: make_plan(captured.graph, cuts, costs, equal_cluster(n), num_stages=n)
        for n in sorted({min(n, len(cuts.points) + 1) for n in STAGE_COUNTS} - {1})
    }


def _ratio(plan: Plan, num_stages: int) -> float:
    """The slowest stage's multiply-adds over the mean of all stages."""
    flops = [stage.flops for stage in plan.stages]
    return max(flops) * num_stages / (sum(flops) or 1)


def _with_more_tensors(
    captured: CapturedModel, plans: dict[int, Plan]
) -> tuple[CutPoints, dict[int, Plan]] | None:
    """The least number of tensors across a cut that makes stages even, where one does not."""

    def worst(plans: dict[int, Plan]) -> float:
        slowest = [max(s.flops for s in plans[n].stages) if n in plans else 0 for n in STAGE_COUNTS]
        total = captured.graph.flops or 1
        return max(
            f * n / total if f else float(n) for f, n in zip(slowest, STAGE_COUNTS, strict=True)
        )

    best: tuple[CutPoints, dict[int, Plan]] | None = None
    least = worst(plans)
    for max_tensors in MORE_TENSORS:
        if least <= GOOD_RATIO:
            break
        cuts = find_cut_points(captured.graph, max_tensors=max_tensors)
        candidates = _plans(captured, cuts)
        if worst(candidates) < least * 0.95:
            best, least = (cuts, candidates), worst(candidates)
    return best


def _row_sets(captured: CapturedModel) -> Iterator[tuple[torch.Tensor, ...]]:
    """Inputs with each number of rows, from the example's, every row another one."""
    for num_rows in ROW_COUNTS:
        yield tuple(
            torch.cat([t.roll(shift, -1) for shift in range(num_rows)])[:num_rows].clone()
            for t in captured.example_inputs
        )


def _whole(
    captured: CapturedModel, model: torch.nn.Module, rows: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        results = captured.call(model, tuple(t.clone() for t in rows))
    return tuple(t for t in pytree.tree_leaves(results) if isinstance(t, torch.Tensor))


def _compare(
    captured: CapturedModel,
    edges: Sequence[int],
    wholes: Sequence[tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]],
    row: Row,
    *,
    with_onnx: bool,
) -> None:
    """Chains the stages as a bundle holds them and compares all results.

    Raises:
        CutsetError: a stage cannot be exported, or a result differs.
    """
    values = [dict(zip((s.name for s in captured.graph.inputs), r, strict=True)) for r, _ in wholes]
    for start, stop in itertools.pairwise(edges):
        row.step = f"export of operations {start} to {stop} of {edges}"
        piece = build_piece(captured, start, stop)
        inputs = tuple(values[1][spec.name] for spec in piece.input_specs)
        exported = export_piece(piece, inputs)
        exported.example_inputs = None
        with tempfile.TemporaryDirectory() as folder:
            run = _reloaded(exported, piece, Path(folder) / "program.pt2")
            row.step = f"run of operations {start} to {stop} of {edges}"
            for given in values:
                taken = tuple(given[spec.name] for spec in piece.input_specs)
                results = run(taken)
                given |= {
                    spec.name: _arrived(result)
                    for spec, result in zip(piece.output_specs, results, strict=True)
                }
            if with_onnx:
                row.step = f"onnx of operations {start} to {stop} of {edges}"
                _compare_onnx(exported, piece, inputs, values[1], Path(folder), row)
    row.step = f"comparison of {edges}"
    for (rows, whole), given in zip(wholes, values, strict=True):
        for name, expected in zip(captured.graph.outputs, whole, strict=True):
            if not _equal(given[name], expected):
                off_by = max_abs_difference(given[name], expected)
                raise CutsetError(f"{name} with {rows[0].shape[0]} rows is off by {off_by:g}")


def _arrived(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as the next stage gets it: one row as the wire leaves it, more rows packed.

    The wire keeps the order of dimensions, a bundle's reference tensors do not; both must do.
    """
    if tensor.shape[0] > 1:
        return tensor.clone(memory_format=torch.contiguous_format)
    if is_dense(tensor.shape, tensor.stride()):
        return tensor
    return tensor.clone(memory_format=torch.preserve_format)


def _equal(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return False
    return bool(((actual == expected) | ((actual != actual) & (expected != expected))).all())


def _reloaded(exported: Any, piece: Piece, path: Path) -> Any:
    """The stage as a worker loads it: written, checked, built anew."""
    torch.export.save(exported, path)
    with ProgramArchive(path, path=path.name) as archive:
        program = read_program(archive)
        module = build_module(program, archive)
    assert len(program.inputs) == len(piece.input_specs)

    def run(inputs: tuple[torch.Tensor, ...]) -> Any:
        with torch.inference_mode():
            return module(*inputs)

    return run


def _compare_onnx(
    exported: Any,
    piece: Piece,
    inputs: tuple[torch.Tensor, ...],
    given: dict[str, torch.Tensor],
    folder: Path,
    row: Row,
) -> None:
    path = folder / "model.onnx"
    missing = export_onnx(
        exported,
        path,
        input_names=[spec.name for spec in piece.input_specs],
        output_names=[spec.name for spec in piece.output_specs],
    )
    if missing:
        row.onnx = row.onnx or f"no ONNX: {missing[:160]}"
        return
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        feed = {
            argument.name: tensor.contiguous().numpy()
            for argument, tensor in zip(session.get_inputs(), inputs, strict=True)
        }
        results = [torch.from_numpy(result) for result in session.run(None, feed)]
    except Exception as error:  # noqa: BLE001 - a result like any other
        row.onnx = row.onnx or f"fails: {str(error).splitlines()[0][:160]}"
        return
    for spec, result in zip(piece.output_specs, results, strict=True):
        expected = given[spec.name]
        off_by, allowed = max_abs_difference(result, expected), tolerance_of(expected)
        if off_by > allowed:
            row.onnx = row.onnx or f"{spec.name} off by {off_by:.2g}, allowed {allowed:.2g}"


def main() -> None:
    """Checks the model that the command line names and prints the row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec")
    parser.add_argument("--memory-gib", type=float, default=16.0)
    parser.add_argument("--no-onnx", action="store_true")
    options = parser.parse_args()
    limit = int(options.memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    row = Row(spec=options.spec)
    begin = time.perf_counter()
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row.step = "building"
            found = find_model(options.spec, weights="random:0")
            with torch.no_grad():
                check_model(found, row, with_onnx=not options.no_onnx)
        row.onnx = row.onnx or ("" if options.no_onnx else "within tolerance")
    except Exception as error:  # noqa: BLE001 - a result like any other
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        row.cause = f"{type(error).__name__}: {lines[0]}"[:400]
    row.seconds = time.perf_counter() - begin
    sys.stdout.write(json.dumps(dataclasses.asdict(row)) + "\n")


if __name__ == "__main__":
    main()
