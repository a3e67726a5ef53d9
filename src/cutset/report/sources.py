"""What a report is made from: values of the library, and the JSON documents of other commands.

The documents come from files that anyone may have written, so they are read with their types
checked and their sizes bounded; what is not understood is an error that names the place.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from cutset.bundles.file_entries import FileEntry
from cutset.bundles.manifest import PartEntry, StageEntry
from cutset.bundles.proof.results import VerificationDocument
from cutset.cluster.devices import Cluster
from cutset.costs.profile import Profile
from cutset.errors import PlanError
from cutset.graph.cuts import CutPoints
from cutset.graph.ir import Graph
from cutset.measure.bench_results import BenchReport
from cutset.planning.plan import Plan, plan_from_json
from cutset.runtime.chrome_trace import Trace

MAX_DOCUMENT_BYTES = 64 << 20
"""The longest file that is read (a trace of 2,000 micro-batches over 16 stages has 20 MiB)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSources:
    """All that a report can be made from; only the plan is needed.

    Attributes:
        plan: the plan.
        model: the model's name, or ``""``.
        graph: the captured model.
        cuts: its positions, judged; given exactly where `graph` is.
        profiles: measured costs, by name where devices have their own.
        cluster: the devices and links that were planned for.
        verification: what `cutset verify` found.
        bench: what `cutset bench` measured.
        trace: what `cutset bench --trace` wrote.
        contracts: what the stages of a bundle take and return, in pipeline order.
        files: of a bundle.
        versions: of what wrote the bundle, by name.
        weights: where the weights came from, in words.
        part: which part of the model was planned, where it is not the whole.
        gain_inside_units: what cuts inside units would gain, as a fraction, where the caller knows;
            it is worked out where not.
    """

    plan: Plan
    model: str = ""
    graph: Graph | None = None
    cuts: CutPoints | None = None
    profiles: Profile | Mapping[str, Profile] | None = None
    cluster: Cluster | None = None
    verification: VerificationDocument | None = None
    bench: BenchReport | None = None
    trace: Trace | None = None
    contracts: tuple[StageEntry, ...] = ()
    files: tuple[FileEntry, ...] = ()
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    weights: str = ""
    part: PartEntry | None = None
    gain_inside_units: float | None = None

    def of_model(self, name: str, graph: Graph, cuts: CutPoints) -> ReportSources:
        """The same with the model that the plan was made for.

        Raises:
            PlanError: the plan is not of this graph.
        """
        return dataclasses.replace(self, model=name, graph=graph, cuts=cuts)

    def __post_init__(self) -> None:
        """Checks what belongs together.

        Raises:
            ValueError: a graph without judged positions, or the other way round.
            PlanError: the plan is not of this graph, or a measurement of another bundle.
        """
        if (self.graph is None) != (self.cuts is None):
            raise ValueError("give the graph and its cut points together")
        if self.graph is not None and self.cuts is not None:
            _check_plan(self.plan, self.graph, self.cuts)
        num_stages = len(self.plan.stages)
        if self.bench is not None and len(self.bench.stages) != num_stages:
            raise PlanError(
                f"the bench run has {len(self.bench.stages)} stages, the plan {num_stages}; "
                "give the measurement of this plan's bundle"
            )
        for each in self.verification.boundaries if self.verification else ():
            if not 0 <= each.stage < num_stages:
                raise PlanError(
                    f"the verification speaks of stage {each.stage}, the plan has {num_stages}; "
                    "give the verification of this plan's bundle"
                )


def _check_plan(plan: Plan, graph: Graph, cuts: CutPoints) -> None:
    """Every stage of the plan must end where the graph may be cut, under the same name."""
    known = {point.position: point.after for point in cuts.points}
    edges = [0, *(stage.stop for stage in plan.stages)]
    if edges[-1] != len(graph.operations):
        raise PlanError(
            f"the plan covers {edges[-1]} operations, the model has {len(graph.operations)}; "
            "it is the plan of another model"
        )
    for stage, start in zip(plan.stages, edges, strict=False):
        if stage.start != start:
            raise PlanError(f"stage {stage.index} begins at operation {stage.start}, not {start}")
    for stage in plan.stages[:-1]:
        if known.get(stage.stop) != stage.last:
            raise PlanError(
                f"the plan cuts after {stage.last!r} (operation {stage.stop}), where this model "
                f"has {known.get(stage.stop, 'no cut point')!r}; it is the plan of another model, "
                "or of other keep, divide and max_tensors"
            )


_T = TypeVar("_T")


def _read(path: str | Path, kind: type[_T], what: str) -> _T:
    data = _read_bytes(path, what)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PlanError(f"{path}: no {what}: {error}") from error


def _read_bytes(path: str | Path, what: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise PlanError(f"{path}: the {what} cannot be read: {error.strerror}") from error
    if len(data) > MAX_DOCUMENT_BYTES:
        raise PlanError(f"{path}: longer than {MAX_DOCUMENT_BYTES} bytes, so it is no {what}")
    return data


def load_verification(path: str | Path) -> VerificationDocument:
    """Reads what ``cutset verify --json`` printed.

    Raises:
        PlanError: the file cannot be read or is something else.
    """
    return _read(path, VerificationDocument, "document of cutset verify --json")


def load_bench(path: str | Path) -> BenchReport:
    """Reads what ``cutset bench --json`` printed.

    Raises:
        PlanError: the file cannot be read, is something else, or has a number out of its range.
    """
    bench = _read(path, BenchReport, "document of cutset bench --json")
    numbers = [bench.period_s, bench.rows_per_s, bench.predicted_period_s, bench.latency_s.p50]
    numbers += [share for stage in bench.stages for share in (stage.busy, stage.waiting)]
    if not all(0 <= number < math.inf for number in numbers):
        raise PlanError(f"{path}: a number is negative, which no measurement is")
    return bench


def load_trace(path: str | Path) -> Trace:
    """Reads what ``cutset bench --trace`` wrote.

    Raises:
        PlanError: the file cannot be read or is something else.
    """
    return _read(path, Trace, "Chrome trace of cutset bench --trace")


def load_plan_document(path: str | Path) -> ReportSources:
    """Reads a plan, from `plan_to_json` or from the ``--json`` of plan and split.

    Returns:
        The plan, and where the document says so its part and what cuts inside units would gain.

    Raises:
        PlanError: the file cannot be read or holds no plan.
    """
    document = msgspec.json.decode(b"{}")
    data = _read_bytes(path, "plan")
    try:
        document = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PlanError(f"{path}: no valid plan: {error}") from error
    if not isinstance(document, dict):
        raise PlanError(f"{path}: no valid plan: expected an object")
    document.pop("bundle", None)
    try:
        part = msgspec.convert(document.pop("part", None), PartEntry | None)
    except msgspec.ValidationError as error:
        raise PlanError(f"{path}: no valid plan: part: {error}") from error
    if part is not None and not 0 < part.work_share <= 1:
        raise PlanError(
            f"{path}: no valid plan: part: work_share is {part.work_share}, expected above 0, at"
            " most 1"
        )
    gain = document.pop("gain_inside_units", None)
    if gain is not None and not isinstance(gain, (int, float)):
        raise PlanError(f"{path}: gain_inside_units is {gain!r}, expected a number")
    plan = plan_from_json(msgspec.json.encode(document), source=str(path))
    return ReportSources(plan=plan, gain_inside_units=gain, part=part)
