"""Asynchronous averaging in pairs for training scripts (AD-PSGD): one object per process."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mpi4py import MPI

from wagma_jax.averaging import PolicyFunction
from wagma_jax.bipartite import PairSchedule
from wagma_jax.choices import Clock, Graph, OnNonfinite, check_clock, check_on_nonfinite
from wagma_jax.exchange import finite, startup
from wagma_jax.exchange.base import Exchange, HandedIn
from wagma_jax.exchange.calls import guarded
from wagma_jax.exchange.engine import Engine
from wagma_jax.exchange.gathering import Gathering
from wagma_jax.exchange.info import MERGE_NAMES
from wagma_jax.exchange.pairs import PairsEngine
from wagma_jax.exchange.preparation import Prepared
from wagma_jax.exchange.standing import Standing
from wagma_jax.exchange.tallies import check_tally
from wagma_jax.ledger import entries
from wagma_jax.protocol.messages import Tally
from wagma_jax.protocol.pairwise import Pairwise
from wagma_jax.protocol.rules import Merge
from wagma_jax.schedule import integer


class PairwiseInfo(NamedTuple):
    """What one call of ``PairwiseExchange.average`` did.

    Attributes:
        round: The round that the call arrived at; -1 before the first.
        partners: The ranks with whom this worker's model was averaged since the call before, in order.
        nonfinite: Whether ``params`` were not finite, and the step was dropped (``on_nonfinite="skip"``).
        is_sync: False: there are no global means but in ``consensus``.
        late: False: every step counts at once.
        staleness: 0.
        waited_seconds: How long the call waited for others: 0.
        tally: ().
    """

    round: int
    partners: tuple[int, ...] = ()
    nonfinite: bool = False
    is_sync: bool = False
    late: bool = False
    staleness: int = 0
    waited_seconds: float = 0.0
    tally: Tally = ()


class PairwiseExchange(Exchange):
    """Averages this process's model with one other at a time, and waits for nobody (AD-PSGD).

    After each local step call ``average``: it adds the step to the live model, which a background thread averages with
    those of other workers meanwhile, and returns that at once. Even ranks begin such a swap after each step, unless the
    one before is not over; odd ranks answer. Since steps are added as differences, the mean over all workers changes by
    the steps alone, whatever the delays. Without global means nothing but the swaps holds the models together. So take
    ``consensus`` at the end: it is the mean of the live models, with all that was averaged since the last call.

    Lian et al., "Asynchronous Decentralized Parallel Stochastic Gradient Descent", ICML 2018 (arXiv:1710.06952),
    algorithm 1; who averages with whom: ``wagma_jax.bipartite.PairSchedule``.

    Use it as a context manager, as ``GroupExchange``. Each call of ``average`` copies the model twice; at most five
    models exist beside the user's own.

    Args:
        comm: An ``mpi4py`` communicator; None: ``MPI.COMM_WORLD``. It is duplicated, so it may be used for anything.
        params: A pytree of arrays to be averaged, on the CPU or on accelerators. All workers start from rank 0's: see
            ``params``.
        graph: Whom a worker averages with: "exponential": those at distances 1, 3, 5, 9, 17, ...; "ring": its
            neighbours. Each swap has one of them, drawn at random.
        seed: Of the draws.
        clock: "step": a worker's round is the count of its own steps (the paper). "round": swaps carry the newest round
            that a worker knows of, and a step leads there: one that is always slow takes fewer steps.
        policy: The per-leaf policy, as for ``GroupExchange``; "sync" leaves are averaged by ``consensus`` only.
        on_nonfinite: What becomes of a step to a model whose averaged leaves are not all finite. "share": it is added,
            so that soon nobody's are. "skip": it is dropped.
        timeout_seconds: How long ``consensus``, ``meet`` and ``close`` wait after the last progress of another that
            they heard of; and the constructor, as for ``GroupExchange``.
        first_round: The round to begin with, for a run that goes on with equal models and without ``state``.
        state: What ``state()`` returned on this rank, for a run that goes on exactly, as for ``GroupExchange``.
        ledger: The folder of the ledgers, for ``wagma ledger`` and ``replay``; None: nothing is written.

    Attributes:
        schedule: Who averages with whom.
        rank: Of this process.
        info: What the last call of ``average`` did.

    Raises:
        ValueError: On all ranks: an argument is out of range, or arguments or trees differ (names the first leaf).
        TypeError: ``comm`` is no communicator, or a leaf no array (names it).
        TimeoutError: Other ranks have not come; says which.
        ExchangeError: Another rank has failed meanwhile.
        RuntimeError: MPI was initialized without MPI_THREAD_MULTIPLE.
    """

    def __init__(
        self,
        comm: MPI.Intracomm | None,
        params: Any,
        *,
        graph: Graph = "exponential",
        seed: int = 0,
        clock: Clock = "step",
        policy: PolicyFunction | None = None,
        on_nonfinite: OnNonfinite = "share",
        timeout_seconds: float = 600.0,
        first_round: int = 0,
        state: Mapping[str, Any] | None = None,
        ledger: Path | str | None = None,
    ):
        self._begin(
            comm,
            params,
            _Check(graph, seed, clock, on_nonfinite),
            policy=policy,
            timeout_seconds=timeout_seconds,
            first_round=first_round,
            state=state,
            ledger=ledger,
            kept=("swaps",),
        )

    @guarded
    def average(self, params: Any, tally: Sequence[int] = ()) -> tuple[Any, PairwiseInfo]:
        """Adds this worker's step to its live model, and returns that; waits for nobody.

        Args:
            params: W', the pytree after the local step from what the last call returned; built like the constructor's
                ``params``. It may be donated or changed afterwards.
            tally: Integers, which are dropped: there are no sync rounds.

        Returns:
            The live model and what was done. Averaged leaves have the shardings of ``params``, as for
            ``GroupExchange``; others are those of ``params`` themselves.

        Raises:
            ValueError: ``params`` is built differently, or ``tally`` holds something else.
            TypeError: A leaf is no array.
            ExchangeError: The run is over, since another worker or this one's exchange has failed.
            RuntimeError: The exchange is closed.
        """
        entered = time.perf_counter()
        leaves, _ = self._staging.check(params), check_tally(tally)
        self._warn_of_own_start()
        own = self._finite(self._staging.pack(leaves))
        nonfinite = own is None
        ready = time.perf_counter()
        self._stands = None
        self._call.count_on()
        stepped = self._engine.step(own, self._counter)
        self._start, self._leaves = None, []
        del own
        taken = time.perf_counter()
        model = self._staging.completed(stepped.model, stepped.others) if nonfinite else stepped.model
        tree = self._staging.unpack(leaves, model)
        self._counter = self._base = stepped.round
        self.info = PairwiseInfo(stepped.round, stepped.partners, nonfinite)
        if self._recorder is not None:
            self._recorder.add(
                entries.Call(
                    stepped.round, entered, ready, taken, time.perf_counter(), MERGE_NAMES[Merge.OWN], None,
                    stepped.round, {}, nonfinite, stepped.began, stepped.version,
                )
            )  # fmt: skip
        return tree, self.info

    @guarded
    def share(self, tree: Any) -> Any:
        """See ``Exchange.share``: the live model, with what others have averaged into it since the last call."""
        self._check_standstill("share()", "meet() or consensus()")
        leaves, (_, live) = self._staging.check(tree), self._engine.standing()
        return tree if live is None else self._staging.unpack(leaves, live)

    # what the base class needs to know

    def _make_engine(self, gathering: Gathering, arguments: startup.Arguments, prepared: Prepared) -> Engine:
        own, staging, standing = arguments.own, arguments.staging, arguments.standing
        model, published = prepared.model, prepared.published
        finite.check_start(own.on_nonfinite, model, published)
        return PairsEngine(
            Pairwise(own.schedule, gathering.rank, own.clock),
            prepared.wire,
            gathering.comm,
            staging,
            model,
            published,
            standing.round + 1,
            _swaps(standing),
            arguments.recorder,
        )

    def _opened(self, arguments: startup.Arguments) -> None:
        self.schedule: PairSchedule = arguments.own.schedule
        self._on_nonfinite = arguments.own.on_nonfinite
        self.info = PairwiseInfo(arguments.standing.round)

    def _hand_in(self, leaves: list[Any]) -> HandedIn:
        model = self._finite(self._staging.pack(leaves))
        return HandedIn(self._engine.hand_in(model), is_stand_in=model is None)

    def _saved(self, round_: int) -> dict[str, Any]:
        swaps, model = self._engine.standing()
        published = None if model is None else self._staging.to_arrays(model)
        return Standing(round_, round_, round_, published, {"swaps": swaps}).saved()


def _swaps(standing: Standing) -> int:
    """How many swaps a worker has asked for; ValueError if that cannot be."""
    swaps = integer("state['swaps']", standing.kept.get("swaps", 0), "pass it as it was")
    if not 0 <= swaps <= standing.round + 1:
        raise ValueError(f"state must be what PairwiseExchange.state() returned, got {swaps} swaps")
    return swaps


class _Settings(NamedTuple):
    """The settings of averaging in pairs, checked; see ``PairwiseExchange``."""

    schedule: PairSchedule
    clock: Clock
    on_nonfinite: OnNonfinite

    def recorded(self) -> dict[str, Any]:
        """What the first entry of a ledger says of them."""
        return {
            "num_workers": self.schedule.num_workers,
            "group_size": self.schedule.group_size,
            "sync_period": None,
            "rotate": False,
            "quorum": 1,
            "clock": self.clock,
            "on_nonfinite": self.on_nonfinite,
            "method": "pairs",
            "options": {"graph": self.schedule.graph, "seed": str(self.schedule.seed)},
        }


@dataclasses.dataclass(frozen=True)
class _Check:
    """The arguments of ``PairwiseExchange`` that are its own; called with the number of ranks."""

    graph: Graph
    seed: int
    clock: Clock
    on_nonfinite: OnNonfinite

    def __call__(self, num_workers: int) -> _Settings:
        """The settings; ValueError if one is wrong."""
        check_clock(self.clock)
        check_on_nonfinite(self.on_nonfinite)
        return _Settings(PairSchedule(num_workers, self.graph, self.seed), self.clock, self.on_nonfinite)
