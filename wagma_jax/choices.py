"""Settings that are one of a few names, and their checks: algorithms, exchanges and protocols share them."""

import math
from typing import Any, Literal, get_args

import numpy as np

Clock = Literal["step", "round"]
"""What a trainer's call counts: its own steps, or everybody's rounds."""

OnNonfinite = Literal["share", "skip"]
"""What a worker contributes whose model is not finite: that, or what it has published before."""

Weighting = Literal["equal", "steps"]
"""What contributions weigh: all the same, or as many as their worker's steps since it last contributed."""

LateMerge = Literal["average", "add"]
"""What a late worker makes of its group's sum: the paper's mean with its own model, or the mean and its last step."""

Start = Literal["solo", "majority"]
"""Whose arrival starts a round of eager-SGD: the first one's, or that of a worker that is drawn for the round."""

Graph = Literal["exponential", "ring"]
"""Which of the passive workers an active one averages with: those at a few odd distances, or its neighbours alone."""


def check_clock(clock: Any) -> None:
    """Raises ValueError for anything that is no clock."""
    if clock not in get_args(Clock):
        raise ValueError(f"clock must be 'step' or 'round', got {clock!r}: step counts each worker's own steps")


def check_on_nonfinite(on_nonfinite: Any) -> None:
    """Raises ValueError for anything that is no choice."""
    if on_nonfinite not in get_args(OnNonfinite):
        raise ValueError(
            f"on_nonfinite must be 'share' or 'skip', got {on_nonfinite!r}: skip contributes an older model instead"
        )


def check_weighting(weighting: Any) -> None:
    """Raises ValueError for anything that is no weighting."""
    if weighting not in get_args(Weighting):
        raise ValueError(
            f"weighting must be 'equal' or 'steps', got {weighting!r}: equal counts all contributions alike"
        )


def check_late_merge(late_merge: Any) -> None:
    """Raises ValueError for anything that is no such merge."""
    if late_merge not in get_args(LateMerge):
        raise ValueError(
            f"late_merge must be 'average' or 'add', got {late_merge!r}: average is the paper's, (sum + W') / (S + 1)"
        )


def check_quorum_seconds(seconds: Any) -> None:
    """Raises ValueError for anything that is no time to wait; None is: for ever."""
    if seconds is None:
        return
    is_number = isinstance(seconds, int | float | np.number) and not isinstance(seconds, bool)
    if not is_number or not 0 < seconds < math.inf:
        raise ValueError(f"quorum_seconds must be above 0, or None for as long as it takes, got {seconds!r}")


def check_patience(seconds: float | None, quorum: int) -> None:
    """Raises ValueError for a time to wait for a quorum of one, for which nobody waits."""
    if seconds is not None and quorum == 1:
        raise ValueError(
            f"quorum_seconds={seconds} needs a quorum of at least 2, got quorum=1: the first to arrive waits for nobody"
        )


def check_start(start: Any) -> None:
    """Raises ValueError for anything that starts no round of eager-SGD."""
    if start not in get_args(Start):
        raise ValueError(f"start must be 'solo' or 'majority', got {start!r}: solo waits for nobody")


def check_graph(graph: Any) -> None:
    """Raises ValueError for anything that is no graph."""
    if graph not in get_args(Graph):
        raise ValueError(f"graph must be 'exponential' or 'ring', got {graph!r}: exponential mixes sooner")
