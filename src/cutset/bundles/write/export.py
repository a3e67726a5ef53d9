"""Writes a bundle: one program per stage, the manifest, the reference tensors.

Everything is written to a temporary folder beside the target, which is renamed at the end: nobody
ever sees half a bundle, and an interrupted export leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cutset.bundles.agreement import AgreementEntry
from cutset.bundles.coded_boundaries import change_numbers
from cutset.bundles.coded_model import CodedModel, planned_codecs
from cutset.bundles.file_entries import FileEntry, sha256_of
from cutset.bundles.manifest import (
    Manifest,
    PartEntry,
    StageEntry,
    encode_manifest,
    format_of,
)
from cutset.bundles.reference import (
    EXACT_OUTPUT,
    REFERENCE_NAME,
    Reference,
    encode_reference,
    reference_rows,
)
from cutset.bundles.strict_json import MANIFEST_NAME
from cutset.bundles.write.description import check_labels
from cutset.capture.arguments import ExampleInputs
from cutset.capture.captured import Captured, PieceFiles, with_rows
from cutset.costs.cost_model import live_bytes
from cutset.data.images import Preprocessing
from cutset.dtypes import Arrays
from cutset.errors import BundleError
from cutset.graph.ir import Graph, boundary_specs
from cutset.planning.plan import Plan, StagePlan
from cutset.processes import encodable
from cutset.progress import Progress, no_progress
from cutset.tensors import TensorSpec
from cutset.version import __version__

logger = logging.getLogger(__name__)


def export_bundle(  # noqa: PLR0913  # the words of a manifest, each with a default
    model: Any,
    plan: Plan,
    directory: str | os.PathLike[str],
    *,
    captured: Captured | None = None,
    example_inputs: ExampleInputs | None = None,
    model_name: str = "",
    part: PartEntry | None = None,
    weights: str = "",
    preprocessing: Preprocessing | None = None,
    labels: Sequence[str] | None = None,
    keep: Collection[str] = (),
    divide: Collection[str] = (),
    max_tensors: int = 1,
    num_threads: int = 1,
    agreement: AgreementEntry | None = None,
    replace: bool = False,
    check: Callable[[Path], None] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Writes the stages of a plan as a bundle.

    Args:
        model: the whole model, in evaluation mode, which gives the reference: a module of torch,
            or what `captured.module` is.
        plan: which operations each stage holds.
        directory: the bundle's folder; by custom it ends in ``.cutset``.
        captured: what `capture_model` or `capture_onnx` returned for `model`; a module of torch is
            captured again if None.
        example_inputs: inputs to capture with, needed when `captured` is None.
        model_name: how the model was asked for; its class's name if empty.
        part: where `model` is a part of the user's model, which.
        weights: where the weights came from, in words.
        preprocessing: how images become rows, or None.
        labels: names of the classes, as many as the first output's last dimension is long, or
            None.
        keep: as given to `find_cut_points`; `verify_bundle` judges the cuts by it.
        divide: likewise.
        max_tensors: likewise.
        num_threads: threads with which the reference tensors are computed.
        agreement: where the plan has codecs, how far they were seen to change answers.
        replace: whether a bundle that is there already may be replaced.
        check: called with the finished folder before it gets its name; if it raises, nothing is
            left behind and a bundle that was there stays.
        progress: called with a few words before each step.

    Returns:
        The bundle's folder.

    Raises:
        BundleError: the folder exists, or cannot be written (disk full, no permission).
        CaptureError: the model or a stage cannot be exported.
        ModelError: the labels are not as many as the classes.
    """
    target = Path(directory).absolute()
    progress = progress or no_progress
    check_target(target, replace=replace)
    if captured is None:
        if example_inputs is None:
            raise ValueError("export_bundle needs either captured or example_inputs")
        from cutset.capture.torch_export import capture_model

        captured = capture_model(model, example_inputs)
    if captured.module is not model:
        raise ValueError("captured is of another model: give the object that was captured")
    if labels is not None:
        check_labels(labels, _outputs(captured)[0])
    if not captured.no_programs:
        _check_operations(captured.graph)
    settings = captured.settings
    with captured.computing(num_threads), _temporary_folder(target) as folder:
        writer = _BundleWriter(captured, plan, folder, progress)
        stages = writer.write_stages()
        writer.write_reference()
        manifest = msgspec.structs.replace(
            writer.manifest(stages, num_threads),
            model=model_name or captured.graph.model_class,
            part=part,
            weights=weights,
            keep=tuple(keep),
            divide=tuple(divide),
            max_tensors=max_tensors,
            preprocessing=preprocessing,
            torch_settings=settings,
            labels=tuple(labels) if labels is not None else None,
            agreement=agreement or msgspec.UNSET,
        )
        _write(folder / MANIFEST_NAME, encode_manifest(manifest))
        if check is not None:
            check(folder)
        _move_into_place(folder, target)
    return target


