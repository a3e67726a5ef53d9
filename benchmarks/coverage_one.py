"""Plans one model at 2 and 4 stages, splits it and compares; `coverage_models.py` calls it.

Every model has a process of its own, so that a crash, a time limit or a lack of memory is a result
like any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import logging
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import onnxruntime  # noqa: F401 - what every model needs is imported once, before the processes part
import onnxscript  # noqa: F401
import timm  # noqa: F401
import torch
import torchvision  # noqa: F401
from torch.onnx._internal.exporter._registration import ONNXRegistry
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from cutset.backends.base import StageProgram
from cutset.backends.selection import load_stage
from cutset.bundles.manifest import StageEntry
from cutset.capture.captured_model import CapturedModel, unfused
from cutset.capture.torch_arrays import as_array, as_tensor
from cutset.differences import max_abs_difference, tolerance_of
from cutset.errors import CaptureError, CutsetError
from cutset.graph.cuts import find_cut_points
from cutset.links.wire import is_dense
from cutset.models import FoundModel, find_model
from cutset.planning import Plan
from cutset.workflow import (
    PlanRequest,
    PreparedModel,
    measure_costs,
    plan_model,
    plan_stages,
    prepare_found,
    split_model,
)

ROW_COUNTS = (1, 2, 5)
STAGE_COUNTS = (2, 4)
MORE_TENSORS = (2, 3, 4, 6, 8, 12)
"""Numbers of tensors across a cut that are tried where one allows no four even stages."""

GOOD_RATIO = 1.25
"""Slowest stage over ideal from which on no more tensors are tried."""

OWN_SIZE_FLOPS = {"timm": 6e9, "torchvision": 1.5e9}
"""Multiply-adds a row up to which a model is tried at its own size, by library."""

NUM_RUNS = 5
"""Measured runs of a piece and of a stage; the commands make 20."""

SMALL_SIDES = (160, 96, 64)
MEMORY_FOLDER = Path("/dev/shm")
MEMORY_FOLDER_BYTES = 1 << 29
"""Weights up to which bundles are written to memory, if there is such a folder."""

Values = tuple[torch.Tensor, ...]


@dataclasses.dataclass(kw_only=True)
class Row:
    """What is said about one model: a line of docs/models.md."""

    spec: str
    version: str = ""
    status: str = "error"
    cause: str = ""
    step: str = ""
    input_shape: str = ""
    part: str = ""
    part_share: float = 0.0
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
    step_seconds: dict[str, float] = dataclasses.field(default_factory=dict)


class _Steps:
    """Writes the step that a row has come to, and how long each took."""

    def __init__(self, row: Row) -> None:
        self._row = row
        self._since = 0.0

    def begin(self, step: str) -> None:
        now = time.perf_counter()
        took = self._row.step_seconds
        if self._since:
            took[self._row.step] = round(took.get(self._row.step, 0) + now - self._since, 2)
        self._row.step, self._since = step, now


def check_found(found: FoundModel, row: Row, *, measured: bool = True) -> None:
    """Captures, cuts, plans, splits and compares one model; fills in the row.

    Args:
        found: the model.
        row: what is found is written there.
        measured: plan as the commands do, with costs that are measured; by multiply-adds if not.

    Raises:
        CutsetError: a step refused, or a result differs.
    """
    steps = _Steps(row)
    steps.begin("size")
    found = _at_a_cheap_size(found)
    steps.begin("capture")
    prepared = _prepared(found)
    captured = prepared.captured
    if prepared.part is not None:
        row.part, row.part_share = prepared.part.path, round(prepared.part.work_share, 4)
    graph = captured.graph
    row.input_shape = "; ".join(str(spec) for spec in graph.inputs)
    row.flops = graph.flops
    row.num_operations = len(graph.operations)
    steps.begin("cuts")
    cuts = prepared.cuts
    row.num_points, row.num_units = len(cuts.points), len(cuts.units)
    row.most_stages = len(cuts.points) + 1
    steps.begin("plans")
    make = _measured_plans if measured else _plans
    plans = make(prepared)
    row.ratios = {str(n): _ratio(plan, n) for n, plan in plans.items()}
    # The plan with most stages is split: its boundaries are the more. To split both takes hours.
    chosen = [(prepared, plan) for plan in plans.values()][-1:]
    with_more = _with_more_tensors(prepared)
    if with_more is not None:
        plans = make(with_more)
        row.max_tensors = with_more.cuts.max_tensors
        row.points_with_more = len(with_more.cuts.points)
        row.ratios_with_more = {str(n): _ratio(plan, n) for n, plan in plans.items()}
        chosen += [(with_more, plan) for plan in plans.values()][-1:]
    if not chosen:
        raise CutsetError(f"no cut point, with up to {MORE_TENSORS[-1]} tensors across a cut")
    steps.begin("whole")
    wholes = [(rows, _whole(captured, prepared.module, rows)) for rows in _row_sets(captured)]
    for (way, plan), again in zip(chosen, itertools.chain([None], chosen), strict=False):
        if again is None or [s.stop for s in plan.stages] != [s.stop for s in again[1].stages]:
            _split_and_compare(way, plan, wholes, row, steps)
    steps.begin("")
    row.status = "exact"
    row.onnx = row.onnx or "within tolerance"


def _at_a_cheap_size(found: FoundModel) -> FoundModel:
    """The same model with a smaller image, where it is costly and takes one."""
    inputs = found.example_inputs
    resizing = getattr(found.model, "transform", None)
    if hasattr(resizing, "min_size"):
        if not getattr(resizing, "fixed_size", None):
            # A detector brings every image to 800 pixels; a fifth will do here.
            resizing.min_size, resizing.max_size = (160,), 256
        images = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
        return dataclasses.replace(found, example_inputs=(images,))
    limit = OWN_SIZE_FLOPS[found.name.partition(":")[0]]
    images = inputs if isinstance(inputs, tuple) and all(t.dim() >= 4 for t in inputs) else ()
    if not images or _flops_of_one_row(found.model, images) <= limit:
        return found
    smallest = found
    for side in SMALL_SIDES:
        small = tuple(t[..., :side, :side].clone() for t in images)
        if side >= images[0].shape[-1]:
            continue
        try:
            flops = _flops_of_one_row(found.model, small)
        except (RuntimeError, AssertionError, ValueError, TypeError):
            break  # it takes no other size, or none so small
        smallest = dataclasses.replace(found, example_inputs=small)
        if flops <= limit:
            break
    return smallest


def _flops_of_one_row(model: torch.nn.Module, inputs: Values) -> float:
    # The counter hangs on to the gradients of a parameter that is passed to a module.
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model(*(tensor[:1].clone() for tensor in inputs))
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    return counter.get_total_flops() / 2


def _with_tensors(prepared: PreparedModel, max_tensors: int) -> PreparedModel:
    cuts = find_cut_points(prepared.captured.graph, max_tensors=max_tensors)
    return dataclasses.replace(prepared, cuts=cuts)


def _prepared(found: FoundModel) -> PreparedModel:
    """The model, or the part of it with the most work that the refusal offers, by its name.

    Raises:
        CaptureError: neither can be captured.
    """
    try:
        return prepare_found(found)
    except CaptureError as refusal:
        if not refusal.parts:
            raise
        return prepare_found(found, part=refusal.parts[0][0])


def _counts(prepared: PreparedModel) -> list[int]:
    """Two stages and four, or as many as there can be."""
    most = len(prepared.cuts.points) + 1
    return sorted({min(n, most) for n in STAGE_COUNTS} - {1})


def _plans(prepared: PreparedModel) -> dict[int, Plan]:
    """Plans by multiply-adds."""
    return {n: plan_stages(prepared, num_stages=n) for n in _counts(prepared)}


def _measured_plans(prepared: PreparedModel) -> dict[int, Plan]:
    """Plans as `cutset split` makes them where nothing else is said, with fewer runs."""
    counts = _counts(prepared)
    if not counts:
        return {}
    measured = measure_costs(prepared, batch_size=1, num_runs=NUM_RUNS)
    return {n: plan_model(prepared, PlanRequest(num_stages=n), costs=measured) for n in counts}


def _ratio(plan: Plan, num_stages: int) -> float:
    """The slowest stage's computing over the mean of all stages, as wholes where measured."""
    seconds = plan.expected.compute_s if plan.expected else [s.compute_s for s in plan.stages]
    return max(seconds) * num_stages / (sum(seconds) or 1)


