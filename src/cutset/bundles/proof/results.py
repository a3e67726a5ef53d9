"""What verifying a bundle found: five checks, and the numbers behind them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import msgspec

from cutset.bundles.agreement import AgreementEntry
from cutset.bundles.manifest import PartEntry
from cutset.errors import BundleError, VerificationError
from cutset.notebooks import drawn

CHECKS = ("contracts", "completeness", "units", "numerics", "integrity")
BACKENDS = ("torch", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """By how much the numbers of one tensor differ from the reference's.

    Attributes:
        stage: index of the stage.
        tensor: name of the tensor at its boundary.
        max_abs_error: largest absolute difference; infinite where shapes or dtypes differ.
        tolerance: the largest that was allowed.
        backend: what computed it.
        num_rows: with how many rows.
        lies_otherwise: whether it lies in memory otherwise than in the whole model.
    """

    stage: int
    tensor: str
    max_abs_error: float
    tolerance: float
    backend: str = "torch"
    num_rows: int = 0
    lies_otherwise: bool = False

    @property
    def is_too_large(self) -> bool:
        """Whether it is beyond what was allowed."""
        return self.max_abs_error > self.tolerance or self.lies_otherwise


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One check.

    Attributes:
        name: one of `CHECKS`.
        ok: whether it passed.
        detail: what was found, in one line.
    """

    name: str
    ok: bool
    detail: str


class BoundaryNumbers(msgspec.Struct, frozen=True, kw_only=True):
    """How far what one backend gave at a boundary is from the reference.

    Attributes:
        stage: index of the stage that returned it.
        tensor: its name.
        backend: what computed it.
        max_abs_error: the largest absolute difference; None where shape or dtype is another.
        tolerance: the largest that is allowed.
    """

    stage: int
    tensor: str
    backend: str
    max_abs_error: float | None
    tolerance: float


class VerificationDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What ``cutset verify --json`` prints; its fields are the keys.

    Attributes:
        ok: whether every check passed.
        part: what the bundle holds of the user's model; None where it is the whole.
        checks: in the order of `CHECKS`.
        max_abs_error: as in `VerificationReport`; None also where it is no number.
        bit_exact: as in `VerificationReport`.
        boundaries: what every backend gave at every boundary.
        not_run: as in `VerificationReport`.
        agreement: of a bundle with codecs, with the exact model, as it was seen when it was made;
            None for others.
        least_share: of rows like those that it was seen on, so many keep their top label, with 95%
            confidence; None where that is not known.
    """

    ok: bool
    part: PartEntry | None = None
    checks: tuple[CheckResult, ...]
    max_abs_error: float | None
    bit_exact: bool
    boundaries: tuple[BoundaryNumbers, ...] = ()
    not_run: tuple[str, ...] = ()
    agreement: AgreementEntry | None = None
    least_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class VerificationReport:
    """What was found.

    Attributes:
        checks: one for each name in `CHECKS`, in that order.
        max_abs_error: largest absolute difference from the reference of the backend that made it:
            torch, or onnxruntime for an ONNX file; None where the stages could not be run.
        bit_exact: whether that backend gave the reference's bits at every boundary.
        differences: the boundaries at which its numbers differ too much, the first one first.
        comparisons: what every backend gave at every boundary, equal or not.
        error: what made `integrity` fail, for those who want to raise it, or None.
        part: what the bundle holds of the user's model; None where it is the whole.
        not_run: what was not looked at, and why, in sentences; nothing of it is claimed.
        agreement: of a bundle with codecs, with the exact model, as it was seen when it was made.
    """

    checks: tuple[CheckResult, ...]
    max_abs_error: float | None
    bit_exact: bool
    differences: tuple[Difference, ...] = ()
    comparisons: tuple[Difference, ...] = ()
    error: BundleError | None = None
    part: PartEntry | None = None
    not_run: tuple[str, ...] = ()
    agreement: AgreementEntry | None = None

    @property
    def ok(self) -> bool:
        """Whether every check passed, as far as it was run."""
        return all(check.ok for check in self.checks)

    def _repr_html_(self) -> str | None:
        checks = [(check.name, check.ok, check.detail) for check in self.checks]
        return drawn("verification_html", self.ok, checks, self.not_run)

    def check(self, name: str) -> CheckResult:
        """The check of that name.

        Raises:
            KeyError: there is none.
        """
        for result in self.checks:
            if result.name == name:
                return result
        raise KeyError(name)

    def document(self) -> VerificationDocument:
        """What ``cutset verify --json`` says of it."""
        return VerificationDocument(
            ok=self.ok,
            part=self.part,
            checks=self.checks,
            max_abs_error=_finite(self.max_abs_error),
            bit_exact=self.bit_exact,
            boundaries=tuple(
                BoundaryNumbers(
                    stage=each.stage,
                    tensor=each.tensor,
                    backend=each.backend,
                    max_abs_error=_finite(each.max_abs_error),
                    tolerance=each.tolerance,
                )
                for each in self.comparisons
            ),
            not_run=self.not_run,
            agreement=self.agreement,
            least_share=None if self.agreement is None else self.agreement.least_share,
        )

    def as_json(self) -> dict[str, Any]:
        """`document` as plain values."""
        document: dict[str, Any] = msgspec.to_builtins(self.document())
        return document


def raise_if_failed(report: VerificationReport) -> None:
    """Raises what a failed report says.

    Raises:
        VerificationError: a check failed; names the first one.
    """
    if report.error is not None:
        raise report.error
    failed = [check for check in report.checks if not check.ok]
    if failed:
        first = report.differences[0] if report.differences else None
        raise VerificationError(
            f"check {failed[0].name!r} failed: {failed[0].detail}",
            stage=first.stage if first else None,
            tensor=first.tensor if first else None,
            max_abs_error=first.max_abs_error if first else None,
            tolerance=first.tolerance if first else None,
        )


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
