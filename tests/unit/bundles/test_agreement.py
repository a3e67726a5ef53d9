"""What k of n proves, and how it is said."""

from __future__ import annotations

import math

import pytest

from cutset.bundles.agreement import AgreementEntry, lower_bound


@pytest.mark.parametrize(
    ("num_same", "num_rows", "bound"),
    [
        # R: binom.test(k, n, alternative = "greater")$conf.int[1]
        (102, 102, 0.9710572),
        (99, 102, 0.9257390),
        (1, 2, 0.0253206),
        (2, 2, 0.2236068),
        (0, 7, 0.0),
        (1, 1, 0.05),
        (100_000, 100_000, 0.99997),
        (1, 1 << 24, 3.0572e-9),
        (1 << 24, 1 << 24, 0.9999998),
    ],
)
def test_the_bound_is_clopper_and_pearsons(num_same: int, num_rows: int, bound: float) -> None:
    assert lower_bound(num_same, num_rows) == pytest.approx(bound, abs=5e-7)


def test_the_bound_is_that_of_the_sum_over_all_rows() -> None:
    for num_rows in (1, 2, 7, 50, 400):
        for num_same in range(1, num_rows + 1, max(1, num_rows // 9)):
            share = lower_bound(num_same, num_rows)
            tail = math.fsum(
                math.comb(num_rows, k) * share**k * (1 - share) ** (num_rows - k)
                for k in range(num_same, num_rows + 1)
            )
            assert tail == pytest.approx(0.05, rel=1e-9)


def test_it_is_never_called_a_hundred_per_cent() -> None:
    found = AgreementEntry(num_rows=102, num_same=102, max_abs_error=0.5, calibrated=True)
    assert str(found) == (
        "the top label is the exact model's on 102 of 102 rows given for it: on rows like them at"
        " least 97.1% with 95% confidence; outputs differ by at most 0.5"
    )
    assert found.least_share == pytest.approx(0.97106, abs=1e-5)


def test_without_classes_it_is_the_error_alone() -> None:
    found = AgreementEntry(num_rows=2, num_same=None, max_abs_error=0.25, calibrated=False)
    assert str(found) == "on 2 rows of the reference outputs differ by at most 0.25"
    assert found.least_share is None
