"""Who averages with whom at round t: rotating groups and sync rounds, as plain integers.

Nothing here touches JAX, devices or processes, so that every transport (XLA collectives, MPI, a replay) reads the
same schedule. How groups are built is in ``partitions``.
"""

import dataclasses
import functools
import math
import operator

import numpy as np

from wagma_jax import partitions
from wagma_jax.partitions import Groups


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
        return partitions.partition(self.num_workers, self.group_size, self._phase(t))

    def group_of(self, worker: int, t: int) -> tuple[int, ...]:
        """The group of ordinary round t that ``worker`` belongs to, as an ascending tuple of worker indices.

        Raises:
            ValueError: ``worker`` is not in ``range(num_workers)``, or ``t`` is negative or no integer.
        """
        worker = integer("worker", worker, "pass a worker's index")
        if not 0 <= worker < self.num_workers:
            raise ValueError(f"worker must be in range({self.num_workers}), got {worker}: pass a worker's index")
        arguments = self.num_workers, self.group_size, self._phase(t)
        return partitions.partition(*arguments)[partitions.group_index(*arguments)[worker]]

    def is_sync(self, t: int) -> bool:
        """Whether all workers take the global mean at round t: ``(t + 1) % sync_period == 0``."""
        if type(t) is not int or t < 0:  # asked some ten times in a round
            t = _round(t)
        return self.sync_period is not None and (t + 1) % self.sync_period == 0

    @property
    def group_sizes(self) -> list[int]:
        """The sizes of the groups of an ordinary round, ascending."""
        return sorted({len(group) for group in self.groups(0)})

    @functools.cached_property
    def period(self) -> int:
        """Rounds after which the sequence of ordinary groups repeats; at most ``num_workers``."""
        return partitions.period(self.num_workers, self.group_size) if self.rotate else 1

    @functools.cached_property
    def rounds_to_mix(self) -> int | None:
        """Ordinary rounds, counted from any round, until every worker has influenced every other; None if never."""
        return partitions.rounds_to_mix([self.groups(t) for t in range(self.period)], self.num_workers)

    @functools.cached_property
    def contraction(self) -> float:
        """Factor by which one period of pure averaging (no sync) shrinks the distance to the global mean, at worst.

        The spectral norm of ``M(period-1) ... M(0) - J``, with M(t) the mixing matrix of round t and J the global mean;
        0 when one period reaches the mean exactly, 1 when workers never mix.
        """
        return partitions.contraction([self.groups(t) for t in range(self.period)], self.num_workers)

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
            model_bytes: Size of what is averaged, in bytes of the dtype of sums: 4 for each bfloat16. The default is a
                model of 25 million float32.

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
        # recursive doubling, before and after which members beyond a power of two exchange theirs with a partner
        exchanged = 1 if largest == 2 else math.floor(math.log2(largest)) + 2
        divisors = [n for n in range(2, schedule.num_workers) if schedule.num_workers % n == 0]
        nearest = min(divisors, key=lambda n: (abs(n - schedule.group_size), -n), default=None)
        advice = f"; group_size={nearest} divides num_workers" if nearest else ""
        rows.append(
            (
                "note",
                "groups are of unequal size: where JAX has no grouped psum for them (shard_map with check_vma=True, "
                f"TPUs), a round takes {_count(exchanged, 'message')} of a whole model in sequence instead{advice}",
            )
        )
    return "\n".join([title, *(f"  {name:<12} {text}" for name, text in rows)])


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
