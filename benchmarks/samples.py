"""Order statistics of repeated measurements."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Summary(NamedTuple):
    """Order statistics of a sample.

    Attributes:
        n: Sample size.
        median: Of the sample.
        q1: Lower quartile.
        q3: Upper quartile.
        p95: 95th percentile.
        low: Lower end of the 95 % confidence interval of the median (binomial; the minimum for fewer than 6 values).
        high: Its upper end (likewise the maximum).
    """

    n: int
    median: float
    q1: float
    q3: float
    p95: float
    low: float
    high: float


def summarize(values: Sequence[float]) -> Summary:
    """Summarizes a sample.

    Quartiles are interpolated linearly. The interval of the median is taken from order statistics, so that it assumes
    nothing about the distribution.

    Args:
        values: In any order, and in any unit.

    Raises:
        ValueError: There are no values.
    """
    ordered = sorted(map(float, values))
    n = len(ordered)
    if n == 0:
        raise ValueError("summarize needs at least one value, got none")
    below, outside = 0.0, 0  # values to leave out on either side, while P(Binomial(n, 1/2) <= outside) <= 2.5 %
    while outside < n // 2:
        below += math.comb(n, outside) / 2**n
        if below > 0.025:
            break
        outside += 1
    outside = max(outside - 1, 0)
    median, q1, q3, p95 = (float(np.percentile(ordered, q)) for q in (50, 25, 75, 95))
    return Summary(n, median, q1, q3, p95, ordered[outside], ordered[n - 1 - outside])


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> Summary:
    """Summarizes the ratios within each pass, so that whatever slows down a whole pass cancels.

    Passes that only one of the two took part in do not count.
    """
    return summarize([a / b for a, b in zip(numerator, denominator, strict=False)])
