from __future__ import annotations

import pytest

from cutset import errors


def _tree(root: type[Exception]) -> set[type[Exception]]:
    return {root}.union(*(_tree(child) for child in root.__subclasses__()))


@pytest.mark.parametrize(
    ("name", "exit_code"),
    [
        ("CutsetError", 1),
        ("MissingExtra", 1),
        ("ModelError", 1),
        ("CaptureError", 1),
        ("WeightsMismatch", 1),
        ("PlanError", 3),
        ("InfeasiblePlan", 3),
        ("BundleError", 4),
        ("ManifestError", 4),
        ("ChecksumMismatch", 4),
        ("UnsafeBundle", 4),
        ("UnsupportedVersion", 4),
        ("VerificationError", 5),
        ("EngineError", 6),
        ("StageFailed", 6),
        ("LinkTimeout", 6),
        ("ContractViolation", 6),
    ],
)
def test_exit_codes(name: str, exit_code: int) -> None:
    assert getattr(errors, name).exit_code == exit_code


def test_the_docstring_draws_the_whole_tree() -> None:
    assert errors.__doc__ is not None
    own = [each for each in _tree(errors.CutsetError) if each.__module__ == errors.__name__]
    assert len(own) == 17
    assert [each.__name__ for each in own if each.__name__ not in errors.__doc__] == []


def test_values_are_attributes() -> None:
    error = errors.InfeasiblePlan("too small", needed_bytes=10, available_bytes=4, device="pi")
    assert (error.needed_bytes, error.available_bytes, error.device) == (10, 4, "pi")
    violation = errors.ContractViolation("no", boundary="into stage 1", expected="a", actual="b")
    assert (violation.boundary, violation.expected, violation.actual) == ("into stage 1", "a", "b")
