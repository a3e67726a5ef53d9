"""How often answers with codecs are those of the exact model, and what that proves."""

from __future__ import annotations

import math

import msgspec

from cutset.ranges import Count, NotNegative, Rows

CONFIDENCE = 0.95
_HALVINGS = 60
"""Of an interval of length 1: below the last bit of a float64."""
_MOST_TERMS = 20_000
"""Some times the root of the most rows there may be (`cutset.ranges.Rows`)."""
_TINY = 1e-300


class AgreementEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far answers with a bundle's codecs are from those of the exact model.

    Attributes:
        num_rows: how many rows both were given.
        num_same: how many of them have the same top label; None where there are no classes.
        max_abs_error: the largest difference of a number of an output.
        calibrated: whether the rows were given for this; else they are the reference's.
    """

    num_rows: Rows
    num_same: Count | None
    max_abs_error: NotNegative
    calibrated: bool

    @property
    def least_share(self) -> float | None:
        """Least share of rows like these that keep their top label, at `CONFIDENCE`."""
        return None if self.num_same is None else lower_bound(self.num_same, self.num_rows)

    def __str__(self) -> str:
        rows = "rows given for it" if self.calibrated else "rows of the reference"
        error = f"outputs differ by at most {self.max_abs_error:.3g}"
        if self.num_same is None:
            return f"on {self.num_rows} {rows} {error}"
        return (
            f"the top label is the exact model's on {self.num_same} of {self.num_rows} {rows}: on"
            f" rows like them at least {_percent(self.least_share or 0.0)} with {CONFIDENCE:.0%}"
            f" confidence; {error}"
        )


def lower_bound(num_same: int, num_rows: int) -> float:
    """The lower end of an exact binomial interval, one-sided, of confidence `CONFIDENCE`.

    The share p at which `num_same` or more of `num_rows` would come about with probability 1 -
    `CONFIDENCE` (Clopper and Pearson 1934, "The use of confidence or fiducial limits"). With 102 of
    102 it is ``0.05 ** (1 / 102)``, 97.1%.

    Args:
        num_same: from 0 to `num_rows`.
        num_rows: at least 1.
    """
    if not num_same:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _at_least(num_same, num_rows, middle) > 1 - CONFIDENCE:
            high = middle
        else:
            low = middle
    return low


def _at_least(num_same: int, num_rows: int, share: float) -> float:
    """The probability of `num_same` or more among `num_rows`, each with probability `share`.

    It is the regularised incomplete beta function I(share; a, b) with a = num_same and b = num_rows
    - num_same + 1 (Abramowitz and Stegun 6.6.4), worked out by its continued fraction (26.5.8) in
    steps that grow with the root of the rows, where the sum over them would take as many as there
    are.
    """
    if share <= 0.0 or share >= 1.0:
        return float(share >= 1.0)
    a, b = num_same, num_rows - num_same + 1
    # The fraction converges below the mean; above, that of the other tail does.
    if share > (a + 1) / (a + b + 2):
        return 1.0 - _beta_front(b, a, 1.0 - share) * _beta_fraction(b, a, 1.0 - share) / b
    return _beta_front(a, b, share) * _beta_fraction(a, b, share) / a


def _beta_front(a: int, b: int, x: float) -> float:
    logs = (math.lgamma(a + b), -math.lgamma(a), -math.lgamma(b), a * math.log(x))
    return math.exp(math.fsum((*logs, b * math.log1p(-x))))


def _beta_fraction(a: int, b: int, x: float) -> float:
    """The continued fraction by Lentz's method."""
    c, d = 1.0, 1.0 / (_away_from_0(1.0 - (a + b) * x / (a + 1)))
    value = d
    for m in range(1, _MOST_TERMS):
        before = value
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / _away_from_0(1.0 + numerator * d)
            c = _away_from_0(1.0 + numerator / c)
            value *= c * d
        if abs(value - before) <= 1e-15 * abs(value):
            break
    return value


def _away_from_0(number: float) -> float:
    return number if abs(number) > _TINY else _TINY


def _percent(share: float) -> str:
    """In per cent, rounded down: a bound must not be rounded up."""
    return f"{math.floor(share * 1000) / 10:.1f}%"
