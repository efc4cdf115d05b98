"""Executes a recorded run of group averages again: each result is made of the contributions that the ledger names."""

import collections
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax

from wagma_jax.exchange.isolation import isolated, own_settings
from wagma_jax.exchange.late import Late
from wagma_jax.exchange.replay import origins
from wagma_jax.exchange.replay.origins import Consensus, Handed, Key, Model, Total
from wagma_jax.exchange.replay.steps import Steps, programs
from wagma_jax.exchange.staging import Staging
from wagma_jax.exchange.storage import Buffers
from wagma_jax.exchange.summing import summed
from wagma_jax.exchange.weighing import scaled
from wagma_jax.ledger import Segment
from wagma_jax.ledger.entries import Call, ConsensusCall, GlobalMean, Round


class GroupsRun:
    """The state of a replay: what is known, and still needed."""

    FIRST_ALONE = False

    def __init__(self, parts: Sequence[Segment], staging: Staging, params: Any, steps: Steps):
        self._staging = staging
        self._steps = steps
        self._is_sync = parts[0].schedule.is_sync
        self._programs = programs(parts)
        self._groups: dict[tuple[int, int], tuple[int, ...]] = {}  # by (round, rank)
        self._sources: dict[Key, list[Key]] = {}  # of totals and consensus models, in the order of the ranks
        self._weights: dict[Key, tuple[int, ...]] = {}  # of the same, where they are weighted
        self._scale = jax.jit(scaled)
        self._read_rounds(parts)
        self._stand_ins = [origins.stand_ins(rank, part) for rank, part in enumerate(parts)]
        self._entries = [0] * len(parts)
        self._uses = collections.Counter[Key]()
        self._count_uses()
        self._store: dict[Key, Buffers] = {}
        self._params = [params] * len(parts)
        self._late: list[Late] = []
        self._calls = [0] * len(parts)
        self._consensuses = [0] * len(parts)
        leaves = staging.check(params)
        for rank in range(len(parts)):
            with own_settings():
                model = staging.pack(leaves)
                self._keep(Model(rank, parts[0].start.first_round - 1), model)
                self._late.append(Late(staging, parts[0].start.options.get("late_merge") == "add", model))

    def execute(self) -> list[Any]:
        """The parameters of every rank in the end."""
        pending: list[Any] = [None] * len(self._programs)  # leaves and buffers of a call whose W' is published
        while any(self._programs):
            before = sum(map(len, self._programs))
            for rank, program in enumerate(self._programs):
                while program and self._executed(rank, program[0], pending):
                    program.popleft()
            if sum(map(len, self._programs)) == before:
                stuck = [rank for rank, program in enumerate(self._programs) if program]
                raise ValueError(
                    f"the ledgers of the ranks {stuck} go on where others end: pass the ledgers of a whole run"
                )
        return self._params

    def _read_rounds(self, parts: Sequence[Segment]) -> None:
        found: dict[Total, dict[int, Key]] = {}
        for rank, part in enumerate(parts):
            number, version = -1, None  # of the last consensus
            for entry in part.engine:
                if isinstance(entry, GlobalMean):
                    number, version = number + 1, entry.version
                    self._sources[Consensus(number)] = [Handed(other, number) for other in range(len(parts))]
                elif isinstance(entry, Round):
                    own = entry.contributed[entry.group.index(rank)]
                    source: Key = Model(rank, own)
                    if number >= 0 and own == version:
                        source = Consensus(number)
                    elif own < entry.round and (own, rank) in self._groups and self._is_sync(own):
                        source = Total(own, 0)
                    self._groups[entry.round, rank] = entry.group
                    found.setdefault(Total(entry.round, entry.group[0]), {})[rank] = source
                    self._weights[Total(entry.round, entry.group[0])] = entry.weights
        for key, sources in found.items():
            self._sources[key] = [sources[rank] for rank in sorted(sources)]

    def _count_uses(self) -> None:
        """Follows what is taken back to what it is made of; what nobody takes is not computed."""
        taken = [key for rank, program in enumerate(self._programs) for key in self._taken_by(rank, program)]
        needed = list(taken)
        self._uses.update(taken)
        seen = set()
        while needed:
            key = needed.pop()
            if key in seen or isinstance(key, Model | Handed):
                continue
            seen.add(key)
            sources = self._sources.get(key, [])
            members = self._groups.get((key.round, key.first)) if isinstance(key, Total) else sources
            if members is None or len(members) != len(sources):
                raise ValueError(f"the ledgers lack a part of {key}: pass the ledgers of a whole run")
            self._uses.update(sources)
            needed += sources

    def _taken_by(self, rank: int, program: Iterable[Any]) -> Iterator[Key]:
        yield from self._stand_ins[rank].values()
        number = 0
        for entry in program:
            if isinstance(entry, ConsensusCall):
                yield Consensus(number)
                number += 1
            elif entry.source is not None:
                yield self._total_of(rank, entry.source)

    def _total_of(self, rank: int, t: int) -> Total:
        group = self._groups.get((t, rank))
        if group is None:
            raise ValueError(
                f"the ledger of rank {rank} lacks round {t}, which it has merged: pass the ledgers of a whole run"
            )
        return Total(t, group[0])

    def _executed(self, rank: int, entry: Any, pending: list[Any]) -> bool:
        """Executes a call if it can be; else others must be executed before."""
        tree = None
        if pending[rank] is None:
            tree = self._params[rank]
            if isinstance(entry, Call):
                tree = self._steps.local(rank, self._calls[rank], tree)
        if not self._exchanged(rank, entry, pending, tree):
            return False
        if isinstance(entry, ConsensusCall):
            self._consensuses[rank] += 1
        else:
            self._steps.observe(rank, self._calls[rank], self._params[rank])
            self._calls[rank] += 1
        return True

    @isolated
    def _exchanged(self, rank: int, entry: Any, pending: list[Any], tree: Any) -> bool:
        """The exchange's part of a call: publishes ``tree``, unless that is done; takes the result, if it is there."""
        staging = self._staging
        if pending[rank] is None:
            stand_in = self._stand_ins[rank].get(self._entries[rank])
            pending[rank] = staging.check(tree), None, stand_in
        leaves, own, stand_in = pending[rank]
        if own is None:
            own = staging.pack(leaves) if stand_in is None else self._get(stand_in)
            if own is None:
                return False
            if stand_in is not None:
                leaves = staging.check(staging.unpack(leaves, own))
                self._late[rank].returned(own)
            if isinstance(entry, ConsensusCall):
                self._keep(Handed(rank, self._consensuses[rank]), own)
            elif stand_in is None:
                self._keep(Model(rank, entry.round), own)
            pending[rank] = leaves, own, stand_in
        if isinstance(entry, ConsensusCall):
            key: Key | None = Consensus(self._consensuses[rank])
        else:
            key = None if entry.source is None else self._total_of(rank, entry.source)
        if key is None:
            result = own
        else:
            total = self._get(key)
            if total is None:
                return False
            result = total
            if isinstance(entry, Call) and entry.merge != "mean":
                total, own, weight = staging.copy(total), staging.ordinary(own), self._weight(key)
                if entry.merge == "late":
                    result = self._late[rank].merge(total, own, weight, entry.weight)
                else:
                    result = staging.narrow(total, own, weight)
            self._release(key)
        self._late[rank].returned(result)
        self._params[rank] = staging.unpack(leaves, result)
        pending[rank] = None
        self._entries[rank] += 1
        if stand_in is not None:
            self._release(stand_in)
        return True

    def _get(self, key: Key) -> Buffers | None:
        """A publication, sum or mean; None if something that it is made of is not there yet."""
        if key in self._store or isinstance(key, Model | Handed):
            return self._store.get(key)
        parts = []
        for source in self._sources[key]:
            part = self._get(source)
            if part is None:
                return None
            parts.append(part)
        is_mean = isinstance(key, Consensus) or self._is_sync(key.round)
        total = summed(self._weighted(key, parts if is_mean else [self._staging.ordinary(part) for part in parts]))
        self._store[key] = self._staging.narrow(total, parts[0], self._weight(key)) if is_mean else total
        for source in self._sources[key]:
            self._release(source)
        return self._store[key]

    def _weighted(self, key: Key, parts: list[Buffers]) -> list[Buffers]:
        """The contributions times their weights."""
        weights = self._weights.get(key) or (1,) * len(parts)
        return [part if weight == 1 else self._scale(part, weight) for part, weight in zip(parts, weights, strict=True)]

    def _weight(self, key: Key) -> int:
        """The weight of a sum."""
        return sum(self._weights.get(key, ())) or len(self._sources[key])

    def _keep(self, key: Key, buffers: Buffers) -> None:
        if self._uses[key]:
            self._store[key] = buffers

    def _release(self, key: Key) -> None:
        self._uses[key] -= 1
        if not self._uses[key]:
            del self._store[key]
