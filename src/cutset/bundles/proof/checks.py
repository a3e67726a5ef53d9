"""The checks on a bundle, which load its programs and run them.

They belong into a process of their own, with limits: `cutset.bundles.proof.child` starts one.

Where torch is not installed, a bundle's torch programs are neither read nor run: the report says
so, and what can be looked at without them is.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cutset.bundles.manifest import Manifest
from cutset.bundles.open import Bundle, load_onnx_model, open_bundle, read_manifest
from cutset.bundles.proof import running_checks
from cutset.bundles.proof.onnx_checks import OnnxStage, onnx_faults
from cutset.bundles.proof.results import (
    BACKENDS,
    CHECKS,
    CheckResult,
    Difference,
    VerificationReport,
)
from cutset.bundles.proof.structure import (
    completeness_faults,
    count,
    rows_in_words,
    summary,
    unit_faults,
)
from cutset.bundles.reference import Reference
from cutset.errors import BundleError, ManifestError, UnsafeBundle
from cutset.processes import importing

if TYPE_CHECKING:
    from cutset.bundles.proof.torch.torch_stages import TorchStage


def row_counts(manifest: Manifest) -> tuple[int, ...]:
    """Numbers of rows with which the stages' contracts are tried."""
    return (1, 2, 5) if manifest.micro_batch_only is None else (manifest.micro_batch_only,)


def import_libraries(directory: str | os.PathLike[str]) -> None:
    """Imports what a bundle's programs are run with, as far as it is installed.

    For a process that limits its memory before it checks the bundle: torch alone maps 0.7 GB for
    data, which are not the programs'. What is wrong with the bundle, or with what is installed, is
    left to `check_bundle`.
    """
    with contextlib.suppress(Exception), importing():  # whatever a module raises
        manifest = read_manifest(Path(directory))
        if manifest.has_programs and importlib.util.find_spec("torch") is not None:
            import cutset.bundles.proof.torch.torch_stages  # noqa: F401
        import onnxruntime  # noqa: F401


_RUN_ERRORS = (UnsafeBundle, RuntimeError, ValueError, TypeError, IndexError, MemoryError)


def check_bundle(
    directory: str | os.PathLike[str],
    *,
    stages: Iterable[int] | None = None,
    backends: Collection[str] = BACKENDS,
    on_step: Callable[[str, str], None] = lambda _check, _words: None,
    on_check: Callable[[CheckResult], None] = lambda _result: None,
) -> VerificationReport:
    """Opens a bundle, loads its programs and runs them, all in this process.

    Args:
        directory: its folder.
        stages: indices of the stages to look at; None for all.
        backends: which of `BACKENDS` to run; what made the reference always is.
        on_step: told of every step: the check that it belongs to, and a few words.
        on_check: told of every check as it ends.
    """
    on_step("integrity", "checking files")
    try:
        bundle = open_bundle(directory, stages=stages)
    except BundleError as error:
        return unopened(error)
    return _Checking(bundle, backends, on_step, on_check).run()


def unopened(error: BundleError) -> VerificationReport:
    """The report on a bundle that cannot be opened: only the last check has an answer."""
    later = "not checked: the bundle cannot be opened, see integrity"
    checks = [CheckResult(name=name, ok=False, detail=later) for name in CHECKS[:-1]]
    checks.append(CheckResult(name=CHECKS[-1], ok=False, detail=str(error)))
    return VerificationReport(
        checks=tuple(checks), max_abs_error=None, bit_exact=False, error=error
    )