def _with_more_tensors(prepared: PreparedModel) -> PreparedModel | None:
    """The least number of tensors across a cut that makes stages even, where one does not.

    By multiply-adds: to measure every number would take hours.
    """

    def worst(plans: dict[int, Plan]) -> float:
        slowest = [max(s.flops for s in plans[n].stages) if n in plans else 0 for n in STAGE_COUNTS]
        total = prepared.captured.graph.flops or 1
        return max(
            f * n / total if f else float(n) for f, n in zip(slowest, STAGE_COUNTS, strict=True)
        )

    best: PreparedModel | None = None
    least = worst(_plans(prepared))
    for max_tensors in MORE_TENSORS:
        if least <= GOOD_RATIO:
            break
        candidate = _with_tensors(prepared, max_tensors)
        its_plans = _plans(candidate)
        if worst(its_plans) < least * 0.95:
            best, least = candidate, worst(its_plans)
    return best


def _row_sets(captured: CapturedModel) -> Iterator[Values]:
    """Inputs with each number of rows, from the example's, every row another one."""
    for num_rows in ROW_COUNTS:
        yield tuple(
            torch.cat([t.roll(shift, -1) for shift in range(num_rows)])[:num_rows].clone()
            for t in captured.example_inputs
        )


def _whole(captured: CapturedModel, model: torch.nn.Module, rows: Values) -> Values:
    with torch.inference_mode(), unfused():
        results = captured.call(model, tuple(t.clone() for t in rows))
    return tuple(t for t in pytree.tree_leaves(results) if isinstance(t, torch.Tensor))


