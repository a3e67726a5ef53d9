from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from cutset.differences import max_abs_difference, tolerance_of


@pytest.mark.parametrize(
    ("actual", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.5),
        ([float("nan")], [float("nan")], 0.0),
        ([float("nan")], [1.0], float("inf")),
        ([float("inf"), 1.0], [float("inf"), 1.0], 0.0),
        ([float("inf")], [1.0], float("inf")),
        ([1.0], [1.0, 2.0], float("inf")),
        ([], [], 0.0),
    ],
)
def test_max_abs_difference(actual: list[float], expected: list[float], error: float) -> None:
    assert max_abs_difference(np.array(actual), np.array(expected)) == error


def test_max_abs_difference_of_other_dtypes() -> None:
    assert max_abs_difference(np.array([1]), np.array([1.0])) == float("inf")
    assert max_abs_difference(np.array([2**53 + 1]), np.array([2**53])) in (0.0, 1.0)
    assert max_abs_difference(np.array([1j]), np.array([2j])) == 1.0
    assert max_abs_difference(np.array([True]), np.array([False])) == 1.0


@pytest.mark.parametrize(
    ("array", "tolerance"),
    [
        (np.array([-10.0, 3.0], np.float32), 1e-3),
        (np.array([-10.0]), 1e-8),
        (np.array([100]), 0.0),
        (np.array([float("inf"), 10.0], np.float32), 1e-3),
        (np.array([], np.float32), 0.0),
        (np.array([-10.0, 3.0], ml_dtypes.bfloat16), 1.0),
    ],
)
def test_tolerance_is_relative_to_the_largest_magnitude(
    array: np.ndarray, tolerance: float
) -> None:
    assert tolerance_of(array) == pytest.approx(tolerance)
