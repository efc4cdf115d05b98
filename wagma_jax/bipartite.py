"""Who averages with whom where workers average in pairs: a bipartite graph, and partners drawn from a seed.

Nothing here touches JAX, devices or processes, as in ``schedule``, which has the groups that exclude each other.
"""

import dataclasses
import hashlib
import struct

import numpy as np

from wagma_jax.choices import Graph, check_graph
from wagma_jax.schedule import integer


@dataclasses.dataclass(frozen=True)
class PairSchedule:
    """The pairs of AD-PSGD. Even workers are active: they ask odd ones, which are passive: they answer.

    So nobody who waits for an answer is asked, and a circle of workers that wait for each other cannot form (Lian et
    al., ICML 2018, arXiv:1710.06952, section 4). An active worker's neighbours are the passive ones at the distances

    - ``"exponential"``: 1 and 1 + 2^i, i = 1, 2, ..., in both directions, as in the code of Assran et al., ICML 2019;
    - ``"ring"``: 1 in both directions.

    With an odd number of workers the circle does not close, since both of its ends are active: where it would, there is
    no edge. The graph is connected for every number of workers. Schedules are immutable, hashable and compare by value.

    Attributes:
        num_workers: P, at least 1. One worker has no neighbours, and averages with nobody.
        graph: "exponential" or "ring".
        seed: Of the partners, any integer of 64 bits.

    Raises:
        ValueError: ``num_workers`` or ``seed`` is no integer, or out of range, or ``graph`` is no graph.
    """

    num_workers: int
    graph: Graph = "exponential"
    seed: int = 0

    def __post_init__(self):
        workers = integer("num_workers", self.num_workers, "pass the number of workers, for example 8")
        seed = integer("seed", self.seed, "pass for example 0")
        if workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {workers}: pass the number of workers")
        if not -(1 << 63) <= seed < 1 << 63:
            raise ValueError(f"seed must fit into 64 bits, got {seed}: pass for example 0")
        check_graph(self.graph)
        object.__setattr__(self, "num_workers", workers)
        object.__setattr__(self, "seed", seed)

    @property
    def sync_period(self) -> None:
        """There are no global means."""
        return None

    @property
    def group_size(self) -> int:
        """The most models that are averaged at a time."""
        return min(2, self.num_workers)

    @property
    def group_sizes(self) -> list[int]:
        """The numbers of models that are averaged at a time, ascending."""
        return [self.group_size]

    def is_active(self, worker: int) -> bool:
        """Whether a worker asks others; else it answers."""
        return worker % 2 == 0

    def neighbours(self, worker: int) -> tuple[int, ...]:
        """The workers that ``worker`` averages with, ascending."""
        workers = self.num_workers
        shifts = [1] if self.graph == "ring" else [1, *(1 + (1 << i) for i in range(1, workers.bit_length()))]
        found = {(worker + sign * shift) % workers for shift in shifts if shift < workers for sign in (1, -1)}
        return tuple(sorted(other for other in found if self.is_active(other) != self.is_active(worker)))

    def partner(self, worker: int, number: int) -> int:
        """With whom an active worker makes its swap of this number, from 0: any neighbour is equally likely.

        Drawn from (seed, worker, number) alone, the same on every machine.
        """
        neighbours = self.neighbours(worker)
        digest = hashlib.blake2b(struct.pack("<qqq", self.seed, worker, number), digest_size=8).digest()
        return neighbours[int.from_bytes(digest, "little") % len(neighbours)]

    def matrix(self) -> np.ndarray:
        """The expected mixing matrix of a swap of a random active worker, float64 [P, P]; doubly stochastic.

        Its second largest eigenvalue says how fast models mix (assumption 1.2 of the paper).
        """
        active = [worker for worker in range(self.num_workers) if self.is_active(worker) and self.neighbours(worker)]
        matrix = np.eye(self.num_workers)
        for worker in active:
            neighbours = self.neighbours(worker)
            weight = 0.5 / (len(active) * len(neighbours))
            for other in neighbours:
                matrix[[worker, other], [worker, other]] -= weight
                matrix[[worker, other], [other, worker]] += weight
        return matrix

    def describe(self) -> str:
        """One line for people."""
        active = -(-self.num_workers // 2)
        return f"{self.num_workers} workers in pairs, {active} of them ask others ({self.graph} graph)"
