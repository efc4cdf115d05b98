"""Partitions of workers into groups that change from round to round, and how fast they mix; plain integers.

Two constructions, both rotating so that repeated group means contract to the global mean:

*Butterfly* (``num_workers = 2**p`` and ``group_size = 2**s``). A group at round t is closed under XOR with the s masks
``1 << ((t*s + i) mod p)``, i = 0..s-1 (Li et al., TPDS 2021, section 3). Every worker has influenced every other
after ``ceil(p / s)`` rounds. When s divides p, the models after ``p / s`` rounds of group means *are* the global mean.

*Shuffle* (all other numbers). Write the workers of round t group below group, as the rows of a table, and read the
table column by column. That is the order of round t + 1, which is cut into groups again. Dealing cards like this is a
perfect G-way shuffle (the wiring of an omega network), and reduces to the butterfly on powers of two.

When ``group_size`` S divides P, a group of round t + 1 draws from ``min(S, G)`` different groups of round t, whose
members drew from neighbouring groups in turn. So influence grows by a factor S each round and is complete after
``ceil(log_S P)`` rounds; when P is a power of S, the models are then exactly the global mean. When S does not divide
P, the shuffle is irregular and may take up to two rounds more (checked for all P <= 64).

The sequence restarts after twice the rounds that full influence takes, or sooner where the shuffle returns to the
identity. So there are few distinct groups: each is compiled, and opens a communicator on some backends. The product of
the mixing matrices over one period is doubly stochastic and positive, hence contracts the distance to the global mean
by a factor strictly below 1.
"""

import functools
import math
import operator

import numpy as np

Groups = tuple[tuple[int, ...], ...]
"""A partition of the workers into groups; members ascending, groups by their first member."""


@functools.lru_cache(maxsize=1024)
def period(num_workers: int, group_size: int) -> int:
    """Rounds after which the sequence of groups repeats; at most ``num_workers``."""
    if group_size in (1, num_workers):
        return 1
    p, s = _log2(num_workers), _log2(group_size)
    if p is not None and s is not None:
        return p // math.gcd(p, s)
    return len(_shuffle(num_workers, group_size))


@functools.lru_cache(maxsize=4096)
def partition(num_workers: int, group_size: int, phase: int) -> Groups:
    """The groups of one round; ``phase`` is the round modulo the period."""
    p, s = _log2(num_workers), _log2(group_size)
    if p is None or s is None:
        return _shuffle(num_workers, group_size)[phase]
    if p == 0:
        return ((0,),)
    mask = sum(1 << ((phase * s + i) % p) for i in range(s))
    groups: dict[int, list[int]] = {}
    for worker in range(num_workers):
        groups.setdefault(worker & ~mask, []).append(worker)
    return _sorted_groups(groups.values())


@functools.lru_cache(maxsize=4096)
def group_index(num_workers: int, group_size: int, phase: int) -> tuple[int, ...]:
    """[num_workers], the index of each worker's group in :func:`partition`."""
    index = [0] * num_workers
    for i, group in enumerate(partition(num_workers, group_size, phase)):
        for worker in group:
            index[worker] = i
    return tuple(index)


@functools.lru_cache(maxsize=256)
def _shuffle(num_workers: int, group_size: int) -> tuple[Groups, ...]:
    """One period of the shuffle construction (module docstring)."""
    num_groups = -(-num_workers // group_size)
    small, larger = divmod(num_workers, num_groups)
    sizes = [small + 1] * larger + [small] * (num_groups - larger)
    order = list(range(num_workers))
    influence = [1 << worker for worker in range(num_workers)]  # [num_workers] bit sets
    everyone = (1 << num_workers) - 1
    sequence: list[Groups] = []
    limit = num_workers
    while len(sequence) < limit:
        rows, start = [], 0
        for size in sizes:
            rows.append(order[start : start + size])
            start += size
        sequence.append(_sorted_groups(rows))
        if limit == num_workers:
            influence = _spread(influence, rows)
            if all(seen == everyone for seen in influence):
                limit = min(num_workers, 2 * len(sequence))
        order = [row[column] for column in range(sizes[0]) for row in rows if column < len(row)]
        if order == list(range(num_workers)):
            break
    return tuple(sequence)


def _spread(influence: list[int], groups) -> list[int]:
    """Bit sets of the workers that have influenced each worker, after one more round."""
    result = list(influence)
    for group in groups:
        union = functools.reduce(operator.or_, (influence[worker] for worker in group))
        for worker in group:
            result[worker] = union
    return result


def rounds_to_mix(sequence: list[Groups], num_workers: int) -> int | None:
    """Rounds, from the worst start, until every worker has influenced every other; None if never.

    Args:
        sequence: The groups of one period, which repeats.
        num_workers: P.
    """
    everyone = (1 << num_workers) - 1
    worst = 0
    for start in range(len(sequence)):
        influence = [1 << worker for worker in range(num_workers)]
        rounds, unchanged = 0, 0
        while any(seen != everyone for seen in influence):
            after = _spread(influence, sequence[(start + rounds) % len(sequence)])
            unchanged = unchanged + 1 if after == influence else 0
            if unchanged == len(sequence):
                return None
            influence, rounds = after, rounds + 1
        worst = max(worst, rounds)
    return worst


def contraction(sequence: list[Groups], num_workers: int) -> float:
    """Factor by which one period of group means shrinks the distance to the global mean, at worst.

    This is the spectral norm of the product of the period's mixing matrices minus J, the global mean. It is found by
    subspace iteration: a group mean costs O(num_workers), a matrix would cost O(num_workers^2).

    Args:
        sequence: The groups of one period.
        num_workers: P.
    """
    if num_workers == 1:
        return 0.0

    def centre(x):
        return x - x.mean(0)

    rounds = []
    for groups in sequence:
        order = np.array([worker for group in groups for worker in group])
        sizes = np.array([len(group) for group in groups])
        rounds.append((order, np.cumsum(sizes) - sizes, sizes))

    def average(x, order, starts, sizes):
        result = np.empty_like(x)
        result[order] = np.repeat(np.add.reduceat(x[order], starts, axis=0) / sizes[:, None], sizes, axis=0)
        return result

    x = centre(np.random.default_rng(0).normal(size=(num_workers, min(num_workers, 16))))
    norm = 0.0
    for _ in range(500):
        x, _ = np.linalg.qr(x)
        x = centre(x)
        for arguments in rounds:
            x = average(x, *arguments)
        previous, norm = norm, float(np.linalg.norm(x, 2))
        if norm < 1e-12:
            return 0.0
        if abs(norm - previous) < 1e-9 * norm:
            break
        for arguments in reversed(rounds):  # each round's matrix is symmetric
            x = average(x, *arguments)
    return min(norm, 1.0)


def _log2(n: int) -> int | None:
    return n.bit_length() - 1 if n & (n - 1) == 0 else None


def _sorted_groups(groups) -> Groups:
    return tuple(sorted(tuple(sorted(group)) for group in groups))
