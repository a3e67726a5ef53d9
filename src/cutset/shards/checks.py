"""The checks on an opened bundle, which load its programs and run them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from cutset.errors import BundleError, ManifestError
from cutset.shards import running_checks
from cutset.shards.load import Bundle, StageFunction, StageProgram, load_onnx_model, load_program
from cutset.shards.onnx_checks import OnnxStage, onnx_faults
from cutset.shards.reference import Reference, read_reference
from cutset.shards.static_checks import completeness_faults, summary, unit_faults
from cutset.shards.verification import CheckResult, VerificationReport
from cutset.threads import compute_threads

ROW_COUNTS = (1, 2, 5)

_RUN_ERRORS = (RuntimeError, ValueError, TypeError, IndexError)


@dataclass(frozen=True)
class WholeModel:
    """The model that was cut, and how it is called."""

    model: torch.nn.Module
    call: Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], Any]


class Verification:
    """One verification of an opened bundle; a class only to hold what the checks share."""

    def __init__(
        self,
        bundle: Bundle,
        model: WholeModel | None,
        backends: Collection[str],
        report: Callable[[str], None],
    ) -> None:
        self._bundle = bundle
        self._model = model
        self._backends = backends
        self._report = report
        self._maker = "torch" if bundle.manifest.has_programs else "onnxruntime"
        self._stages: dict[int, StageFunction] = {}
        self._programs: dict[int, StageProgram] = {}
        self._models: dict[int, OnnxStage] = {}
        self._references: Reference = {}
        self._comparisons: tuple[running_checks.Difference, ...] = ()
        self._max_abs_error: float | None = None
        self._error: BundleError | None = None

    def run(self) -> VerificationReport:
        """All checks; integrity is looked at first, since the others stand on it."""
        integrity = self._integrity()
        with compute_threads(self._bundle.manifest.num_threads):
            contracts = self._contracts()
            completeness = self._completeness()
            units = self._units()
            numerics = self._numerics()
        return VerificationReport(
            checks=(contracts, completeness, units, numerics, integrity),
            max_abs_error=self._max_abs_error,
            bit_exact=self._max_abs_error == 0.0,
            differences=tuple(
                d for d in self._comparisons if d.backend == self._maker and d.is_too_large
            ),
            comparisons=self._comparisons,
            error=self._error,
            part=self._bundle.manifest.part,
        )

    def _result(self, name: str, faults: tuple[str, ...], otherwise: str) -> CheckResult:
        return CheckResult(name=name, ok=not faults, detail=summary(faults, otherwise))

    def _integrity(self) -> CheckResult:
        bundle = self._bundle
        faults: list[str] = []
        for index in bundle.stages:
            self._report(f"loading stage {index}")
            try:
                self._load(index)
            except BundleError as error:
                faults.append(str(error))
                self._error = self._error or error
        faults += self._read_reference()
        num_files = len(bundle.manifest.files) + 1
        return self._result(
            "integrity", tuple(faults), f"{num_files} files, sizes and hashes agree, safe to load"
        )

    def _load(self, index: int) -> None:
        """Loads what is run of a stage, and checks what is not."""
        bundle = self._bundle
        if not bundle.manifest.has_programs:
            self._models[index] = self._stages[index] = OnnxStage(bundle, index)
            return
        self._programs[index] = self._stages[index] = load_program(bundle, index)
        if bundle.manifest.stages[index].model is not None:
            load_onnx_model(bundle, index)

    def _read_reference(self) -> tuple[str, ...]:
        relative = self._bundle.manifest.reference
        file = self._bundle.path(relative)
        faults: tuple[str, ...]
        if not file.exists():
            faults = (f"{relative} is missing; without it no number can be checked",)
        else:
            specs = running_checks.expected_tensors(self._bundle)
            inputs = self._bundle.manifest.graph.inputs
            self._references, faults = read_reference(file, specs, inputs)
        if faults:
            self._error = self._error or ManifestError(
                f"{self._bundle.directory}: {faults[0]}", path="$.reference"
            )
        return faults

    @property
    def _reference(self) -> Mapping[str, torch.Tensor]:
        """The tensors of the first number of rows."""
        return next(iter(self._references.values()), {})

    @property
    def _obstacle(self) -> tuple[str, ...]:
        """Why the stages cannot be run, if they cannot."""
        missing = [index for index in self._bundle.stages if index not in self._stages]
        if missing:
            return (f"not checked: stage {missing[0]} was not loaded, see integrity",)
        if not self._references:
            return ("not checked: there are no reference tensors, see integrity",)
        return ()

    def _contracts(self) -> CheckResult:
        self._report("checking contracts")
        faults = self._obstacle or running_checks.contract_faults(
            self._bundle, self._stages, self._reference, ROW_COUNTS
        )
        num_boundaries = len(self._bundle.manifest.stages) - 1
        rows = ", ".join(map(str, ROW_COUNTS))
        return self._result(
            "contracts", faults, f"{_count(num_boundaries, 'boundary')} met with {rows} rows"
        )

    def _completeness(self) -> CheckResult:
        self._report("checking completeness")
        manifest = self._bundle.manifest
        programs = {index: stage.program for index, stage in self._programs.items()}
        faults = completeness_faults(manifest, programs) + onnx_faults(manifest, self._models)
        if len(self._stages) < len(self._bundle.stages):
            faults += ("not checked against every stage's program, see integrity",)
        detail = (
            f"{_count(len(manifest.graph.operations), 'operation')} and "
            f"{_count(len(manifest.graph.parameters), 'parameter')} accounted for, "
            f"{len(manifest.shared_parameters)} shared, {len(manifest.unused_parameters)} unused"
        )
        return self._result("completeness", faults, detail)

    def _units(self) -> CheckResult:
        self._report("checking units")
        manifest = self._bundle.manifest
        cuts = len(manifest.stages) - 1
        return self._result(
            "units", unit_faults(manifest), f"no unit is divided by {_count(cuts, 'cut')}"
        )

    def _numerics(self) -> CheckResult:
        self._report("comparing numbers")
        if self._obstacle:
            return self._result("numerics", self._obstacle, "")
        num_rows = 0
        try:
            for rows, reference in self._references.items():
                num_rows = rows
                self._comparisons += running_checks.chain_differences(
                    self._bundle,
                    self._stages,
                    reference,
                    backend=self._maker,
                    num_rows=num_rows,
                )
        except _RUN_ERRORS as error:
            fault = f"the stages do not run with {_count(num_rows, 'row')}: {error}"
            return self._result("numerics", (fault,), "")
        self._max_abs_error = max((d.max_abs_error for d in self._comparisons), default=0.0)
        faults = [self._sentence(d) for d in self._comparisons if d.is_too_large][:1]
        details = [self._equality()]
        if "onnxruntime" in self._backends and self._maker == "torch":
            onnx_faults, detail = self._onnx()
            faults += onnx_faults
            details.append(detail)
        if self._model is not None:
            faults += self._whole_model(self._model)
            part = self._bundle.manifest.part
            whole = f"part {part.path}, whole," if part else "the whole model"
            details.append(f"{whole} gives the same with {self._rows_in_words()}")
        return self._result("numerics", tuple(faults), ", ".join(details))

    def _equality(self) -> str:
        """How the backend that made the reference compares with it, where nothing is wrong."""
        if not self._max_abs_error:
            return f"{self._maker} equals the reference bit for bit with {self._rows_in_words()}"
        largest = max(
            running_checks.relative_difference(
                [d for d in self._comparisons if d.num_rows == num_rows], reference
            )
            for num_rows, reference in self._references.items()
        )
        return f"{self._maker} within tolerance ({largest:.1e} of a tensor's magnitude)"

    def _rows_in_words(self) -> str:
        counts = sorted(self._references)
        named = ", ".join(map(str, counts[:-1])) + " and " if len(counts) > 1 else ""
        return f"{named}{_count(counts[-1], 'row')}"

    def _onnx(self) -> tuple[list[str], str]:
        try:
            found, largest, failures = running_checks.onnx_differences(
                self._bundle, tuple(self._programs), self._reference
            )
        except BundleError as error:
            return [f"not checked with onnxruntime: {error}"], ""
        self._comparisons += found
        faults = [self._sentence(d) for d in found if d.is_too_large][:1]
        stages = self._bundle.manifest.stages
        missing = [stage for stage in stages if stage.model is None]
        if len(missing) == len(stages):
            return [*failures], f"no stage has an ONNX model ({stages[0].model_missing})"
        detail = f"onnxruntime within tolerance ({largest:.1e} of a tensor's magnitude)"
        for stage in missing:
            detail += f"; stage {stage.index} has no ONNX model ({stage.model_missing})"
        return [*faults, *failures], detail

    def _whole_model(self, whole: WholeModel) -> list[str]:
        for num_rows, reference in self._references.items():
            try:
                found = running_checks.model_differences(
                    self._bundle, whole.model, reference, whole.call
                )
            except _RUN_ERRORS as error:
                return [f"the given model does not run on the reference's inputs: {error}"]
            if found:
                first = found[0]
                fault = (
                    f"the given model differs from the reference at output {first.tensor!r} with "
                    f"{_count(num_rows, 'row')} by {first.max_abs_error:.6g}: other weights, or "
                    "another model"
                )
                return [fault]
        return []

    def _sentence(self, difference: running_checks.Difference) -> str:
        last = len(self._bundle.manifest.stages) - 1
        boundary = (
            "the model's output"
            if difference.stage == last
            else f"the boundary to stage {difference.stage + 1}"
        )
        where = (
            f"with {difference.backend} stage {difference.stage} is the first that differs: "
            f"{difference.tensor!r} at {boundary}, with {_count(difference.num_rows, 'row')},"
        )
        if difference.max_abs_error <= difference.tolerance:
            return f"{where} lies in memory otherwise than in the whole model"
        return (
            f"{where} is off by {difference.max_abs_error:.6g}, allowed {difference.tolerance:.3g}"
        )


def _count(number: int, noun: str) -> str:
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
