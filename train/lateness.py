"""Simulated lateness inside one program: who is late at which round. Drawn beforehand from a seed."""

import numpy as np

from train import traces

_LATENESS = 3  # with the seed, the key of the lateness's random stream; the data order has the numbers below


def draw(probability: float, trace: str | None, seed: int, round: int, num_workers: int) -> np.ndarray | None:
    """Whether each worker is late at a round; bool [num_workers]. None if nobody ever is.

    Args:
        probability: Of every worker at every round, independently.
        trace: A file of rounds x workers, as ``train.traces`` reads it, in which 0 is on time; None: there is none. A
            worker follows one of the file's workers, from one of its rounds on; after the last comes the first.
        seed: Of the draws.
        round: From 0.
        num_workers: P.
    """
    if trace is not None:
        table = traces.read(trace)
        draws = np.random.default_rng((seed, _LATENESS))
        followed = draws.integers(table.shape[1], size=num_workers)
        begins = draws.integers(table.shape[0], size=num_workers)
        return table[(begins + round) % len(table), followed] > 0
    if probability == 0:
        return None
    return np.random.default_rng((seed, _LATENESS, round)).random(num_workers) < probability


def check(probability: float, trace: str | None) -> None:
    """Raises ValueError for numbers out of range, or a file that is none."""
    if not 0 <= probability < 1:
        raise ValueError(f"--late-probability must be in [0, 1), got {probability}")
    if trace is None:
        return
    if probability:
        raise ValueError("--late-probability and --late-trace both say who is late: drop one")
    try:
        traces.read(trace)
    except ValueError as problem:
        raise ValueError(f"--late-trace {trace}: {problem}") from None
