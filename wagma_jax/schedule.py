"""Who averages with whom at round t: rotating groups and sync rounds, as plain integers.

Nothing here touches JAX, devices or processes, so that every transport (XLA collectives, MPI, a replay) reads the
same schedule.

Two constructions, both rotating so that pure averaging contracts to the global mean:

*Butterfly* (``num_workers = 2**p`` and ``group_size = 2**s``). A group at round t is closed under XOR with the s masks
``1 << ((t*s + i) mod p)``, i = 0..s-1 (Li et al., TPDS 2021, section 3). Every worker has influenced every other
after ``ceil(p / s)`` rounds, and when s divides p the models after ``p / s`` rounds of pure averaging *are* the global
mean.

*Shuffle* (everything else). Write the workers of round t group below group, as the rows of a table, and read the
table column by column: that is the order of round t + 1, which is cut into groups again. Dealing cards like this is a
perfect G-way shuffle (the wiring of an omega network), and reduces to the butterfly on powers of two. When
``group_size`` S divides P, a group of round t + 1 draws from ``min(S, G)`` different groups of round t, whose members
drew from neighbouring groups in turn; so influence grows by a factor S each round and is complete after
``ceil(log_S P)`` rounds, and when P is a power of S the models are then exactly the global mean. When S does not
divide P the shuffle is irregular and may take up to two rounds more (checked for all P <= 64). The sequence restarts
after twice the rounds that full influence takes (sooner where the shuffle returns to the identity), so that few
distinct groups exist (each is compiled, and opens a communicator on some backends). The product of the mixing matrices
over one period is doubly stochastic and positive, hence contracts the distance to the global mean by a factor
strictly below 1.
"""

import dataclasses
import functools
import math
import operator

import numpy as np

Groups = tuple[tuple[int, ...], ...]
"""A partition of the workers into groups; members ascending, groups by their first member."""


