"""Several runs of one arm in few numbers: medians and ranges, and differences that are paired by seed."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy import special  # not stats, which takes most of a second to import

_SMALL = 0.005  # of a share of 1: half a point


class Spread(NamedTuple):
    """A value over the seeds.

    Attributes:
        median: Of the runs.
        low: The least.
        high: The most.
        n: How many runs have it.
    """

    median: float
    low: float
    high: float
    n: int


def spread(values: Sequence[float | None]) -> Spread | None:
    """The spread of the values that are known; None if there are none."""
    known = [value for value in values if value is not None]
    return Spread(statistics.median(known), min(known), max(known), len(known)) if known else None


class Difference(NamedTuple):
    """A mean of paired differences, and its 95 % interval by Student's t distribution.

    Attributes:
        mean: Of the differences.
        low: Lower end; None for a single pair.
        high: Upper end; likewise.
    """

    mean: float
    low: float | None
    high: float | None

    def within_noise(self, is_share: bool) -> bool | None:
        """Whether it is noise: the interval contains 0, or the mean of shares is below half a point.

        None: a single pair does not tell.
        """
        if self.low is None or self.high is None:
            return None
        return self.low <= 0 <= self.high or (is_share and abs(self.mean) < _SMALL)


def difference(values: Sequence[float], others: Sequence[float]) -> Difference | None:
    """The difference of two arms whose runs are paired; None without a pair."""
    if not values:
        return None
    paired = [a - b for a, b in zip(values, others, strict=True)]
    mean = statistics.mean(paired)
    if len(paired) < 2:
        return Difference(mean, None, None)
    half = float(special.stdtrit(len(paired) - 1, 0.975)) * statistics.stdev(paired) / len(paired) ** 0.5
    return Difference(mean, mean - half, mean + half)