def _split_and_compare(
    prepared: PreparedModel,
    plan: Plan,
    wholes: Sequence[tuple[Values, Values]],
    row: Row,
    steps: _Steps,
) -> None:
    """Splits, which verifies, and runs the stages as workers load them on each number of rows.

    Raises:
        CutsetError: a stage cannot be exported, the bundle is not verified, or a result differs.
    """
    steps.begin(f"split into {len(plan.stages)}")
    weights = sum(t.nbytes for t in prepared.found.model.state_dict().values())
    in_memory = MEMORY_FOLDER.is_dir() and weights <= MEMORY_FOLDER_BYTES
    with tempfile.TemporaryDirectory(dir=MEMORY_FOLDER if in_memory else None) as folder:
        bundle = split_model(prepared, plan, Path(folder) / "model.cutset")
        steps.begin(f"run of {len(plan.stages)} stages")
        entries = bundle.manifest.stages
        names = [spec.name for spec in prepared.captured.graph.inputs]
        given = [dict(zip(names, rows, strict=True)) for rows, _ in wholes]
        programs = []
        for entry in entries:
            load = functools.partial(load_stage, bundle, entry.index, num_threads=1, micro_batch=5)
            program = load(backend="torch")
            for values in given:
                results = _run(program, tuple(values[spec.name] for spec in entry.inputs))
                values |= {
                    spec.name: _arrived(result)
                    for spec, result in zip(entry.outputs, results, strict=True)
                }
            if prepared.part:
                programs.append(program)
            if entry.model is None:
                row.onnx = row.onnx or f"no ONNX: {entry.model_missing[:160]}"
                continue
            session = load(backend="onnxruntime")
            row.onnx = row.onnx or _onnx_fault(session, entry, given)
        if prepared.part:
            _check_around(prepared, programs)
    outputs = prepared.captured.graph.outputs
    for (rows, whole), values in zip(wholes, given, strict=True):
        for name, expected in zip(outputs, whole, strict=True):
            if off_by := max_abs_difference(as_array(values[name]), as_array(expected)):
                raise CutsetError(f"{name} with {rows[0].shape[0]} rows is off by {off_by:g}")


