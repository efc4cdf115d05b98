"""Which lowering is the best, and whether "auto" is slower."""

import pytest

from benchmarks.samples import Summary, summarize
from benchmarks.xla_collectives.candidates import LOWERINGS_OF
from benchmarks.xla_collectives.comparison import compare, noise_floor, verdict


def test_verdicts():
    def of(median, q1, low):
        return verdict(Summary(10, median, q1, 2.0, 2.0, low, 2.0), same_program=False, floor=0.03)

    assert of(0.98, 0.9, 0.9) == "auto is fastest"
    assert of(1.02, 0.9, 0.97) == "within noise"
    assert of(1.5, 1.1, 0.97) == "within noise"
    assert of(1.05, 0.99, 1.01) == "within noise"
    assert of(1.02, 1.01, 1.01) == "within noise"
    assert of(1.05, 1.01, 1.01) == "SLOWER by 5 %"
    assert verdict(summarize([2] * 5), same_program=False, floor=0) == "too few passes"
    assert verdict(summarize([2] * 9), same_program=True, floor=0) == "same program"


def test_comparison_with_the_best(measurements):
    comparisons = compare(measurements)
    assert [one.context for one in comparisons] == list(LOWERINGS_OF)
    one = comparisons[-1]
    assert (one.best, one.equals, one.verdict) == ("ppermute", ("matrix",), "SLOWER by 120 %")
    assert one.ratio.median == pytest.approx(2.2)
    assert noise_floor(measurements) == pytest.approx(0.1)