@dataclasses.dataclass(frozen=True)
class GroupSchedule:
    """The groups of every round, and the rounds at which all workers synchronize.

    There are ``ceil(num_workers / group_size)`` groups, none larger than ``group_size``, and sizes differ by at most
    one. Schedules are immutable, hashable and compare by value.

    Attributes:
        num_workers: P, the number of workers, at least 1.
        group_size: S, the largest number of workers in a group, from 1 (no averaging but at sync rounds) to P (the
            global mean every round). The paper takes S = sqrt(P).
        sync_period: tau; every tau-th round is a global mean of all workers, which bounds staleness by tau - 1
            rounds. None: never.
        rotate: Whether groups change from round to round. ``False`` keeps the groups of round 0, which mix with the
            other groups only at sync rounds.

    Raises:
        ValueError: An argument is no integer or out of range.
    """

    num_workers: int
    group_size: int
    sync_period: int | None = 10
    rotate: bool = True

    def __post_init__(self):
        workers = integer("num_workers", self.num_workers, "pass the number of workers, for example 8")
        if workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {workers}: pass the number of workers")
        size = integer("group_size", self.group_size, "pass the workers per group, for example 4")
        if not 1 <= size <= workers:
            raise ValueError(
                f"group_size must be between 1 and num_workers={workers}, got {size}: pass {min(max(size, 1), workers)}"
            )
        period = self.sync_period
        if period is not None:
            period = integer("sync_period", period, "pass the rounds between global means, or None for never")
            if period < 1:
                raise ValueError(
                    f"sync_period must be at least 1, got {period}: pass 1 for a global mean every round, "
                    "or None for never"
                )
        if not isinstance(self.rotate, bool | np.bool_):
            raise ValueError(f"rotate must be True or False, got {self.rotate!r}")
        for name, value in (("num_workers", workers), ("group_size", size), ("sync_period", period)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "rotate", bool(self.rotate))

    def groups(self, t: int) -> Groups:
        """The groups of ordinary round t: a partition of ``range(num_workers)``.

        The sequence is that of ordinary rounds throughout: at a sync round (see :meth:`is_sync`) all workers average
        instead, and the groups of that round are not used.

        Args:
            t: The round, from 0.

        Returns:
            A tuple of groups, each an ascending tuple of worker indices; groups are ordered by their first member.

        Raises:
            ValueError: ``t`` is negative or no integer.
        """
        return _partition(self.num_workers, self.group_size, self._phase(t))

    def group_of(self, worker: int, t: int) -> tuple[int, ...]:
        """The group of ordinary round t that ``worker`` belongs to, as an ascending tuple of worker indices.

        Raises:
            ValueError: ``worker`` is not in ``range(num_workers)``, or ``t`` is negative or no integer.
        """
        worker = integer("worker", worker, "pass a worker's index")
        if not 0 <= worker < self.num_workers:
            raise ValueError(f"worker must be in range({self.num_workers}), got {worker}: pass a worker's index")
        phase = self._phase(t)
        return _partition(self.num_workers, self.group_size, phase)[
            _group_index(self.num_workers, self.group_size, phase)[worker]
        ]

    def is_sync(self, t: int) -> bool:
        """Whether all workers take the global mean at round t: ``(t + 1) % sync_period == 0``."""
        t = _round(t)
        return self.sync_period is not None and (t + 1) % self.sync_period == 0

    @functools.cached_property
    def period(self) -> int:
        """Rounds after which the sequence of ordinary groups repeats; at most ``num_workers``."""
        return _period(self.num_workers, self.group_size) if self.rotate else 1

    @functools.cached_property
    def rounds_to_mix(self) -> int | None:
        """Ordinary rounds, counted from any round, until every worker has influenced every other; None if never."""
        return _rounds_to_mix([self.groups(t) for t in range(self.period)], self.num_workers)

    @functools.cached_property
    def contraction(self) -> float:
        """Factor by which one period of pure averaging (no sync) shrinks the distance to the global mean, at worst.

        The spectral norm of ``M(period-1) ... M(0) - J``, with M(t) the mixing matrix of round t and J the global mean;
        0 when one period reaches the mean exactly, 1 when workers never mix.
        """
        return _contraction([self.groups(t) for t in range(self.period)], self.num_workers)

    @property
    def contraction_per_round(self) -> float:
        """Geometric mean of :attr:`contraction` over the rounds of one period."""
        return self.contraction ** (1 / self.period)

    def describe(self, model_bytes: int = 100_000_000) -> str:
        """What to read before a run: mixing, staleness, and bytes per step beside allreduce.

        Bytes are those that one worker sends in bandwidth-optimal collectives, ``2 (n - 1) / n`` of the model for n
        participants, averaged over a sync period; messages are those sent one after the other (latency),
        ``2 ceil(log2 n)``.

        Args:
            model_bytes: Size of what is averaged, in bytes; the default is a model of 25 million float32.

        Raises:
            ValueError: ``model_bytes`` is negative or no integer.
        """
        size = integer("model_bytes", model_bytes, "pass the model's size in bytes")
        if size < 0:
            raise ValueError(f"model_bytes must not be negative, got {size}: pass the model's size in bytes")
        return _describe(self, size)

    def _phase(self, t: int) -> int:
        return _round(t) % self.period


def integer(name: str, value, fix: str) -> int:
    """The argument as an int; ValueError, with what to do about it, for anything that is no integer."""
    if isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be an integer, got {value!r}: {fix}")
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {value!r} ({type(value).__name__}): {fix}") from None


def _round(t) -> int:
    t = integer("t", t, "pass a round, counted from 0 (inside a traced step the averager knows the round)")
    if t < 0:
        raise ValueError(f"t must not be negative, got {t}: rounds are counted from 0")
    return t


def _log2(n: int) -> int | None:
    return n.bit_length() - 1 if n & (n - 1) == 0 else None


def _sorted_groups(groups) -> Groups:
    return tuple(sorted(tuple(sorted(group)) for group in groups))


@functools.lru_cache(maxsize=1024)
def _period(num_workers: int, group_size: int) -> int:
    if group_size in (1, num_workers):
        return 1
    p, s = _log2(num_workers), _log2(group_size)
    if p is not None and s is not None:
        return p // math.gcd(p, s)
    return len(_shuffle(num_workers, group_size))


@functools.lru_cache(maxsize=4096)
def _partition(num_workers: int, group_size: int, phase: int) -> Groups:
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
def _group_index(num_workers: int, group_size: int, phase: int) -> tuple[int, ...]:
    index = [0] * num_workers
    for i, group in enumerate(_partition(num_workers, group_size, phase)):
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
    partitions: list[Groups] = []
    limit = num_workers
    while len(partitions) < limit:
        rows, start = [], 0
        for size in sizes:
            rows.append(order[start : start + size])
            start += size
        partitions.append(_sorted_groups(rows))
        if limit == num_workers:
            influence = _spread(influence, rows)
            if all(seen == everyone for seen in influence):
                limit = min(num_workers, 2 * len(partitions))
        order = [row[column] for column in range(sizes[0]) for row in rows if column < len(row)]
        if order == list(range(num_workers)):
            break
    return tuple(partitions)


