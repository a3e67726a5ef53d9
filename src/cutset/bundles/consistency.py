"""What the types of a manifest cannot say: the rules marked [M] in `manifest`, and paths."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from cutset.bundles.coded_boundaries import check_codecs
from cutset.bundles.sizes import check_sizes
from cutset.bundles.strict_json import MANIFEST_NAME, contradiction
from cutset.errors import UnsafeBundle
from cutset.graph.ir import Graph
from cutset.tensors import MAX_TENSORS, TensorSpec

if TYPE_CHECKING:
    from cutset.bundles.manifest import Manifest

_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,127}){0,7}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_relative_path(path: str, *, json_path: str) -> None:
    """Checks that `path` cannot lead out of the bundle.

    Raises:
        UnsafeBundle: it is absolute, not normalised, or has characters beyond the permitted.
    """
    if not _PATH.fullmatch(path):
        raise UnsafeBundle(
            f"{MANIFEST_NAME}: {json_path} is the path {path[:120]!r}; a bundle's paths are "
            f"relative, without '..', of letters, digits, '.', '_', '-' and '/'",
            path=path,
        )


def check_manifest(manifest: Manifest) -> None:
    """Checks what the types cannot say: the rules marked [M], and paths.

    Raises:
        ManifestError: two places contradict each other; `path` is the JSON path of one.
        UnsafeBundle: a path in it is not permitted.
    """
    _check_files(manifest)
    _check_graph(manifest.graph)
    _check_stages(manifest)
    _check_chain(manifest)
    check_codecs(manifest)
    check_sizes(manifest)
    if manifest.part is not None and not 0 < manifest.part.work_share <= 1:
        raise contradiction(
            "$.part.work_share", f"is {manifest.part.work_share}, expected above 0 and at most 1"
        )
    if manifest.micro_batch_only not in (None, manifest.plan.micro_batch):
        raise contradiction(
            "$.micro_batch_only",
            f"is {manifest.micro_batch_only}, but $.plan.micro_batch is "
            f"{manifest.plan.micro_batch}",
        )
    if len(manifest.output_names) != len(manifest.outputs):
        raise contradiction(
            "$.output_names",
            f"has {len(manifest.output_names)} entries for {len(manifest.outputs)} outputs",
        )
    num_classes = num_classes_of(manifest.outputs[0])
    if manifest.labels is not None and len(manifest.labels) != num_classes:
        raise contradiction(
            "$.labels",
            f"has {len(manifest.labels)} entries, but the first output has "
            f"{'no classes' if num_classes is None else f'{num_classes} classes'}",
        )
    known = {parameter.name for parameter in manifest.graph.parameters}
    for key in ("shared_parameters", "unused_parameters"):
        _check_known(getattr(manifest, key), known, f"$.{key}", "parameter")


def num_classes_of(spec: TensorSpec) -> int | None:
    """The length of an output's last dimension; None where it is as long as there are rows."""
    last = spec.shape[-1] if spec.shape else None
    return last if isinstance(last, int) else None


def _check_known(names: Iterable[str], known: Collection[str], json_path: str, kind: str) -> None:
    for index, name in enumerate(names):
        if name not in known:
            raise contradiction(
                f"{json_path}[{index}]", f"names the {kind} {name[:120]!r}, which the graph lacks"
            )


def _check_files(manifest: Manifest) -> None:
    seen: set[str] = set()
    for index, entry in enumerate(manifest.files):
        check_relative_path(entry.path, json_path=f"$.files[{index}].path")
        if entry.path in seen or entry.path == MANIFEST_NAME:
            raise contradiction(f"$.files[{index}].path", f"lists {entry.path!r} twice")
        seen.add(entry.path)
        if not _SHA256.fullmatch(entry.sha256):
            raise contradiction(f"$.files[{index}].sha256", "is no sha256 in lower-case hex")
    for json_path, path, folder in _named_files(manifest):
        check_relative_path(path, json_path=json_path)
        if path not in seen:
            raise contradiction(json_path, f"is {path!r}, which $.files does not list")
        if not path.startswith(folder):
            raise contradiction(json_path, f"is {path!r}, expected a file in {folder!r}")


