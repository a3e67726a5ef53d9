"""What verifying a bundle found: five checks, and the numbers behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cutset.bundles.manifest import PartEntry
from cutset.bundles.proof.torch.running_checks import Difference
from cutset.errors import BundleError
from cutset.notebooks import drawn

CHECKS = ("contracts", "completeness", "units", "numerics", "integrity")
BACKENDS = ("torch", "onnxruntime")


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
    """

    checks: tuple[CheckResult, ...]
    max_abs_error: float | None
    bit_exact: bool
    differences: tuple[Difference, ...] = ()
    comparisons: tuple[Difference, ...] = ()
    error: BundleError | None = None
    part: PartEntry | None = None

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(check.ok for check in self.checks)

    def _repr_html_(self) -> str | None:
        checks = [(check.name, check.ok, check.detail) for check in self.checks]
        return drawn("verification_html", self.ok, checks)

    def check(self, name: str) -> CheckResult:
        """The check of that name.

        Raises:
            KeyError: there is none.
        """
        for result in self.checks:
            if result.name == name:
                return result
        raise KeyError(name)

    def as_json(self) -> dict[str, Any]:
        """The report as ``verify --json`` prints it."""
        return {
            "ok": self.ok,
            "checks": [
                {"name": check.name, "ok": check.ok, "detail": check.detail}
                for check in self.checks
            ],
            "max_abs_error": self.max_abs_error,
            "bit_exact": self.bit_exact,
        }
