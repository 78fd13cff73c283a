"""A straight line through samples, and how far its slope can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

FEWEST_SAMPLES = 10
_NORMAL_95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Slope:
    """In units of y per unit of x, with its 95 % interval."""

    value: float
    low: float
    high: float


def slope(x: Sequence[float], y: Sequence[float]) -> Slope:
    """By least squares. The interval takes deviations from the line as independent; of memory they
    are not quite, so that it is somewhat too narrow.

    Raises:
        ValueError: there are fewer than ten samples, or all have the same x.
    """
    if len(x) < FEWEST_SAMPLES:
        raise ValueError(f"{len(x)} samples tell nothing of a slope")
    mean_x, mean_y = fmean(x), fmean(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    if spread == 0:
        raise ValueError("all samples have the same x")
    value = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    rest = sum((b - mean_y - value * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    freedom = len(x) - 2
    half = _student_95(freedom) * math.sqrt(rest / freedom / spread)
    return Slope(value, value - half, value + half)


def _student_95(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by its expansion about the normal one (Abramowitz and
    Stegun, 26.7.5); below 0.1 % off from eight degrees of freedom on."""
    z = _NORMAL_95
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