def _named_files(manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    """JSON path, path and folder of every file that is named outside of the list."""
    yield "$.reference", manifest.reference, ""
    for index, stage in enumerate(manifest.stages):
        place, folder = f"$.stages[{index}]", f"stage-{index}/"
        if (stage.program is None) != (manifest.stages[0].program is None):
            raise contradiction(f"{place}.program", "is null in some stages only")
        if stage.program is None and stage.model is None:
            raise contradiction(f"{place}.program", "is null and so is model")
        if (stage.model is None) != bool(stage.model_missing):
            raise contradiction(f"{place}.model_missing", "is given exactly where model is null")
        if stage.program is not None:
            yield f"{place}.program", stage.program, folder
        if stage.model is not None:
            yield f"{place}.model", stage.model, folder


def _check_graph(graph: Graph) -> None:
    names: set[str] = set()
    for index, spec in enumerate(graph.inputs):
        if spec.name in names:
            raise contradiction(f"$.graph.inputs[{index}].name", f"repeats {spec.name!r}")
        names.add(spec.name)
    parameters = {parameter.name for parameter in graph.parameters}
    if len(parameters) != len(graph.parameters):
        raise contradiction("$.graph.parameters", "has a name twice")
    for index, operation in enumerate(graph.operations):
        place = f"$.graph.operations[{index}]"
        _check_known(operation.inputs, names, f"{place}.inputs", "earlier tensor")
        _check_known(operation.parameters, parameters, f"{place}.parameters", "parameter")
        if operation.name in names:
            raise contradiction(f"{place}.name", f"repeats {operation.name!r}")
        names.add(operation.name)
    _check_known(graph.outputs, _single_tensors(graph), "$.graph.outputs", "single tensor")


def _single_tensors(graph: Graph) -> frozenset[str]:
    """Names of the values that are one tensor each, so that a spec can be asked for by name."""
    made = (each.name for each in graph.operations if len(each.outputs) == 1)
    return frozenset((*(spec.name for spec in graph.inputs), *made))


def _check_stages(manifest: Manifest) -> None:
    graph, stages = manifest.graph, manifest.stages
    if not stages:
        raise contradiction("$.stages", "is empty")
    if len(manifest.plan.stages) != len(stages):
        raise contradiction(
            "$.plan.stages", f"has {len(manifest.plan.stages)} entries for {len(stages)} stages"
        )
    operations = {operation.name for operation in graph.operations}
    parameters = {parameter.name for parameter in graph.parameters}
    for index, stage in enumerate(stages):
        place = f"$.stages[{index}]"
        if stage.index != index:
            raise contradiction(f"{place}.index", f"is {stage.index}, expected {index}")
        _check_known(stage.operations, operations, f"{place}.operations", "operation")
        _check_known(stage.parameters, parameters, f"{place}.parameters", "parameter")


def _check_chain(manifest: Manifest) -> None:
    """Each stage takes, by name, what the one before it returns."""
    stages = manifest.stages
    known = _single_tensors(manifest.graph)
    given = {spec.name for spec in manifest.graph.inputs}
    source = "$.graph.inputs"
    for index, stage in enumerate(stages):
        for key, specs in (("inputs", stage.inputs), ("outputs", stage.outputs)):
            if not specs or len({spec.name for spec in specs}) != len(specs):
                raise contradiction(f"$.stages[{index}].{key}", "is empty or names a tensor twice")
            if len(specs) > MAX_TENSORS:
                raise contradiction(
                    f"$.stages[{index}].{key}",
                    f"has {len(specs)} tensors, at most {MAX_TENSORS} may cross a boundary",
                )
        taken = {spec.name for spec in stage.inputs}
        if taken != given:
            odd = min(taken ^ given)
            raise contradiction(
                f"$.stages[{index}].inputs",
                f"and {source} do not meet: {odd[:120]!r} is in one of them only",
            )
        source = f"$.stages[{index}].outputs"
        _check_known((spec.name for spec in stage.outputs), known, source, "single tensor")
        given = {spec.name for spec in stage.outputs}
    outputs = tuple(spec.name for spec in manifest.outputs)
    if outputs != manifest.graph.outputs or set(outputs) != given:
        raise contradiction("$.outputs", f"are not those of $.graph.outputs and {source}")