class _Checking:
    """The checks on one opened bundle; a class only to hold what they share."""

    def __init__(
        self,
        bundle: Bundle,
        backends: Collection[str],
        on_step: Callable[[str, str], None],
        on_check: Callable[[CheckResult], None],
    ) -> None:
        self._bundle = bundle
        self._backends = backends
        self._on_step = on_step
        self._on_check = on_check
        self._maker = "torch" if bundle.manifest.has_programs else "onnxruntime"
        self._has_torch = importlib.util.find_spec("torch") is not None
        self._without = self._maker == "torch" and not self._has_torch
        self._stages: dict[int, running_checks.StageFunction] = {}
        self._programs: dict[int, TorchStage] = {}
        self._models: dict[int, OnnxStage] = {}
        self._references: Reference = {}
        self._comparisons: tuple[Difference, ...] = ()
        self._max_abs_error: float | None = None
        self._error: BundleError | None = None

    def run(self) -> VerificationReport:
        """All checks; integrity is looked at first, since the others stand on it."""
        with self._settings():
            integrity = self._integrity()
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
            not_run=self._not_run(),
        )

    def _settings(self) -> contextlib.AbstractContextManager[None]:
        if not self._has_torch or self._maker != "torch":
            return contextlib.nullcontext()
        from cutset.capture.torch_settings import computing_as

        manifest = self._bundle.manifest
        return computing_as(manifest.torch_settings, manifest.num_threads)

    def _not_run(self) -> tuple[str, ...]:
        """What was not looked at because torch is not installed."""
        if not self._without:
            return ()
        left_out = [
            f"stage {index}"
            for index in self._bundle.stages
            if self._bundle.manifest.stages[index].model is None
        ]
        unread = (
            "torch is not installed, so no torch program was read: not whether one is safe to load,"
            " nor whether it has its stage's operations and weights, nor that its numbers are the"
            " reference's bit for bit. For the whole proof pip install 'cutset[torch]', and verify"
            " again"
        )
        if not left_out:
            return (unread,)
        return (unread, f"not run at all, for want of an ONNX model: {', '.join(left_out)}")

    def _result(self, name: str, faults: tuple[str, ...], otherwise: str) -> CheckResult:
        result = CheckResult(name=name, ok=not faults, detail=summary(faults, otherwise))
        self._on_check(result)
        return result

    def _integrity(self) -> CheckResult:
        bundle = self._bundle
        faults: list[str] = []
        for index in bundle.stages:
            self._on_step("integrity", f"loading stage {index}")
            try:
                self._load(index)
            except BundleError as error:
                faults.append(str(error))
                self._error = self._error or error
        faults += self._read_reference()
        num_files = len(bundle.manifest.files) + 1
        safe = "ONNX models safe to load" if self._without else "safe to load"
        return self._result(
            "integrity", tuple(faults), f"{num_files} files, sizes and hashes agree, {safe}"
        )

    def _load(self, index: int) -> None:
        """Loads what is run of a stage, and checks what is not."""
        bundle = self._bundle
        if not bundle.manifest.has_programs:
            self._models[index] = self._stages[index] = OnnxStage(bundle, index)
        elif not self._without:
            from cutset.bundles.proof.torch.torch_stages import TorchStage

            self._programs[index] = self._stages[index] = TorchStage(bundle, index)
            if bundle.manifest.stages[index].model is not None:
                load_onnx_model(bundle, index)
        elif bundle.manifest.stages[index].model is not None:
            self._stages[index] = OnnxStage(bundle, index)

    def _read_reference(self) -> tuple[str, ...]:
        try:
            self._references = running_checks.opened_reference(self._bundle)
        except ManifestError as error:
            self._error = self._error or error
            return (str(error),)
        return ()

    @property
    def _reference(self) -> Mapping[str, np.ndarray]:
        """The tensors of the first number of rows."""
        return next(iter(self._references.values()), {})

    @property
    def _loadable(self) -> tuple[int, ...]:
        """The stages that can be run here."""
        entries = self._bundle.manifest.stages
        return tuple(
            index
            for index in self._bundle.stages
            if not self._without or entries[index].model is not None
        )

    @property
    def _obstacle(self) -> tuple[str, ...]:
        """Why the stages cannot be run, if they cannot."""
        missing = [index for index in self._loadable if index not in self._stages]
        if missing:
            return (f"not checked: stage {missing[0]} was not loaded, see integrity",)
        if not self._references:
            return ("not checked: there are no reference tensors, see integrity",)
        return ()

    def _contracts(self) -> CheckResult:
        self._on_step("contracts", "checking contracts")
        faults = self._obstacle or running_checks.contract_faults(
            self._bundle, self._stages, self._reference, row_counts(self._bundle.manifest)
        )
        num_boundaries = len(self._bundle.manifest.stages) - 1
        counts = row_counts(self._bundle.manifest)
        rows = f"{', '.join(map(str, counts))} {'row' if counts == (1,) else 'rows'}"
        met = f"{count(num_boundaries, 'boundary')} met with {rows}"
        if self._without:
            ran = f"{len(self._stages)} of {count(len(self._bundle.stages), 'stage')}"
            met = f"{count(num_boundaries, 'boundary')} met on paper, {ran} run in ONNX with {rows}"
        return self._result("contracts", faults, met)

    def _completeness(self) -> CheckResult:
        self._on_step("completeness", "checking completeness")
        manifest = self._bundle.manifest
        in_files = onnx_faults(manifest, self._models)
        if self._programs:
            from cutset.bundles.proof.torch.program_structure import program_faults

            programs = {index: stage.program for index, stage in self._programs.items()}
            in_files += program_faults(manifest, programs)
        faults = completeness_faults(manifest, in_files)
        if len(self._stages) < len(self._loadable):
            faults += ("not checked against every stage's program, see integrity",)
        detail = (
            f"{count(len(manifest.graph.operations), 'operation')} and "
            f"{count(len(manifest.graph.parameters), 'parameter')} accounted for, "
            f"{len(manifest.shared_parameters)} shared, {len(manifest.unused_parameters)} unused"
        )
        if self._without:
            detail += " by the manifest; no program was read"
        return self._result("completeness", faults, detail)

    def _units(self) -> CheckResult:
        self._on_step("units", "checking units")
        manifest = self._bundle.manifest
        cuts = len(manifest.stages) - 1
        return self._result(
            "units", unit_faults(manifest), f"no unit is divided by {count(cuts, 'cut')}"
        )

    def _numerics(self) -> CheckResult:
        self._on_step("numerics", "comparing numbers")
        if self._obstacle:
            return self._result("numerics", self._obstacle, "")
        if self._without:
            faults, detail = self._onnx()
            return self._result("numerics", tuple(faults), f"torch was not run; {detail}")
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
            fault = f"the stages do not run with {count(num_rows, 'row')}: {error}"
            return self._result("numerics", (fault,), "")
        self._max_abs_error = max((d.max_abs_error for d in self._comparisons), default=0.0)
        faults = [self._sentence(d) for d in self._comparisons if d.is_too_large][:1]
        details = [self._equality()]
        if self._bundle.manifest.is_coded:
            details.append(running_checks.codec_effect(self._bundle.manifest, self._reference))
        if "onnxruntime" in self._backends and self._maker == "torch":
            onnx_faults, detail = self._onnx()
            faults += onnx_faults
            details.append(detail)
        return self._result("numerics", tuple(faults), ", ".join(details))

    def _equality(self) -> str:
        """How the backend that made the reference compares with it, where nothing is wrong."""
        if not self._max_abs_error:
            rows = rows_in_words(self._references)
            return f"{self._maker} equals the reference bit for bit with {rows}"
        largest = max(
            running_checks.relative_difference(
                [d for d in self._comparisons if d.num_rows == num_rows], reference
            )
            for num_rows, reference in self._references.items()
        )
        return f"{self._maker} within tolerance ({largest:.1e} of a tensor's magnitude)"

    def _onnx(self) -> tuple[list[str], str]:
        try:
            found, largest, failures = running_checks.onnx_differences(
                self._bundle, tuple(self._stages), self._reference
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

    def _sentence(self, difference: Difference) -> str:
        last = len(self._bundle.manifest.stages) - 1
        boundary = (
            "the model's output"
            if difference.stage == last
            else f"the boundary to stage {difference.stage + 1}"
        )
        where = (
            f"with {difference.backend} stage {difference.stage} is the first that differs: "
            f"{difference.tensor!r} at {boundary}, with {count(difference.num_rows, 'row')},"
        )
        if difference.max_abs_error <= difference.tolerance:
            return f"{where} lies in memory otherwise than in the whole model"
        return (
            f"{where} is off by {difference.max_abs_error:.6g}, allowed {difference.tolerance:.3g}"
        )