def _onnx_fault(
    program: StageProgram, entry: StageEntry, given: Sequence[dict[str, torch.Tensor]]
) -> str:
    """What a stage computes otherwise in ONNX Runtime than in torch, or ``""``."""
    for values in given:
        results = _run(program, tuple(values[spec.name] for spec in entry.inputs))
        for spec, result in zip(entry.outputs, results, strict=True):
            if fault := _over_tolerance(spec.name, result, values[spec.name]):
                return fault
    return ""


def _run(program: StageProgram, values: Values) -> Values:
    """Runs a stage on tensors."""
    return tuple(map(as_tensor, program(tuple(map(as_array, values)))))


def _check_around(prepared: PreparedModel, programs: Sequence[StageProgram]) -> None:
    """The whole model with its part's work done by the stages, against the whole model.

    Raises:
        CutsetError: they differ.
    """
    assert prepared.part is not None
    model, images = prepared.found.model, prepared.found.example_inputs

    def run(values: Values) -> Values:
        for program in programs:
            values = _run(program, values)
        return values

    with torch.inference_mode():
        expected = pytree.tree_leaves(model(*images))
        with prepared.part.run_elsewhere(model, run):
            found = pytree.tree_leaves(model(*images))
    same = len(found) == len(expected) and not any(
        map(max_abs_difference, map(as_array, found), map(as_array, expected))
    )
    if not same:
        raise CutsetError(f"with {prepared.part.path} split, the whole model's results differ")


def _over_tolerance(name: str, actual: torch.Tensor, expected: torch.Tensor) -> str:
    """In words, where onnxruntime is off by more than it may be, or ``""``.

    `split` leaves out an ONNX model that is off on the reference's rows. A model that magnifies
    rounding (random weights without normalisation) may be so on other rows only.
    """
    off_by = max_abs_difference(as_array(actual), as_array(expected))
    allowed = tolerance_of(as_array(expected))
    if off_by <= allowed:
        return ""
    return f"off: {name} with {expected.shape[0]} rows by {off_by:.2g}, allowed {allowed:.2g}"


def _arrived(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as the next stage gets it: the wire keeps the order of dimensions."""
    if is_dense(tensor.shape, tensor.stride()):
        return tensor
    return tensor.clone(memory_format=torch.preserve_format)


def prepare_process() -> None:
    """What all models share, done once before the processes part: 15 s for each of them.

    Much of torch.export, of the ONNX exporter and of ONNX Runtime is imported or made at first use,
    so a small model goes the whole way. The exporter reads its list of translations anew for every
    stage; here it is read once.
    """
    torch.set_num_threads(1)
    once = functools.cache(ONNXRegistry.from_torchlib)
    ONNXRegistry.from_torchlib = staticmethod(once)  # type: ignore[method-assign,assignment]
    layers = (torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
    model = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(16, 4)).eval()
    check_found(
        FoundModel(
            model=model,
            name="timm:none",
            weights="",
            example_inputs=(torch.randn(2, 3, 4, 4),),
        ),
        Row(spec=""),
        measured=False,  # OpenVINO's threads would not outlive the fork
    )


def run(spec: str, version: str, memory_bytes: int, log: Path, answer: Connection) -> None:
    """Checks one model in a process of its own and sends the row as JSON.

    Args:
        spec: as `find_model` takes it.
        version: of the code, for the row.
        memory_bytes: limit of this process's memory.
        log: what goes wrong is written there in full.
        answer: where the row is sent.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    logging.disable(logging.WARNING)
    row = Row(spec=spec, version=version)
    begin = time.perf_counter()
    with (
        log.open("w", encoding="utf-8") as stream,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(stream),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            row.step = "building"
            found = find_model(spec, weights="random:0")
            row.step_seconds["building"] = round(time.perf_counter() - begin, 2)
            check_found(found, row)
        except Exception as error:  # noqa: BLE001 - a result like any other
            traceback.print_exc()
            lines = str(error).strip().splitlines() or [""]
            row.cause = f"{type(error).__name__}: {lines[0]}"[:400]
    row.seconds = round(time.perf_counter() - begin, 2)
    answer.send_bytes(json.dumps(dataclasses.asdict(row)).encode())
    answer.close()
    sys.stdout.flush()
    os._exit(0)  # nothing is left to do, and large models take their time to be taken apart
