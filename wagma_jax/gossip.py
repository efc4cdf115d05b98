"""Who receives from whom where workers mix with neighbours: overlapping or directed neighbourhoods, as plain integers.

Nothing here touches JAX, devices or processes, as in ``schedule``, which has the groups that exclude each other.
"""

import dataclasses

import numpy as np

from wagma_jax.schedule import integer

Shifts = tuple[int, ...]
"""At a round every worker i sends to ``(i + shift) % P`` for each shift. 0 is the worker itself, and comes first."""


@dataclasses.dataclass(frozen=True)
class GossipSchedule:
    """The neighbours of every round, in graphs that look the same from every worker (circulant graphs).

    A worker gives an equal share of its model to itself and to each worker that it sends to. So the weights of what a
    worker sends add up to 1, and so do those of what it receives: the mixing matrix is doubly stochastic. Schedules are
    immutable, hashable and compare by value. :func:`ring` and :func:`exponential` make the usual ones.

    Attributes:
        num_workers: P, the number of workers, at least 1.
        shifts: For each round of a period, whom a worker sends to; see :data:`Shifts`.

    Raises:
        ValueError: ``num_workers`` is no integer of at least 1; ``shifts`` is empty, or a round of it does not begin
            with 0, names a worker twice, or has shifts outside of ``range(num_workers)``.
    """

    num_workers: int
    shifts: tuple[Shifts, ...]

    def __post_init__(self):
        workers = integer("num_workers", self.num_workers, "pass the number of workers, for example 8")
        if workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {workers}: pass the number of workers")
        valid = bool(self.shifts) and all(
            row[:1] == (0,) and len(set(row)) == len(row) and all(0 <= shift < workers for shift in row)
            for row in self.shifts
        )
        if not valid:
            raise ValueError(
                f"shifts must have for each round a tuple of distinct shifts below num_workers={workers}, 0 first, got "
                f"{self.shifts!r}: pass for example ((0, 1),), or use ring() or exponential()"
            )
        object.__setattr__(self, "num_workers", workers)

    @property
    def period(self) -> int:
        """Rounds after which the graphs repeat."""
        return len(self.shifts)

    @property
    def sync_period(self) -> None:
        """There are no global means."""
        return None

    @property
    def group_size(self) -> int:
        """The most models that a worker mixes in a round, its own among them."""
        return max(map(len, self.shifts))

    @property
    def group_sizes(self) -> list[int]:
        """The numbers of models that a worker mixes in a round, ascending."""
        return sorted({len(row) for row in self.shifts})

    def sends_to(self, worker: int, t: int) -> tuple[int, ...]:
        """The other workers that ``worker`` sends to at round t."""
        return tuple((worker + shift) % self.num_workers for shift in self.shifts[t % self.period][1:])

    def receives_from(self, worker: int, t: int) -> tuple[int, ...]:
        """The other workers that ``worker`` receives from at round t."""
        return tuple((worker - shift) % self.num_workers for shift in self.shifts[t % self.period][1:])

    def matrix(self, t: int) -> np.ndarray:
        """The mixing matrix of round t, float64 [P, P]: the weight in row i, column j is that of j's model in i's."""
        row = self.shifts[t % self.period]
        matrix = np.zeros((self.num_workers, self.num_workers))
        for worker in range(self.num_workers):
            for source in (worker, *self.receives_from(worker, t)):
                matrix[worker, source] = 1 / len(row)
        return matrix

    def describe(self) -> str:
        """One line for people."""
        others = self.group_size - 1
        rounds = "the same every round" if self.period == 1 else f"in turn of {self.period} rounds"
        count = f"{others} other" if others == 1 else f"{others} others"
        return f"{self.num_workers} workers, each sends to {count}, {rounds}"


def ring(num_workers: int) -> GossipSchedule:
    """Every worker mixes with both of its neighbours on a ring (Lian et al., NeurIPS 2017, section 5).

    The weights are 1/3; two workers have one neighbour each, and weights 1/2.
    """
    num_workers = integer("num_workers", num_workers, "pass the number of workers")
    neighbours = {1: (), 2: (1,)}.get(num_workers, (1, num_workers - 1))
    return GossipSchedule(num_workers, ((0, *neighbours),))


def exponential(num_workers: int) -> GossipSchedule:
    """Every worker sends to the one 2^k ahead, k = 0, 1, ... in turn (Assran et al., ICML 2019, appendix A).

    The weights are 1/2. If P is a power of two, log2 P rounds of mixing alone are the exact global mean. (The authors'
    code also sends 2^k back, in rounds between these; this follows the text of the paper.)
    """
    num_workers = integer("num_workers", num_workers, "pass the number of workers")
    hops = max(num_workers - 1, 0).bit_length()
    return GossipSchedule(num_workers, tuple((0, 1 << k) for k in range(hops)) or ((0,),))
