"""Gossip for training scripts: every process mixes its model with those of its neighbours in each round."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from mpi4py import MPI

from wagma_jax.averaging import PolicyFunction, without_sync
from wagma_jax.choices import OnNonfinite, check_on_nonfinite
from wagma_jax.exchange import finite, startup, transformation
from wagma_jax.exchange.base import Exchange, HandedIn
from wagma_jax.exchange.calls import guarded
from wagma_jax.exchange.engine import Engine
from wagma_jax.exchange.gathering import Gathering
from wagma_jax.exchange.gossip_engine import GossipEngine, Holding
from wagma_jax.exchange.info import ExchangeInfo
from wagma_jax.exchange.preparation import Prepared
from wagma_jax.exchange.staging import Staging
from wagma_jax.exchange.standing import Standing
from wagma_jax.exchange.storage import storage_dtype, sum_dtype
from wagma_jax.exchange.tallies import check_tally
from wagma_jax.gossip import GossipSchedule
from wagma_jax.ledger import entries
from wagma_jax.protocol.gossip import Gossip
from wagma_jax.protocol.mixing import Held, Mixing, Share


class GossipSettings(NamedTuple):
    """The settings of gossip alone, checked.

    Attributes:
        schedule: Who sends to whom.
        mixing: What is pushed and how it is mixed.
        on_nonfinite: What is done with a model that is not finite.
    """

    schedule: GossipSchedule
    mixing: Mixing
    on_nonfinite: OnNonfinite

    def recorded(self) -> dict[str, Any]:
        """What the first entry of a ledger says of them."""
        size = self.schedule.group_size
        return {
            "num_workers": self.schedule.num_workers,
            "group_size": size,
            "sync_period": None,
            "rotate": False,
            "quorum": size,
            "clock": "step",
            "on_nonfinite": self.on_nonfinite,
            "method": "gossip",
            "options": {
                "mixing": type(self.mixing).__name__, "lag": str(self.mixing.lag), "shifts": repr(self.schedule.shifts)
            },
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Check:
    """The arguments of ``GossipExchange`` that are its own; called with the number of ranks."""

    schedule: GossipSchedule
    mixing: Mixing
    on_nonfinite: OnNonfinite

    def __call__(self, num_workers: int) -> GossipSettings:
        """The settings; ValueError or TypeError if one is wrong."""
        if not isinstance(self.schedule, GossipSchedule):
            raise TypeError(
                f"schedule must be a GossipSchedule, got {self.schedule!r}: pass for example ring(comm.size)"
            )
        if self.schedule.num_workers != num_workers:
            raise ValueError(
                f"the schedule is for num_workers={self.schedule.num_workers}, but the communicator has {num_workers} "
                "ranks: pass for example ring(comm.size)"
            )
        check_on_nonfinite(self.on_nonfinite)
        return GossipSettings(self.schedule, self.mixing, self.on_nonfinite)


class GossipExchange(Exchange):
    """Mixes this process's model with those of its neighbours in every round (D-PSGD, SGP).

    After each local step call ``average``. A background thread sends models and receives those of others while the next
    step is computed, as far as the algorithm allows: all waits are for what a round needs of its neighbours. There are
    no global means but ``consensus``. Workers that rest in a call take part in the others' rounds without a step.

    Use it as a context manager, as ``GroupExchange``, whose arguments not named here it shares. Beside the user's own
    there are at a time a buffer of the model's size for what is held, one for each neighbour in a round, and one or two
    for what is on its way.

    Args:
        comm: An ``mpi4py`` communicator; None: ``MPI.COMM_WORLD``.
        params: A pytree of arrays to be mixed. All workers start from rank 0's: see ``params``.
        schedule: Who sends to whom: ``gossip.ring(comm.size)``, ``gossip.exponential(comm.size)``, or another one.
        mixing: What is sent and how it is mixed: ``mixing.Dpsgd()`` or ``mixing.PushSum(lag)``.
        policy: The per-leaf policy, from a leaf's key path and value to "mean" (mixed) or "keep". None mixes floating
            and complex leaves.
        on_nonfinite: What becomes of a model that is not finite. "share": it is mixed with the others, so that soon
            nobody's are. "skip": its step is left out.
        timeout_seconds: How long a call waits for others.
        first_round: The round to begin with, for a run that goes on with equal models and without ``state``.
        state: What ``state()`` returned on this rank, for a run that goes on exactly.
        ledger: A folder for the ledgers, or None.

    Attributes:
        schedule: Who sends to whom.
        rank: Of this process.
        info: What the last call of ``average`` did.

    Raises:
        ValueError: On all ranks: an argument is out of range, or arguments or trees differ (names the first leaf).
        TypeError: ``comm`` is no communicator, ``schedule`` no schedule, or a leaf no array (names it).
        TimeoutError, ExchangeError, RuntimeError: As ``GroupExchange``.
    """

    def __init__(
        self,
        comm: MPI.Intracomm | None,
        params: Any,
        schedule: GossipSchedule,
        mixing: Mixing,
        *,
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
            _Check(schedule, mixing, on_nonfinite),
            policy=without_sync(policy),
            timeout_seconds=timeout_seconds,
            first_round=first_round,
            state=state,
            ledger=ledger,
            kept=("weight", "came"),
        )

    def _make_engine(self, gathering: Gathering, arguments: startup.Arguments, prepared: Prepared) -> Engine:
        own, staging, standing = arguments.own, arguments.staging, arguments.standing
        finite.check_start(own.on_nonfinite, prepared.model)
        weight = np.float32(standing.kept.get("weight", 1))
        if not 0 < weight <= 2:
            raise ValueError(f"state must be what GossipExchange.state() returned, got the weight {weight}")
        sources = own.schedule.receives_from(gathering.rank, standing.round) if own.mixing.lag else ()
        came = _restored(standing.kept.get("came"), len(sources), staging)
        return GossipEngine(
            Gossip(own.schedule, gathering.rank, own.mixing.early, own.mixing.lag),
            own.mixing,
            prepared.wire,
            gathering.comm,
            staging,
            Holding(Held(prepared.published, prepared.model, weight), came),
            standing.round + 1,
            arguments.recorder,
        )

    def _opened(self, arguments: startup.Arguments) -> None:
        self.schedule: GossipSchedule = arguments.own.schedule
        self._lag: int = arguments.own.mixing.lag
        self._on_nonfinite = arguments.own.on_nonfinite
        self.info = ExchangeInfo(arguments.standing.round, False, False, 0, 0.0, (), (), self._base)

    @guarded
    def average(self, params: Any, tally: Sequence[int] = ()) -> tuple[Any, ExchangeInfo]:
        """One round: mixes the models, and adds this worker's step.

        Args:
            params: W', the pytree after the local step, which counts as the difference to what the last call returned;
                built like the constructor's ``params``. It may be donated or changed afterwards. The only worker of a
                run gets ``params`` itself back.
            tally: Integers for sync rounds, of which gossip has none: they are dropped.

        Returns:
            The new pytree, and what was done: ``group`` are this worker and those that it has received from, and
            ``contributed_rounds`` of which rounds. Averaged leaves have the shardings of ``params``.

        Raises:
            ValueError, TypeError, ExchangeError, TimeoutError, RuntimeError: As ``GroupExchange.average``.
        """
        entered = time.perf_counter()
        leaves = self._staging.check(params)
        check_tally(tally)
        self._warn_of_own_start()
        self._stands = None
        alone = self.schedule.num_workers == 1 and self._on_nonfinite == "share"  # else what is held stands in
        if alone and not transformation.in_step():
            t = self._engine.pass_alone(self._counter)
            return params, self._done(t, (), (entered, entered, entered), {}, nonfinite=False)
        model = self._finite(self._staging.pack(leaves))
        nonfinite = model is None
        ready = time.perf_counter()
        self._call.count_on()
        t = self._engine.arrive(model, self._counter)
        self._start = None
        del model
        mixed, sources, waits = self._engine.take(t, self.timeout_seconds)
        woken = time.perf_counter()
        tree = self._staging.unpack(leaves, mixed)
        return tree, self._done(t, sources, (entered, ready, woken), dict(waits), nonfinite)

    @guarded
    def share(self, tree: Any) -> Any:
        """See ``Exchange.share``: the model, its push-sum weight, and what is on its way, as one."""
        self._check_standstill("share()", "meet() or consensus()")
        leaves = self._staging.check(tree)
        return self._staging.unpack(leaves, self._engine.share(self._staging.pack(leaves)))

    # what the calls that rest need to know

    def _hand_in(self, leaves: list[Any]) -> HandedIn:
        model = self._finite(self._staging.pack(leaves))
        if model is None:
            return HandedIn(self._staging.copy(self._engine.held.taken), is_stand_in=True)
        return HandedIn(model)

    def _saved(self, round_: int) -> dict[str, Any]:
        held, came = self._engine.holding()
        same = held.model is held.taken
        kept: dict[str, Any] = {} if held.weight == 1 else {"weight": float(held.weight)}
        if came:
            kept["came"] = [np.array(part) for share in came for part in (share.weight, *share.model)]
        return Standing(round_, self._base, round_, None if same else self._staging.to_arrays(held.model), kept).saved()

    # helpers

    def _done(
        self,
        t: int,
        sources: tuple[int, ...],
        moments: tuple[float, float, float],
        waits: dict[int, float],
        nonfinite: bool,
    ) -> ExchangeInfo:
        """Notes a round; the moments are those at which it was entered, W' was ready, and the result was there."""
        self._start, self._counter, self._base = None, t, t
        self._leaves = []
        rounds = dict.fromkeys(sources, t - self._lag) | {self.rank: t}
        group = tuple(sorted(rounds))
        versions = tuple(rounds[rank] for rank in group)
        waited = moments[2] - moments[1]
        self.info = ExchangeInfo(t, False, False, 0, waited, group, versions, t, (), nonfinite)
        if self._recorder is not None:
            leave = time.perf_counter()
            self._recorder.add(entries.Call(t, *moments, leave, "mixed", t, t, waits, nonfinite))
        return self.info


def _restored(came: Sequence[Any] | None, sources: int, staging: Staging) -> tuple[Share, ...]:
    """What had come, as ``GossipExchange._saved`` has written it.

    Raises:
        ValueError: It is something else.
    """
    if came is None:
        return ()
    expected = [(), *((layout.size,) for layout in staging.layouts)]
    dtypes = [np.float32, *(sum_dtype(storage_dtype(layout.dtype)) for layout in staging.layouts)]
    arrays = list(map(np.asarray, came))
    if [array.shape for array in arrays] != expected * sources or [a.dtype for a in arrays] != dtypes * sources:
        raise ValueError("state['came'] does not fit to params: pass what state() returned on this rank, as it was")
    step = len(expected)
    shares = [arrays[i : i + step] for i in range(0, len(arrays), step)]
    return tuple(
        Share(jax.block_until_ready(tuple(jnp.array(part, copy=True) for part in parts)), weight[()])
        for weight, *parts in shares
    )
