"""What is proven by running the stages: contracts at any number of rows, and equal numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from msgspec.structs import replace

from cutset.bundles.coded_boundaries import as_received, codecs_in_words
from cutset.bundles.manifest import Manifest, StageEntry
from cutset.bundles.open import Bundle
from cutset.bundles.proof.onnx_checks import OnnxStage
from cutset.bundles.proof.results import Difference
from cutset.bundles.reference import (
    EXACT_OUTPUT,
    Reference,
    as_sent,
    describe,
    fits,
    read_reference,
)
from cutset.capture.captured import with_rows
from cutset.differences import magnitude_of, max_abs_difference, tolerance_of
from cutset.dtypes import Arrays
from cutset.errors import CutsetError, ManifestError
from cutset.printable import first_line
from cutset.tensors import TensorSpec

StageFunction: TypeAlias = Callable[[Arrays], Arrays]
"""Takes and returns a stage's tensors in the order of its contract."""


def expected_tensors(manifest: Manifest) -> tuple[TensorSpec, ...]:
    """Every tensor that the reference must hold, once, inputs first."""
    specs = {spec.name: spec for spec in manifest.graph.inputs}
    for stage in manifest.stages:
        specs |= {spec.name: spec for spec in (*stage.inputs, *stage.outputs)}
    specs |= {spec.name: spec for spec in manifest.outputs}
    if manifest.is_coded:
        exact = (replace(spec, name=EXACT_OUTPUT + spec.name) for spec in manifest.outputs)
        specs |= {spec.name: spec for spec in exact}
    return tuple(specs.values())


def _arriving(
    manifest: Manifest, reference: Mapping[str, np.ndarray], num_rows: int
) -> tuple[Mapping[str, np.ndarray], ...]:
    """By stage: the reference's tensors as the stage gets them, those it makes as they are made.

    Raises:
        CodecError: a codec refuses a number of the reference.
    """
    states = [reference]
    for stage in manifest.stages[:-1]:
        states.append(as_received(stage.outputs, stage.output_codecs, states[-1], num_rows))
    return tuple(states)


def contract_faults(
    bundle: Bundle,
    programs: Mapping[int, StageFunction],
    reference: Mapping[str, np.ndarray],
    row_counts: Sequence[int],
) -> tuple[str, ...]:
    """Where neighbours do not meet, on paper and when run with each number of rows.

    Args:
        bundle: opened.
        programs: its stages, by index, those that are at hand.
        reference: valid input rows, repeated as often as needed.
        row_counts: numbers of rows to run with.
    """
    faults = list(_paper_faults(bundle))
    for num_rows in row_counts:
        faults += _run_faults(bundle, programs, reference, num_rows)
    return tuple(faults)


def _paper_faults(bundle: Bundle) -> Iterator[str]:
    """Shapes and dtypes of each tensor, wherever the manifest states them."""
    manifest = bundle.manifest
    made = {spec.name: spec for spec in manifest.graph.inputs}
    for operation in manifest.graph.operations:
        if len(operation.outputs) == 1:
            made[operation.name] = operation.outputs[0]
    for stage in manifest.stages:
        for side, specs in (("takes", stage.inputs), ("returns", stage.outputs)):
            for spec in specs:
                if spec.name not in made:
                    yield f"stage {stage.index} {side} {spec.name!r}, which nothing makes"
                elif made[spec.name] != spec:
                    yield (
                        f"stage {stage.index} {side} {spec.name!r} as {spec}, it is made as "
                        f"{made[spec.name]}"
                    )
    for spec in manifest.outputs:
        if made.get(spec.name) != spec:
            yield f"the output {spec.name!r} is {spec}, it is made as {made.get(spec.name)}"


def _run_faults(
    bundle: Bundle,
    programs: Mapping[int, StageFunction],
    reference: Mapping[str, np.ndarray],
    num_rows: int,
) -> Iterator[str]:
    given: dict[str, np.ndarray] = {}
    for index, program in programs.items():
        stage = bundle.manifest.stages[index]
        inputs = tuple(
            given[spec.name]
            if spec.name in given
            else with_rows(reference[spec.name], spec, num_rows)
            for spec in stage.inputs
        )
        where = f"stage {index} with {num_rows} {'row' if num_rows == 1 else 'rows'}"
        try:
            outputs = program(inputs)
        except (CutsetError, RuntimeError, ValueError, TypeError, IndexError) as error:
            yield f"{where} fails: {first_line(error)}"
            return
        given = {s.name: t for s, t in zip(stage.outputs, outputs, strict=True)}
        wrong = [s for s in stage.outputs if not fits(given[s.name], s, num_rows)]
        for spec in wrong:
            yield f"{where} returns {spec.name!r} as {describe(given[spec.name])}, expected {spec}"
        if wrong:
            return


