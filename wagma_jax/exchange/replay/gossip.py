"""Executes a recorded run of gossip again, round by round: all workers are at the same round.

What was mixed follows from the schedule. The ledger says which trainers had made a step in a round and which rested,
and after which rounds all took a global mean. Everything is computed by the formulas of the exchange.
"""

import ast
import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from wagma_jax.exchange.formulas import Formulas
from wagma_jax.exchange.isolation import own_settings
from wagma_jax.exchange.pool import Pool
from wagma_jax.exchange.replay.steps import Steps, programs
from wagma_jax.exchange.staging import Staging
from wagma_jax.exchange.storage import Buffers
from wagma_jax.exchange.summing import summed
from wagma_jax.gossip import GossipSchedule
from wagma_jax.ledger import Segment
from wagma_jax.ledger.entries import Call, ConsensusCall, GlobalMean, Mixed, Start
from wagma_jax.protocol.mixing import Dpsgd, Held, Mixing, PushSum, Share, gathered


class GossipRun:
    """The state of a replay.

    Args:
        parts: The same segment of each rank.
        staging: Knows the trees.
        params: What all workers started from.
        steps: The caller's functions.
    """

    FIRST_ALONE = False

    def __init__(self, parts: Sequence[Segment], staging: Staging, params: Any, steps: Steps):
        start = parts[0].start
        self._staging, self._steps, self._first = staging, steps, start.first_round
        self._schedule = GossipSchedule(start.num_workers, ast.literal_eval(start.options["shifts"]))
        self._mixing = _mixing(start)
        self._compute = Formulas(staging.layouts, staging.device, Pool(0))
        self._programs = programs(parts)
        self._mixed = [{entry.round: entry for entry in part.engine if isinstance(entry, Mixed)} for part in parts]
        self._last = max((t for mixed in self._mixed for t in mixed), default=start.first_round - 1)
        self._means = collections.Counter(entry.version for entry in parts[0].engine if isinstance(entry, GlobalMean))
        self._params = [params] * len(parts)
        self._calls = [0] * len(parts)
        leaves = staging.check(params)
        with own_settings():
            first = staging.pack(leaves)
        self._helds = [Held(first, first, np.float32(1))] * len(parts)
        self._on_way: list[Share | None] = [None] * len(parts)  # what each has pushed in the round before

    def execute(self) -> list[Any]:
        """The parameters of every rank in the end.

        Raises:
            ValueError: The ledgers lack a part of the run, or it began with messages on their way.
        """
        for t in range(self._first - 1, self._last + 1):
            if t >= self._first:
                self._round(t)
            for _ in range(self._means[t]):
                self._mean(t)
        return self._params

    def _round(self, t: int) -> None:
        """One round of all."""
        ranks = range(len(self._params))
        if not all(t in mixed for mixed in self._mixed):
            raise ValueError(f"the ledgers lack round {t} of some ranks: pass the ledgers of a whole run")
        calls = [self._next(rank, t) if self._mixed[rank][t].stepped else None for rank in ranks]
        trees = [
            None if calls[rank] is None else self._steps.local(rank, self._calls[rank], self._params[rank])
            for rank in ranks
        ]
        with own_settings():
            stepped = [self._stepped(rank, calls[rank], trees[rank]) for rank in ranks]
            parts = len(self._schedule.sends_to(0, t)) + 1
            pushed = []
            for rank in ranks:
                self._helds[rank], share = self._mixing.push(self._helds[rank], stepped[rank], parts, self._compute)
                pushed.append(share)
            counting = self._on_way if self._mixing.lag else pushed
            for rank in ranks:
                sources = self._mixed[rank][t].sources
                came = [share for source in sources if (share := counting[source]) is not None]
                if len(came) < len(sources):
                    raise ValueError(
                        f"what rank {rank} has mixed in round {t} was pushed before the run went on there: replay the "
                        "part before it"
                    )
                held = self._mixing.mix(self._helds[rank], stepped[rank], came, len(came) + 1, self._compute)
                self._helds[rank] = held._replace(kept=None)
            self._on_way = list(pushed)
            for rank in ranks:
                if trees[rank] is not None:
                    leaves = self._staging.check(trees[rank])
                    self._params[rank] = self._staging.unpack(leaves, self._helds[rank].model)
        for rank in ranks:
            if calls[rank] is not None:
                self._steps.observe(rank, self._calls[rank], self._params[rank])
                self._calls[rank] += 1

    def _mean(self, t: int) -> None:
        """A global mean after round t."""
        ranks = range(len(self._params))
        calls = [self._next(rank, t) for rank in ranks]
        with own_settings():
            brought = [self._stepped(rank, calls[rank], self._params[rank]) for rank in ranks]
            sources = [self._schedule.receives_from(rank, t) if self._mixing.lag else () for rank in ranks]
            came = [[share for source in some if (share := self._on_way[source])] for some in sources]
            parts = [
                self._mixing.contribute(self._helds[rank], brought[rank], came[rank], self._compute) for rank in ranks
            ]
            mean = self._staging.narrow(summed(parts), parts[0], len(parts))
            self._helds = [gathered(mean)._replace(weight=np.float32(1))] * len(parts)
            self._on_way = [None] * len(parts)
            for rank in ranks:
                self._params[rank] = self._staging.unpack(self._staging.check(self._params[rank]), mean)

    def _next(self, rank: int, t: int) -> Call | ConsensusCall:
        """The next call of a trainer, which belongs to round t."""
        program = self._programs[rank]
        entry = program.popleft() if program else None
        if entry is None or (entry.round if isinstance(entry, Call) else entry.version) != t:
            raise ValueError(f"the ledger of rank {rank} lacks a call at round {t}: pass the ledgers of a whole run")
        return entry

    def _stepped(self, rank: int, call: Call | ConsensusCall | None, tree: Any) -> Buffers | None:
        """W', or what stood for it."""
        if call is None:
            return None
        if call.nonfinite:
            return self._staging.copy(self._helds[rank].taken)
        return self._staging.pack(self._staging.check(tree))


def _mixing(start: Start) -> Mixing:
    if start.options.get("mixing") == "Dpsgd":
        return Dpsgd()
    if start.options.get("mixing") == "PushSum":
        return PushSum(int(start.options["lag"]))
    raise ValueError(
        f"cannot replay {start.options.get('mixing')!r}, only Dpsgd and PushSum: replay it by its own code"
    )