class _BundleWriter:
    """Writes the stages and the reference into a folder."""

    def __init__(
        self,
        captured: Captured,
        plan: Plan,
        folder: Path,
        progress: Progress,
    ) -> None:
        self._captured = captured
        self._plan = plan
        self._folder = folder
        self._progress = progress
        self._boundaries = _boundaries(captured, plan)
        specs = (*captured.graph.inputs, *self._boundaries, *_outputs(captured))
        self._row_counts = reference_rows(
            dict.fromkeys(specs), plan.micro_batch, captured.micro_batch_only
        )

    def _inputs(self, num_rows: int) -> Arrays:
        """Rows of the example; for all but the reference's first number those of the first."""
        first = self._captured.rows(self._row_counts[0])
        pairs = zip(first, self._captured.graph.inputs, strict=True)
        return tuple(with_rows(array, spec, num_rows) for array, spec in pairs)

    def write_stages(self) -> tuple[StageEntry, ...]:
        """Writes every stage's programs."""
        writer = self._captured.stage_writer(self._inputs(self._row_counts[0]), self._boundaries)
        entries = []
        for stage in self._plan.stages:
            self._progress(f"exporting stage {stage.index} ({stage.first} ... {stage.last})")
            folder = self._folder / f"stage-{stage.index}"
            folder.mkdir()
            files = writer.write(stage.start, stage.stop, folder)
            entries.append(_entry(self._captured.graph, stage, files))
        return tuple(entries)

    def manifest(self, stages: tuple[StageEntry, ...], num_threads: int) -> Manifest:
        """What the bundle holds; what people say of the model is still missing."""
        graph = self._captured.graph
        return Manifest(
            format=format_of(self._plan),
            created_by={
                "cutset": __version__,
                **self._captured.made_with,
                "python": platform.python_version(),
            },
            model="",
            weights="",
            keep=(),
            divide=(),
            max_tensors=1,
            graph=graph,
            stages=stages,
            outputs=tuple(graph.spec_of(name) for name in graph.outputs),
            output_names=self._captured.output_names,
            shared_parameters=_shared(stages),
            unused_parameters=_unused(self._captured, stages),
            plan=self._plan,
            preprocessing=None,
            labels=None,
            reference=REFERENCE_NAME,
            num_threads=num_threads,
            files=_file_entries(self._folder),
            micro_batch_only=self._captured.micro_batch_only,
        )

    def write_reference(self) -> None:
        """Writes inputs, boundaries and, from the whole model itself, the results."""
        reference: Reference = {}
        captured, stop = self._captured, len(self._captured.graph.operations)
        names = [spec.name for spec in self._boundaries]
        run = captured.piece_run(0, stop, self._boundaries) if names else None
        codecs = (planned_codecs(captured.graph, stage) for stage in self._plan.stages)
        is_coded = any(map(change_numbers, codecs))
        coded = CodedModel(captured, self._plan) if is_coded else None
        for num_rows in self._row_counts:
            rows = "row" if num_rows == 1 else "rows"
            self._progress(f"running the whole model with {num_rows} {rows} for the reference")
            inputs = self._inputs(num_rows)
            given = {s.name: a for s, a in zip(captured.graph.inputs, inputs, strict=True)}
            group = dict(given) if num_rows == self._row_counts[0] else {}
            results = captured.run_whole(inputs)
            if coded is None:
                made = run(inputs) if run is not None else {}
            else:
                pairs = zip(captured.graph.outputs, results, strict=True)
                group |= {EXACT_OUTPUT + name: array for name, array in pairs}
                made, results = coded.run(inputs, num_rows)
            group |= {name: made[name] for name in names}
            for name, array in zip(captured.graph.outputs, results, strict=True):
                if name not in given:
                    group[name] = array
            reference[num_rows] = group
        _write(self._folder / REFERENCE_NAME, encode_reference(reference))


def _boundaries(captured: Captured, plan: Plan) -> tuple[TensorSpec, ...]:
    """What crosses the plan's cuts and is no input of the model, each tensor once."""
    given = {spec.name for spec in captured.graph.inputs}
    stops = [stage.stop for stage in plan.stages[:-1]]
    specs = [spec for stop in stops for spec in boundary_specs(captured.graph, stop)]
    return tuple(spec for spec in dict.fromkeys(specs) if spec.name not in given)