def _spread(influence: list[int], groups) -> list[int]:
    """Bit sets of the workers that have influenced each worker, after one more round."""
    result = list(influence)
    for group in groups:
        union = functools.reduce(operator.or_, (influence[worker] for worker in group))
        for worker in group:
            result[worker] = union
    return result


def _rounds_to_mix(partitions: list[Groups], num_workers: int) -> int | None:
    everyone = (1 << num_workers) - 1
    worst = 0
    for start in range(len(partitions)):
        influence = [1 << worker for worker in range(num_workers)]
        rounds, unchanged = 0, 0
        while any(seen != everyone for seen in influence):
            after = _spread(influence, partitions[(start + rounds) % len(partitions)])
            unchanged = unchanged + 1 if after == influence else 0
            if unchanged == len(partitions):
                return None
            influence, rounds = after, rounds + 1
        worst = max(worst, rounds)
    return worst


def _contraction(partitions: list[Groups], num_workers: int) -> float:
    """Spectral norm of the period's product minus J, by subspace iteration (group means cost O(num_workers))."""
    if num_workers == 1:
        return 0.0

    def centre(x):
        return x - x.mean(0)

    rounds = []
    for groups in partitions:
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


def _describe(schedule: GroupSchedule, model_bytes: int) -> str:
    num_groups = len(schedule.groups(0))
    largest = max(map(len, schedule.groups(0)))
    smallest = min(map(len, schedule.groups(0)))
    sizes = f"{largest}" if largest == smallest else f"{smallest} or {largest}"
    period = schedule.sync_period

    def per_step(cost):
        group, everyone = cost(largest), cost(schedule.num_workers)
        return group if period is None else (group * (period - 1) + everyone) / period

    def sent(n):
        return 2 * (n - 1) / n * model_bytes

    def messages(n):
        return 2 * math.ceil(math.log2(n))

    if schedule.rounds_to_mix is None:
        mixing = "never by ordinary rounds" + (": only sync rounds mix the groups" if period is not None else "")
    elif schedule.contraction == 0:
        mixing = f"after {_count(schedule.rounds_to_mix, 'round')}: a period of averaging is the exact global mean"
    else:
        mixing = f"after {_count(schedule.rounds_to_mix, 'round')} every worker has influenced every other"
    contraction = "of the distance to the mean: to 0 within a period"
    if schedule.contraction > 0:
        contraction = f"{schedule.contraction_per_round:.3f} per round over a period (distance to the mean, at worst)"
    rotation = (
        f"repeats after {_count(schedule.period, 'round')}" if schedule.period > 1 else "the same groups every round"
    )
    ratio = per_step(sent) / sent(schedule.num_workers) if schedule.num_workers > 1 and model_bytes else 1.0
    rows = [
        ("rotation", rotation),
        ("full mixing", mixing),
        ("contraction", contraction),
        ("global mean", "never" if period is None else f"every {_count(period, 'round')}"),
        ("staleness", "unbounded" if period is None else f"at most {_count(period - 1, 'round')}"),
        (
            "bytes sent",
            f"{_megabytes(per_step(sent))} per worker and step for a model of {_megabytes(model_bytes)}; "
            f"allreduce {_megabytes(sent(schedule.num_workers))} (ratio {ratio:.2f})",
        ),
        (
            "messages",
            f"{per_step(messages):.1f} in sequence per step; allreduce {messages(schedule.num_workers)}",
        ),
    ]
    title = f"{_count(schedule.num_workers, 'worker')}, {_count(num_groups, 'group')} of {sizes}"
    if largest != smallest:
        exchanged = math.floor(math.log2(largest)) + 2
        divisors = [n for n in range(2, schedule.num_workers) if schedule.num_workers % n == 0]
        nearest = min(divisors, key=lambda n: (abs(n - schedule.group_size), -n), default=None)
        advice = f"; group_size={nearest} divides num_workers" if nearest else ""
        rows.append(
            (
                "note",
                "groups are of unequal size: where JAX has no grouped psum for them (shard_map with check_vma=True, "
                f"TPUs), up to {exchanged} models are sent per round instead{advice}",
            )
        )
    return "\n".join([title, *(f"  {name:<12} {text}" for name, text in rows)])


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
