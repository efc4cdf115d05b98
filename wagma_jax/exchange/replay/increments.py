"""Executes a recorded run of increments again: what each result is made of follows from the versions in the ledger.

A contribution of version v of a worker whose last one had version u is the sum of what it has handed in for the rounds
after u, up to v. A call takes the sum of the results after those that the call before it has taken, up to its source.
"""

import collections
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from wagma_jax.averaging import divided
from wagma_jax.exchange.increments import added
from wagma_jax.exchange.isolation import isolated
from wagma_jax.exchange.replay.steps import Steps, programs
from wagma_jax.exchange.staging import Staging
from wagma_jax.exchange.storage import Buffers
from wagma_jax.exchange.summing import summed
from wagma_jax.ledger import Segment
from wagma_jax.ledger.entries import Call, ConsensusCall


class IncrementsRun:
    """The state of a replay.

    Args:
        parts: The same segment of each rank.
        staging: Knows the trees.
        params: What all workers started from.
        steps: The caller's functions.
    """

    FIRST_ALONE = False

    def __init__(self, parts: Sequence[Segment], staging: Staging, params: Any, steps: Steps):
        self._staging, self._steps = staging, steps
        self._is_sync = parts[0].schedule.is_sync
        self._size = len(parts)
        self._programs = programs(parts)
        self._versions = {entry.round: entry.contributed for part in parts for entry in part.rounds}
        first = parts[0].start.first_round - 1
        self._params = [params] * self._size
        self._numbers = [[0, 0] for _ in parts]  # calls of average, and of consensus
        self._handed: list[dict[int, Buffers]] = [{} for _ in parts]  # by the round, until it is contributed
        self._arrived = [first] * self._size
        self._contributed = [first] * self._size  # the version of each rank's newest contribution
        self._newest = first  # result
        self._results: dict[int, Buffers] = {}  # until all have taken them
        self._means: dict[int, Buffers] = {}  # of what only sync rounds exchange
        self._taken = [first] * self._size
        self._models: dict[int, dict[int, Buffers]] = collections.defaultdict(dict)  # handed to the n-th consensus
        self._consensuses: list[Buffers] = []
        self._pending: list[Any] = [None] * self._size  # leaves of a call that has handed in, but not returned
        self._start = start = isolated(lambda: staging.pack(staging.check(params)))()
        self._nothing = jax.tree.map(jnp.zeros_like, staging.ordinary(start))
        # what only sync rounds exchange, by the version that it belongs to
        self._rest = [{first: staging.rest(start)} for _ in parts]
        self._add = jax.jit(added)
        self._divide = jax.jit(lambda totals, size: tuple(divided(total, size) for total in totals))

    def execute(self) -> list[Any]:
        """What the last call of every rank has returned."""
        while any(self._programs):
            before = sum(map(len, self._programs))
            for rank, program in enumerate(self._programs):
                while program and self._executed(rank, program[0]):
                    program.popleft()
            if sum(map(len, self._programs)) == before:
                stuck = [rank for rank, program in enumerate(self._programs) if program]
                raise ValueError(
                    f"the ledgers of the ranks {stuck} go on where others end: pass the ledgers of a whole run"
                )
        return self._params

    def _executed(self, rank: int, entry: Call | ConsensusCall) -> bool:
        """Executes a call if it can be; else others must be executed before."""
        is_call = isinstance(entry, Call)
        number = self._numbers[rank][0 if is_call else 1]
        if self._pending[rank] is None:
            step = self._steps.local if is_call else self._steps.hand_in
            self._receive(rank, entry, number, step(rank, number, self._params[rank]))
        result = self._result(rank, entry) if isinstance(entry, Call) else self._consensus(number)
        if result is None:
            return False
        self._return(rank, result)
        self._numbers[rank][0 if is_call else 1] += 1
        if is_call:
            self._steps.observe(rank, number, self._params[rank])
        return True

    @isolated
    def _receive(self, rank: int, entry: Call | ConsensusCall, number: int, tree: Any) -> None:
        """What the trainer hands in."""
        leaves = self._staging.check(tree)
        buffers = self._staging.pack(leaves)
        if isinstance(entry, Call):
            self._handed[rank][entry.round] = self._staging.ordinary(buffers)
            self._rest[rank][entry.round] = self._staging.rest(buffers)
            self._arrived[rank] = entry.round
        else:
            self._models[number][rank] = buffers
        self._pending[rank] = leaves

    @isolated
    def _return(self, rank: int, buffers: Buffers) -> None:
        self._params[rank] = self._staging.unpack(self._pending[rank], buffers)
        self._pending[rank] = None

    @isolated
    def _result(self, rank: int, call: Call) -> Buffers | None:
        """What a call takes; None if something of it is not there yet."""
        while call.source is not None and self._newest < call.source:
            if not self._execute_round(self._newest + 1):
                return None
        ordinary = self._nothing
        if call.source is not None:
            rounds = range(self._taken[rank] + 1, call.source + 1)
            total = functools.reduce(self._add, (self._results[r] for r in rounds))
            ordinary = self._staging.narrow(self._staging.copy(total), self._nothing)
            self._taken[rank] = call.source
            for r in [r for r in self._results if r <= min(self._taken)]:
                del self._results[r]
        if not self._is_sync(call.round):
            return ordinary
        self._rest[rank][call.round] = self._means[call.round]
        return self._staging.completed(ordinary, self._means[call.round])

    def _execute_round(self, r: int) -> bool:
        """Adds up a round's contributions, if all are there."""
        if r not in self._versions:
            raise ValueError(f"the ledgers lack round {r}, whose result was taken: pass the ledgers of a whole run")
        versions = self._versions[r]
        if any(version > arrived for version, arrived in zip(versions, self._arrived, strict=True)):
            return False
        contributions = []
        for rank, version in enumerate(versions):
            if version != self._contributed[rank] and version not in self._handed[rank]:
                raise ValueError(
                    f"the ledger of rank {rank} lacks its call of round {version}, whose gradient was averaged: pass "
                    "the ledgers of a whole run"
                )
            self._contributed[rank] = version
            rounds = [t for t in sorted(self._handed[rank]) if t <= version]
            parts = [self._handed[rank].pop(t) for t in rounds]
            contributions.append(functools.reduce(self._add, parts) if parts else self._nothing)
        self._results[r] = self._divide(summed(contributions), self._size)
        if self._is_sync(r):
            rest = [self._rest[rank][version] for rank, version in enumerate(versions)]
            self._means[r] = self._staging.narrow(self._divide(summed(rest), self._size), rest[0])
        self._newest = r
        return True

    @isolated
    def _consensus(self, number: int) -> Buffers | None:
        """The mean of the n-th ``consensus``; None if not all have handed in their models."""
        models = self._models[number]
        if len(self._consensuses) == number and len(models) == self._size:
            mean = self._divide(summed([models.pop(rank) for rank in range(self._size)]), self._size)
            mean = self._staging.narrow(mean, self._start)
            self._consensuses.append(mean)
            for rank, version in enumerate(self._arrived):  # nobody has gone on
                self._rest[rank][version] = self._staging.rest(mean)
        return self._consensuses[number] if number < len(self._consensuses) else None
