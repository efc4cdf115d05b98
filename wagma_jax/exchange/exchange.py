"""Wait-avoiding group model averaging for training scripts: one object per process."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpi4py import MPI

from wagma_jax.averaging import PolicyFunction
from wagma_jax.choices import Clock, LateMerge, OnNonfinite, Weighting
from wagma_jax.exchange import groups, startup, transformation
from wagma_jax.exchange.alone import Alone
from wagma_jax.exchange.base import Exchange, HandedIn
from wagma_jax.exchange.calls import guarded
from wagma_jax.exchange.deferred import Deferred
from wagma_jax.exchange.engine import Engine
from wagma_jax.exchange.gathering import Gathering
from wagma_jax.exchange.info import MERGE_NAMES, ExchangeInfo, describe
from wagma_jax.exchange.late import Late
from wagma_jax.exchange.models import Taken
from wagma_jax.exchange.places import Leaves
from wagma_jax.exchange.preparation import Prepared
from wagma_jax.exchange.schedules import DEFAULT_SYNC_PERIOD
from wagma_jax.exchange.standing import Standing
from wagma_jax.exchange.tallies import check_tally
from wagma_jax.ledger import entries
from wagma_jax.protocol.messages import Tally
from wagma_jax.protocol.rules import Merge, Steps
from wagma_jax.schedule import GroupSchedule


class GroupExchange(Exchange):
    """Averages this process's model with rotating groups of other processes, without waiting for late ones (WAGMA-SGD).

    After each local step call ``average``. The first member of a group to arrive starts the group's exchange. For those
    that are still computing, a background thread contributes the model that they published last. Whoever was late
    merges its own model with the sum, ``(sum + W') / (S + 1)``. Every ``sync_period`` rounds all take the global mean.
    Reference: Li et al., TPDS 2021, algorithm 2.

    Use it as a context manager: an exception inside of it ends the whole run within seconds, and a normal end waits (at
    no cost to the others) until all workers have ended. All processes construct it at the same time with the same
    arguments. At most three buffers of the model's size exist beside the user's own at a time. (Groups of more than two
    and sync rounds need another n-th of it, for n members.)

    Args:
        comm: An ``mpi4py`` communicator; None: ``MPI.COMM_WORLD``. It is duplicated, so it may be used for anything.
        params: A pytree of arrays to be averaged, on the CPU or on accelerators. All workers start from rank 0's: see
            ``params``.
        group_size: S, the largest number of workers in a group. The paper takes S = sqrt(P).
        sync_period: Rounds between global means, which bounds staleness; None: never.
        rotate: Whether groups change from round to round; None: they do.
        schedule: Who averages with whom, in place of the three arguments before it.
        quorum: How many members of a group must arrive before an exchange starts: from 1, for the first, to
            ``group_size``, for all. With all of them no worker is ever late.
        quorum_seconds: How long a member that has arrived waits for the quorum; then the exchange starts without it.
            With a fraction of a step, workers that are nearly as fast are still on time, and nobody waits long for one
            that is really late. None: until the quorum is there.
        clock: "step": every worker takes part in every round with a step of its own (the paper). "round": a worker that
            finds newer rounds complete jumps to them, so that one that is always slow takes fewer steps.
        policy: The per-leaf policy, from a leaf's key path and value to "mean", "keep" or "sync" (mean at sync rounds
            only). None averages floating and complex leaves and keeps all others.
        on_nonfinite: What a worker contributes whose averaged leaves are not all finite. "share": that, so that soon
            nobody's are. "skip": the model that it has published before, which also takes its place in the result. The
            optimizer's state is not touched: guard that by ``optax.apply_if_finite`` inside of the step.
        weighting: What contributions weigh. "equal": all the same. "steps": as many as the calls of ``average`` since
            this worker's model was last contributed (at sync rounds since the last global mean), so that a worker that
            is slow does not draw the others back by contributing an older model again. ``docs/algorithm.md``
            has the rule. It takes memory for one more model.
        late_merge: What a late worker makes of its group's sum. "average": ``(sum + W') / (S + 1)`` (the paper). "add":
            ``sum / S + (W' - W)``, the mean and the worker's last step: what this call was given less what the one
            before has returned. It loses nothing of the step, and takes memory for one more model. Not for trees with
            leaves that have to stay positive, such as Adam's second moments, nor with weights.
        timeout_seconds: How long a call waits for others before it raises TimeoutError; ``consensus``, ``meet`` and
            ``close`` count from the last progress of another that they heard of. The constructor waits as long for all
            to come, and then at least two minutes, in which they compile.
        first_round: The round to begin with, for a run that goes on with equal models and without ``state``.
        state: What ``state()`` returned on this rank, for a run that goes on exactly. ``params`` are then this rank's
            own, as its last call returned them, and no rank's are sent to others. All ranks give a state of the same
            round, or none does. None: a new run.
        ledger: A folder in which each rank writes ``ledger-RANK.jsonl``, some 400 bytes a round, for ``wagma ledger``
            and ``replay``: who waited for whom, how long, and how stale contributions were. None: nothing is written.

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
        group_size: int | None = None,
        sync_period: int | None = DEFAULT_SYNC_PERIOD,
        rotate: bool | None = None,
        schedule: GroupSchedule | None = None,
        quorum: int = 1,
        clock: Clock = "step",
        policy: PolicyFunction | None = None,
        on_nonfinite: OnNonfinite = "share",
        weighting: Weighting = "equal",
        late_merge: LateMerge = "average",
        quorum_seconds: float | None = None,
        timeout_seconds: float = 600.0,
        first_round: int = 0,
        state: Mapping[str, Any] | None = None,
        ledger: Path | str | None = None,
    ):
        check = groups.Check(
            schedule,
            group_size,
            sync_period,
            rotate,
            quorum,
            clock,
            on_nonfinite,
            weighting,
            late_merge,
            quorum_seconds,
        )
        self._begin(
            comm,
            params,
            check,
            policy=policy,
            timeout_seconds=timeout_seconds,
            first_round=first_round,
            state=state,
            ledger=ledger,
            kept=(*groups.SUM, *(Steps._fields if weighting == "steps" else ())),
        )

    @property
    def sync_period(self) -> int | None:
        """Rounds between global means, or None."""
        return self.schedule.sync_period

    def _make_engine(self, gathering: Gathering, arguments: startup.Arguments, prepared: Prepared) -> Engine:
        return groups.make_engine(gathering, arguments, prepared)

    def _warm_up(self, gathering: Gathering, arguments: startup.Arguments, prepared: Prepared) -> None:
        groups.warm_up(gathering, arguments, prepared, self._engine.weighing)

    def _opened(self, arguments: startup.Arguments) -> None:
        standing = arguments.standing
        self.schedule: GroupSchedule = arguments.own.schedule
        self._on_nonfinite = arguments.own.on_nonfinite
        assert self._start is not None
        self._late = Late(self._staging, arguments.own.late_merge == "add", self._start)
        self._late.warm_up()
        # the version of the publication if that is what the last call returned
        self._returned: int | None = standing.version if arguments.published is None else None
        self.info = ExchangeInfo(standing.round, False, False, 0, 0.0, (), (), standing.base)
        self._deferred = Deferred(self._engine, self._staging)
        self._alone = Alone(self._engine, self._staging, self._finite)

    @guarded
    def average(self, params: Any, tally: Sequence[int] = ()) -> tuple[Any, ExchangeInfo]:
        """One round: publishes W' and takes the group's mean, or merges the newest sum if this worker is late.

        Args:
            params: W', the pytree after the local step; built like the constructor's ``params``. It may be donated or
                changed afterwards: what is published, and averaged leaves that are returned, are copies. Leaves that
                the round does not average come back as they are, and so do all with groups of one (local SGD) between
                sync rounds: nothing is sent, and NumPy arrays alone are copied.
            tally: A few integers of at most 64 bits, which do not take part in the averaging: if this call arrives at a
                sync round, their sums over all workers, by position, are in ``info.tally``, the same on all workers
                (shorter ones go on with zeros; a worker that rests adds nothing). At any other round they are dropped:
                hand in again then what has been counted since the last sync round.

        Returns:
            The new pytree, and what was done. Averaged leaves have the shardings of ``params``, and are uncommitted if
            they were, like what was a NumPy array or a Python number. Others are those of ``params`` themselves.

        Raises:
            ValueError: ``params`` is built differently, or ``tally`` holds something else.
            TypeError: A leaf is no array.
            ExchangeError: The run is over, since another worker or this one's exchange has failed.
            TimeoutError: It took longer than ``timeout_seconds``; says which rank was waited for.
            RuntimeError: The exchange is closed.
        """
        entered = time.perf_counter()
        leaves, tally = self._staging.check(params), check_tally(tally)
        self._warn_of_own_start()
        if self._alone.always:
            t = self._alone.passes(leaves, self._counter, lasting=not transformation.in_step())
            if t is not None:
                return params, self._passed(t, entered)
        return self._average(entered, leaves, tally)

    def _average(self, entered: float, leaves: Leaves, tally: Tally) -> tuple[Any, ExchangeInfo]:
        whole = self._packs_whole()
        model = self._finite(self._staging.pack(leaves, whole))
        nonfinite = model is None
        if nonfinite:  # also of the leaves that this round does not average
            stand_in = self._engine.models.outbox.model
            leaves = self._staging.check(self._staging.unpack(leaves, stand_in))
            self._late.returned(stand_in)  # there is no step to add
        ready = time.perf_counter()
        self._stands = self._returned = None
        self._call.count_on()
        published = self._engine.models.outbox.version
        complete = lambda own, leaves=leaves: self._staging.completed(own, self._staging.pack_rest(leaves))
        t = self._engine.arrive(model, self._counter, tally, complete)
        is_sync = self.schedule.is_sync(t)
        self._deferred.note(None if whole or is_sync else leaves)
        self._start, self._leaves = None, leaves
        del model, complete
        newest, taken, waits = self._engine.take(t, self.timeout_seconds)
        woken = time.perf_counter()
        tree = self._merged(taken)
        if is_sync:
            self._base = self._stands = self._returned = t
        elif taken.result is None and self._engine.machine.is_alone(t):
            self._base = t
        if nonfinite:
            self._engine.forget_passed()
        self._counter = t if self._engine.machine.clock == "step" else max(t, newest)
        self.info = describe(self.schedule, self.rank, t, taken, published, woken - ready, self._base, nonfinite)
        self._leaves = []
        if self._recorder is not None:
            source = t if self.info.is_sync else None if taken.result is None else taken.result.round
            leave, merge = time.perf_counter(), MERGE_NAMES[taken.merge]
            self._recorder.add(
                entries.Call(
                    t, entered, ready, woken, leave, merge, source, self._base, dict(waits), nonfinite,
                    weight=taken.weight,
                )
            )  # fmt: skip
        return tree, self.info

    # what the calls that rest need to know

    def _hand_in(self, leaves: list[Any]) -> HandedIn:
        self._rests()
        model = self._finite(self._staging.pack(leaves))
        if model is None:
            return HandedIn(self._staging.copy(self._engine.models.outbox.model), is_stand_in=True)
        return HandedIn(model)

    def _rests(self) -> None:
        self._deferred.publish()
        published = self._alone.publish()
        self._returned = self._returned if published is None else published

    def _rested(self, newest: int, is_mean: bool) -> None:
        if is_mean:
            self._returned = newest
            self._engine.forget_passed()
            self._late.returned(self._engine.models.outbox.model)

    def _saved(self, round_: int) -> dict[str, Any]:
        version, model, steps = self._engine.models.outbox
        published = None if version == self._returned else self._staging.to_arrays(model)
        kept = {} if steps is None else steps._asdict()
        kept |= groups.saved_sum(self._engine.untaken(round_))
        return Standing(round_, self._base, version, published, kept).saved()

    # helpers

    def _passed(self, t: int, entered: float) -> ExchangeInfo:
        """Notes a round in which nothing was exchanged."""
        self._counter = self._base = t
        self._start = self._stands = self._returned = None
        self._leaves = []
        self.info = ExchangeInfo(t, False, False, 0, 0.0, (self.rank,), (t,), t)
        if self._recorder is not None:
            now = time.perf_counter()
            self._recorder.add(entries.Call(t, entered, now, now, now, MERGE_NAMES[Merge.OWN], None, t, {}))
        return self.info

    def _packs_whole(self) -> bool:
        """Whether the next call packs also what only sync rounds average."""
        if not self._staging.has_rest or transformation.in_step():  # whose leaves do not outlive the call
            return True
        # whether a model is finite can only be seen where it is whole
        return self._on_nonfinite == "skip" or self._engine.leads_to_sync(self._counter)

    def _merged(self, taken: Taken) -> Any:
        """The new tree; notes which round's result is in it."""
        if taken.result is None:  # the mean, or W' itself
            self._late.returned(taken.buffers)
            is_mean = taken.merge is None
            return self._staging.unpack(
                self._leaves, taken.buffers if is_mean else self._staging.ordinary(taken.buffers)
            )
        total, size = taken.result.total, taken.result.weight
        own = self._staging.ordinary(taken.buffers)
        if taken.merge == Merge.LATE:
            merged = self._late.merge(total, own, size, taken.weight)
        else:
            merged = self._staging.narrow(total, own, 1 if taken.result.is_mean else size)
        self._late.returned(merged)
        tree = self._staging.unpack(self._leaves, merged, needed=False)
        self._base = taken.result.round
        spent = self._staging.spent(total, merged)
        if spent is not None:
            self._engine.recycle(spent)
        return tree
