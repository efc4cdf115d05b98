"""What the measured times mean: ratios to a global mean, and the lowering "auto" beside the best one."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.samples import Summary, ratios, summarize
from benchmarks.xla_collectives.candidates import Candidate, Measured
from wagma_jax.collectives import LOWERINGS

MIN_PASSES = 6
"""Fewer passes have no 95 % interval of the median."""


class Comparison(NamedTuple):
    """The lowering "auto" beside the one with the least median time.

    Attributes:
        context: A key of ``LOWERINGS_OF``.
        group_size: S.
        equals: Lowerings whose program is that of "auto".
        best: The fastest lowering other than "auto".
        ratio: Of the times auto / best, within each pass.
        verdict: See :func:`verdict`.
    """

    context: str
    group_size: int
    equals: tuple[str, ...]
    best: str
    ratio: Summary
    verdict: str


def verdict(ratio: Summary, same_program: bool, floor: float) -> str:
    """Judges "auto" by the ratios auto / best.

    It is slower only if nothing could be noise: three quarters of the passes and the 95 % interval of the median lie
    above 1, and the median lies above 1 + ``floor``, by which equal programs differ in the same run.
    """
    if same_program:
        return "same program"
    if ratio.n < MIN_PASSES:
        return "too few passes"
    if ratio.median <= 1:
        return "auto is fastest"
    if min(ratio.q1, ratio.low) <= 1 or ratio.median <= 1 + floor:
        return "within noise"
    return f"SLOWER by {100 * (ratio.median - 1):.0f} %"


def relative_to(name: str, measured: Sequence[Measured]) -> dict[Candidate, Summary]:
    """Ratios to the times of a global mean ("pmean" or "consensus") in the same context."""
    base = {one.candidate.context: one.seconds for one in measured if one.candidate.name == name}
    return {one.candidate: ratios(one.seconds, base[one.candidate.context]) for one in measured}


def compare(measured: Sequence[Measured]) -> list[Comparison]:
    """The lowering "auto" beside the best one, for every context and group size."""
    result = []
    floor = noise_floor(measured)
    for auto, rivals in _auto_and_rivals(measured):
        best = min(rivals, key=lambda one: summarize(one.seconds).median)
        equals = tuple(one.candidate.name for one in rivals if one.program == auto.program)
        ratio = ratios(auto.seconds, best.seconds)
        text = verdict(ratio, best.candidate.name in equals, floor)
        result.append(Comparison(*auto.candidate[:2], equals, best.candidate.name, ratio, text))
    return result


def noise_floor(measured: Sequence[Measured]) -> float:
    """The largest difference between medians of equal programs ("auto" and the lowering that it is), as a ratio - 1."""
    apart = [
        abs(math.log(ratios(auto.seconds, one.seconds).median))
        for auto, rivals in _auto_and_rivals(measured)
        for one in rivals
        if one.program == auto.program
    ]
    return math.expm1(max(apart, default=0.0))


def _auto_and_rivals(measured: Sequence[Measured]) -> list[tuple[Measured, list[Measured]]]:
    """Each measurement of "auto" with those of the other lowerings in its context and group size."""
    others = [one for one in measured if one.candidate.name in LOWERINGS and one.candidate.name != "auto"]
    pairs = [
        (auto, [one for one in others if one.candidate[:2] == auto.candidate[:2]])
        for auto in measured
        if auto.candidate.name == "auto"
    ]
    return [(auto, rivals) for auto, rivals in pairs if rivals]