def _outputs(captured: Captured) -> tuple[TensorSpec, ...]:
    return tuple(captured.graph.spec_of(name) for name in captured.graph.outputs)


def _entry(graph: Graph, stage: StagePlan, files: PieceFiles) -> StageEntry:
    operations = graph.operations[stage.start : stage.stop]
    sizes = {parameter.name: parameter.num_bytes for parameter in graph.parameters}
    folder = f"stage-{stage.index}"
    return StageEntry(
        index=stage.index,
        operations=tuple(operation.name for operation in operations),
        units=stage.units,
        parameters=files.weight_names,
        inputs=boundary_specs(graph, stage.start),
        outputs=boundary_specs(graph, stage.stop),
        program=f"{folder}/{files.program}" if files.program else None,
        model=f"{folder}/{files.model}" if files.model else None,
        model_missing=files.model_missing,
        weight_bytes=sum(sizes[name] for name in files.weight_names),
        peak_activation_bytes=max(live_bytes(graph)[stage.start : stage.stop]),
        flops=sum(operation.flops for operation in operations),
        output_codecs=planned_codecs(graph, stage),
    )


def _check_operations(graph: Graph) -> None:
    """Refuses a model that nobody could load: a bundle may name well-known operations only.

    Raises:
        BundleError: an operation is not on the list; says where it is.
    """
    from cutset.bundles.reading.torch.operators import is_allowed

    for operation in graph.operations:
        if operation.target != "getitem" and not is_allowed(f"torch.ops.{operation.target}"):
            where = f" in {operation.modules[-1].path}" if operation.modules[-1].path else ""
            line = f" ({operation.source})" if operation.source else ""
            raise BundleError(
                f"operation {operation.target}{where}{line} may not be part of a bundle: it is "
                "random, custom or unknown, and whoever loads the bundle would have to trust it. "
                "Replace it in the model's forward"
            )


def check_target(target: Path, *, replace: bool) -> None:
    """Refuses a target that must not be overwritten.

    Raises:
        BundleError: something is there that is no bundle, or a bundle that may not be replaced.
    """
    try:
        os.fspath(target.absolute()).encode()
    except UnicodeEncodeError as error:
        raise BundleError(
            f"{encodable(str(target))}: torch and ONNX cannot write into a folder whose name is no"
            " UTF-8; write the bundle elsewhere and move it",
            path=str(target),
        ) from error
    if not (target.exists() or target.is_symlink()):
        return
    is_bundle = target.is_dir() and (target / MANIFEST_NAME).is_file()
    is_empty = target.is_dir() and not any(target.iterdir())
    if is_empty or (is_bundle and replace):
        return
    what = (
        "a bundle is there already; replace it (--force, replace=True) or"
        if is_bundle
        else "it exists and is no bundle;"
    )
    raise BundleError(f"{target}: {what} choose another folder", path=str(target))


@contextlib.contextmanager
def _temporary_folder(target: Path) -> Iterator[Path]:
    """A folder beside the target, gone when the block ends unless it was moved away."""
    folder: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        folder.chmod(0o755)
        yield folder
    except OSError as error:
        raise BundleError(
            f"{target}: the bundle cannot be written: {error.strerror or error}; "
            "nothing was left behind",
            path=str(target),
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _move_into_place(folder: Path, target: Path) -> None:
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        target.rename(old / "bundle")
        try:
            folder.rename(target)
        except OSError:
            (old / "bundle").rename(target)
            raise
        finally:
            shutil.rmtree(old, ignore_errors=True)
    else:
        folder.rename(target)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)


def _shared(stages: Sequence[StageEntry]) -> tuple[str, ...]:
    holders: dict[str, int] = {}
    for stage in stages:
        for name in stage.parameters:
            holders[name] = holders.get(name, 0) + 1
    return tuple(name for name, count in holders.items() if count > 1)


def _unused(captured: Captured, stages: Sequence[StageEntry]) -> tuple[str, ...]:
    used = {name for stage in stages for name in stage.parameters}
    return tuple(p.name for p in captured.graph.parameters if p.name not in used)


def _file_entries(folder: Path) -> tuple[FileEntry, ...]:
    return tuple(
        FileEntry(
            path=path.relative_to(folder).as_posix(),
            num_bytes=path.stat().st_size,
            sha256=sha256_of(path),
        )
        for path in sorted(path for path in folder.rglob("*") if path.is_file())
    )
