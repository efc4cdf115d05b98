"""Executes a recorded run of averaging in pairs again, in one process.

Every change of a live model has a number on its rank, its version, and the ledger says which versions a swap was made
of. So the order in which trainers and partners have changed each model comes out again, and with it its bits.
"""

import collections
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from wagma_jax.exchange.arithmetic import Compiled
from wagma_jax.exchange.isolation import isolated
from wagma_jax.exchange.replay.steps import Steps
from wagma_jax.exchange.staging import Staging
from wagma_jax.exchange.storage import Buffers
from wagma_jax.exchange.summing import summed
from wagma_jax.ledger import Segment
from wagma_jax.ledger.entries import Call, ConsensusCall, Swap

Key = tuple[int, int]
"""A live model: its rank and its version."""


class _HandedIn(NamedTuple):
    """A worker has handed in its model for the consensus of this number."""

    number: int


class _Mean(NamedTuple):
    """All have taken the mean of the consensus of this number."""

    number: int


_Change = Call | Swap | _HandedIn | _Mean
"""What makes a version."""


class PairsRun:
    """The state of a replay: what is known, and still needed; see ``replay.replay`` for the arguments.

    Attributes:
        FIRST_ALONE: Whether only the first segment can be executed: others begin with live models that differ.
    """

    FIRST_ALONE = True

    def __init__(self, parts: Sequence[Segment], staging: Staging, params: Any, steps: Steps):
        self._staging, self._steps = staging, steps
        self._compute = Compiled(staging.device)
        self._ranks = range(len(parts))
        self._swaps = {
            (rank if swap.asked else swap.partner, swap.number, swap.asked): swap
            for rank, part in enumerate(parts)
            for swap in part.swaps
        }
        self._changes = [collections.deque(_changes(rank, part)) for rank, part in enumerate(parts)]
        self._dropped = [_dropped(part) for part in parts]
        self._calls = [0] * len(parts)
        self._uses = collections.Counter[Key]()
        for rank, part in enumerate(parts):
            self._uses.update(key for entry in part.entries for key in self._sources(rank, entry))
        self._params = [params] * len(parts)
        self._handed: dict[int, dict[int, Buffers]] = {}  # the models of a consensus, by its number and the rank
        self._means: dict[int, Buffers] = {}
        self._store: dict[Key, Buffers] = {}
        self._live: list[Any] = [None] * len(parts)
        self._rest: list[Any] = [None] * len(parts)  # what swaps do not exchange
        self._versions = [-1] * len(parts)
        self._begin(params)

    @isolated
    def _begin(self, params: Any) -> None:
        for rank in self._ranks:
            model = self._staging.pack(self._staging.check(params))
            self._rest[rank] = self._staging.rest(model)
            self._become(rank, self._staging.ordinary(model))

    def execute(self) -> list[Any]:
        """The parameters of every rank in the end."""
        self._skip()
        while any(self._changes):
            before = sum(self._versions)
            for rank in self._ranks:
                while self._changes[rank] and self._changed(rank, self._changes[rank][0]):
                    self._skip()
            if sum(self._versions) == before:
                stuck = [rank for rank in self._ranks if self._changes[rank]]
                raise ValueError(
                    f"the ledgers of the ranks {stuck} go on where others end: pass the ledgers of a whole run"
                )
        return self._params

    def _sources(self, rank: int, entry: Any) -> Iterator[Key]:
        """The models that a change is made of, beside the one that it changes."""
        if isinstance(entry, Swap):
            partner = entry.partner
            other = self._swaps.get((partner if entry.asked is False else rank, entry.number, not entry.asked))
            if other is None:
                raise ValueError(
                    f"the ledgers lack swap {entry.number} of the ranks {rank} and {partner}: pass the ledgers of a "
                    "whole run"
                )
            yield partner, other.sent
            if entry.asked:
                yield rank, entry.sent
        elif isinstance(entry, Call):
            assert entry.began is not None, "a call of this method"
            yield rank, entry.began

    def _changed(self, rank: int, change: _Change) -> bool:
        """Makes the next version of a live model, if it can be made; else others must be made before."""
        if isinstance(change, _Mean):
            return self._took_mean(rank, change.number)
        sources = list(self._sources(rank, change))
        if not all(key in self._store for key in sources):
            return False
        if isinstance(change, Call):
            self._step(rank, change)
        elif isinstance(change, Swap):
            self._swap(rank, sources)
        else:  # what was handed in has the bits of the live model
            self._become(rank, self._live[rank])
        for key in sources:
            self._release(key)
        self._changes[rank].popleft()
        return True

    @isolated
    def _swap(self, rank: int, sources: list[Key]) -> None:
        received, *sent = [self._store[key] for key in sources]
        received = self._staging.copy(received)
        if sent:
            self._become(rank, self._compute.merged(received, self._live[rank], sent[0]))
        else:
            self._become(rank, self._compute.mean(self._live[rank], received))

    def _step(self, rank: int, call: Call) -> None:
        """A call of ``average`` whose step counted."""
        tree = self._steps.local(rank, self._calls[rank], self._params[rank])
        self._add(rank, call, tree)
        self._done(rank)

    @isolated
    def _add(self, rank: int, call: Call, tree: Any) -> None:
        staging = self._staging
        leaves = staging.check(tree)
        own, base = staging.pack(leaves), self._store[rank, call.began or 0]
        self._rest[rank] = staging.rest(own)
        self._become(rank, self._compute.moved(staging.ordinary(own), self._live[rank], base))
        self._params[rank] = staging.unpack(leaves, self._live[rank])

    def _skip(self) -> None:
        """Calls whose step was dropped, which make no version."""
        for rank in self._ranks:
            while (call := self._dropped[rank].get(self._calls[rank])) and call.version == self._versions[rank]:
                tree = self._steps.local(rank, self._calls[rank], self._params[rank])
                self._drop(rank, call, tree)
                self._done(rank)

    @isolated
    def _drop(self, rank: int, call: Call, tree: Any) -> None:
        whole = self._staging.completed(self._live[rank], self._rest[rank])
        self._params[rank] = self._staging.unpack(self._staging.check(tree), whole)
        for key in self._sources(rank, call):
            self._release(key)

    def _done(self, rank: int) -> None:
        self._steps.observe(rank, self._calls[rank], self._params[rank])
        self._calls[rank] += 1

    @isolated
    def _took_mean(self, rank: int, number: int) -> bool:
        """Takes the mean of a consensus, once all ranks have come so far."""
        staging, handed = self._staging, self._handed.setdefault(number, {})
        handed[rank] = staging.completed(self._live[rank], self._rest[rank])
        if len(handed) < len(self._ranks):
            return False
        if number not in self._means:
            models = [handed[other] for other in self._ranks]
            self._means[number] = staging.narrow(summed(models), models[0], len(models))
        mean = self._means[number]
        self._rest[rank] = staging.rest(mean)
        self._become(rank, staging.ordinary(mean))
        self._params[rank] = staging.unpack(staging.check(self._params[rank]), mean)
        self._changes[rank].popleft()
        return True

    def _become(self, rank: int, model: Buffers) -> None:
        self._live[rank] = model
        self._versions[rank] += 1
        if self._uses[rank, self._versions[rank]]:
            self._store[rank, self._versions[rank]] = model

    def _release(self, key: Key) -> None:
        self._uses[key] -= 1
        if not self._uses[key]:
            del self._store[key]


def _changes(rank: int, part: Segment) -> Iterator[_Change]:
    """What has changed the live model of a rank, in order: versions that no entry has are those of a consensus."""
    known: dict[int, _Change] = {swap.version: swap for swap in part.swaps}
    known |= {call.version: call for call in part.calls if not call.nonfinite and call.version is not None}
    others: list[_Change] = []
    for number, call in enumerate(entry for entry in part.trainer if isinstance(entry, ConsensusCall)):
        others += [_Mean(number)] if call.nonfinite else [_HandedIn(number), _Mean(number)]
    missing = iter(others)
    begun = {call.began for call in part.calls}
    for version in range(1, max([*known, len(known) + len(others)]) + 1):
        change = known.get(version) or next(missing, None)
        # a step begins with what a call has returned, never with what was handed in
        if change is None or (isinstance(change, _HandedIn) and version in begun):
            raise ValueError(
                f"the ledgers lack version {version} of the model of rank {rank}: pass the ledgers of a whole run"
            )
        yield change


def _dropped(part: Segment) -> dict[int, Call]:
    """The calls whose step was dropped, by their number."""
    return {number: call for number, call in enumerate(part.calls) if call.nonfinite}
