"""Whom a worker speaks to when all are concerned: a tree, and the hypercube that it is a part of.

The tree is binomial, with worker 0 at its root: a worker's parent is its number without the lowest bit that is set. So
nobody has more than log2 P children or neighbours, no way is longer, and it works for every number of workers.
"""


def parent(worker: int) -> int:
    """The next one on the way to worker 0, for any other worker."""
    assert worker > 0
    return worker & (worker - 1)


def children(worker: int, num_workers: int) -> tuple[int, ...]:
    """Those whose parent this one is; those with the most descendants first."""
    bits = (worker & -worker).bit_length() - 1 if worker else num_workers.bit_length()
    return tuple(child for i in reversed(range(bits)) if (child := worker | 1 << i) < num_workers)


def neighbours(worker: int, num_workers: int) -> tuple[int, ...]:
    """Those whose numbers differ from this one's in one bit: its parent and its children among them.

    What everybody passes on to them once reaches all, unless those that do not cut all ways.
    """
    flipped = (worker ^ 1 << i for i in range(num_workers.bit_length()))
    return tuple(other for other in flipped if other < num_workers)