def codec_effect(manifest: Manifest, reference: Mapping[str, np.ndarray]) -> str:
    """What the codecs of a bundle do to the reference's answers, in words.

    Args:
        manifest: of a bundle with codecs.
        reference: for one number of rows.
    """
    names = [spec.name for spec in manifest.outputs]
    pairs = [(reference[name], reference[EXACT_OUTPUT + name]) for name in names]
    error = max(max_abs_difference(coded, exact) for coded, exact in pairs)
    words = (
        f"which is the whole model with {codecs_in_words(manifest)}: the exact model's outputs are"
        f" at most {error:.3g} away"
    )
    coded, exact = pairs[0]
    if coded.ndim != 2 or not coded.size:
        return words
    num_same = int((coded.argmax(-1) == exact.argmax(-1)).sum())
    return f"{words}, {num_same} of {len(coded)} rows keep its top label"


def chain_differences(
    bundle: Bundle,
    programs: Mapping[int, StageFunction],
    reference: Mapping[str, np.ndarray],
    *,
    backend: str,
    num_rows: int,
) -> tuple[Difference, ...]:
    """Every boundary tensor of the chained stages against the reference's.

    Each stage takes its tensors as a link delivers them. One that lies in memory otherwise than in
    the whole model counts as different: the stage after it may run other kernels.

    Args:
        bundle: opened.
        programs: its stages, by index, those that are at hand.
        reference: what the whole model gave for one number of rows.
        backend: what runs them; of torch's tensors none may differ.
        num_rows: the number of rows.

    Raises:
        RuntimeError: a stage cannot be run; `contract_faults` says so in words.
    """
    found: list[Difference] = []
    given: dict[str, np.ndarray] = {}
    arriving = _arriving(bundle.manifest, reference, num_rows)
    for index, program in programs.items():
        stage, expected = bundle.manifest.stages[index], arriving[index]
        outputs = program(tuple(given.get(s.name, expected[s.name]) for s in stage.inputs))
        given = {s.name: as_sent(t) for s, t in zip(stage.outputs, outputs, strict=True)}
        found += _differences(stage, given, expected, backend=backend, num_rows=num_rows)
        given = as_received(stage.outputs, stage.output_codecs, given, num_rows)
    return tuple(found)


def _differences(
    stage: StageEntry,
    given: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    *,
    backend: str,
    num_rows: int,
) -> Iterator[Difference]:
    is_torch = backend == "torch"
    for spec in stage.outputs:
        actual, expected = given[spec.name], reference[spec.name]
        yield Difference(
            stage=stage.index,
            tensor=spec.name,
            max_abs_error=max_abs_difference(actual, expected),
            tolerance=0.0 if is_torch else tolerance_of(expected),
            backend=backend,
            num_rows=num_rows,
            lies_otherwise=is_torch and _lies_otherwise(actual, expected),
        )


def _lies_otherwise(actual: np.ndarray, expected: np.ndarray) -> bool:
    """Whether the strides differ; of a dimension with one entry it is never used."""
    if not actual.size:
        return False
    lengths = zip(actual.shape, actual.strides, expected.strides, strict=False)
    return any(length > 1 and one != other for length, one, other in lengths)


def relative_difference(found: Sequence[Difference], reference: Mapping[str, np.ndarray]) -> float:
    """The largest difference, relative to the largest magnitude in its reference tensor."""
    return max(
        (d.max_abs_error / (magnitude_of(reference[d.tensor]) or 1.0) for d in found), default=0.0
    )


def onnx_differences(
    bundle: Bundle, indices: Sequence[int], reference: Mapping[str, np.ndarray]
) -> tuple[tuple[Difference, ...], float, tuple[str, ...]]:
    """Each stage's ONNX model on the reference's tensors, against the reference's.

    Returns:
        The difference of every tensor; the largest of all, relative to the largest magnitude in
        its tensor; and in words the stages that could not be run.

    Raises:
        UnsafeBundle: a model could load code or files.
    """
    found: list[Difference] = []
    failures: list[str] = []
    num_rows = next(iter(reference.values())).shape[0]
    arriving = _arriving(bundle.manifest, reference, num_rows)
    for index in indices:
        stage, expected = bundle.manifest.stages[index], arriving[index]
        if stage.model is None:
            continue
        inputs = tuple(expected[spec.name] for spec in stage.inputs)
        try:
            outputs = OnnxStage(bundle, index)(inputs)
        except CutsetError:
            raise
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors derive from Exception
            failures.append(f"stage {index} fails in onnxruntime: {first_line(error)}")
            continue
        given = {s.name: t for s, t in zip(stage.outputs, outputs, strict=True)}
        found += _differences(stage, given, expected, backend="onnxruntime", num_rows=num_rows)
    return tuple(found), relative_difference(found, reference), tuple(failures)


def opened_reference(bundle: Bundle) -> Reference:
    """The reference tensors of an opened bundle.

    Raises:
        ManifestError: they are missing, or are not those that the manifest describes.
    """
    relative = bundle.manifest.reference
    file = bundle.path(relative)
    found: Reference = {}
    if file.exists():
        found, faults = read_reference(
            file, expected_tensors(bundle.manifest), bundle.manifest.graph.inputs
        )
    else:
        faults = (f"{relative} is missing; without it no number can be checked",)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ManifestError(f"{bundle.directory}: {faults[0]}{more}", path="$.reference")
    return found
