"""Which shapes batches of sentence pairs have: few, since each is compiled, and close to the lengths of the pairs."""

import dataclasses
from collections.abc import Sequence

import numpy as np

# Ratios of the two lengths of a shape that are tried: one language may be longer throughout.
_RATIOS = (0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4)


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of a batch: pairs of at most so many tokens.

    Attributes:
        source: Longest source, in tokens with the end.
        target: Longest target, likewise.
        rows: Pairs in a batch.
    """

    source: int
    target: int
    rows: int

    @property
    def positions(self) -> int:
        """Tokens and padding of a batch."""
        return self.rows * (self.source + self.target)


def choose(lengths: np.ndarray, count: int, positions: int, multiple: int = 1, least: int = 1) -> list[Shape]:
    """Shapes that all pairs fit into with little padding.

    The lengths of a shape have a fixed ratio. For each ratio that is tried, dynamic programming finds the bounds that
    need the fewest positions; the best ratio wins.

    Args:
        lengths: int [pairs, 2], tokens of source and target.
        count: Number of shapes at most.
        positions: Tokens and padding of source and target in a batch, at most.
        multiple: What the rows of each batch are a multiple of.
        least: How many pairs each shape must be the tightest for.

    Returns:
        Shapes from the shortest to the longest, the last of which all pairs fit into.

    Raises:
        ValueError: A batch cannot hold the longest pair.
    """
    best, bounds = np.inf, np.empty((0, 2), int)
    for ratio in _RATIOS:
        cost, found = _bounds(lengths, count, ratio, least)
        if cost < best:
            best, bounds = cost, found
    longest = int(bounds[-1].sum()) * multiple
    if longest > positions:
        parts = f" {multiple} of" if multiple > 1 else ""
        raise ValueError(
            f"--batch-size {positions} tokens cannot hold{parts} the longest pair, which takes {longest}: raise it, or "
            "lower --max-tokens"
        )
    return [Shape(int(s), int(t), positions // (int(s + t) * multiple) * multiple) for s, t in bounds]


def assign(lengths: np.ndarray, shapes: Sequence[Shape]) -> np.ndarray:
    """The tightest shape of each pair, int [pairs]."""
    ends = np.array([(shape.source, shape.target) for shape in shapes])
    return np.maximum(*(np.searchsorted(ends[:, side], lengths[:, side]) for side in (0, 1)))


def padding(lengths: np.ndarray, shapes: Sequence[Shape]) -> float:
    """The share of padding among all positions, if every pair is seen equally often."""
    positions = np.array([shape.source + shape.target for shape in shapes])[assign(lengths, shapes)]
    return float(1 - lengths.sum() / positions.sum())


def _bounds(lengths: np.ndarray, count: int, ratio: float, least: int) -> tuple[float, np.ndarray]:
    """The least number of positions with at most ``count`` shapes of a ratio, and their bounds [shapes, 2]."""
    # the key of a pair is the target length of the tightest shape of this ratio
    keys = np.maximum(lengths[:, 1], np.ceil(lengths[:, 0] * ratio).astype(int))
    top = int(keys.max())
    pairs = np.bincount(keys, minlength=top + 1)
    most = np.zeros((top + 1, 2), int)
    np.maximum.at(most, keys, lengths)
    upto = np.maximum.accumulate(most)  # the shape that holds all pairs up to a key
    size = upto.sum(1)
    seen = np.cumsum(pairs)
    cost = np.full((count + 1, top + 1), np.inf)
    before = np.zeros((count + 1, top + 1), int)
    cost[0, 0] = 0
    for used in range(1, count + 1):
        for end in range(1, top + 1):
            inside = seen[end] - seen[:end]
            costs = np.where(inside >= least, cost[used - 1, :end] + inside * size[end], np.inf)
            before[used, end] = start = int(costs.argmin())
            cost[used, end] = costs[start]
    used, end = int(cost[:, top].argmin()), top
    total = float(cost[used, top])
    if not np.isfinite(total):  # fewer pairs than a shape must have: one shape for all
        return float(len(lengths) * size[top]), upto[top:]
    ends = []
    while used:
        ends.append(end)
        used, end = used - 1, int(before[used, end])
    return total, upto[ends[::-1]]
