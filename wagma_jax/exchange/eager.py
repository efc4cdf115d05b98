"""eager-SGD for training scripts: gradients averaged over all processes without waiting for late ones."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optax
from mpi4py import MPI

from wagma_jax.averaging import PolicyFunction
from wagma_jax.choices import Clock, Start
from wagma_jax.exchange import partial, startup, transformation
from wagma_jax.exchange.base import Exchange, HandedIn
from wagma_jax.exchange.calls import guarded
from wagma_jax.exchange.engine import Engine
from wagma_jax.exchange.gathering import Gathering
from wagma_jax.exchange.increments import Added
from wagma_jax.exchange.info import ExchangeInfo, describe
from wagma_jax.exchange.preparation import Prepared
from wagma_jax.exchange.standing import Standing
from wagma_jax.exchange.tallies import check_tally
from wagma_jax.ledger import entries
from wagma_jax.schedule import GroupSchedule

KEPT = ("pending", "untaken")  # what is in a state, beside what is in everyone's


class EagerExchange(Exchange):
    """Averages gradients over all processes without waiting for late ones (eager-SGD).

    Before each optimizer's step call ``average`` with the gradients. A round adds up what all workers have handed in
    and not contributed before, and divides by their number; a worker that has nothing contributes zeros. It starts with
    the first arrival ("solo"), or that of a worker which is drawn for the round ("majority": about half of the workers
    have arrived then, on average). A gradient that comes too late is added to the next contribution. Every gradient is
    contributed once, and every result is taken once by every worker.
    Reference: Li et al., "Taming Unbalanced Training Workloads in Deep Learning with Partial Collective Operations",
    PPoPP 2020 (arXiv:1908.04207). It differs in one point: there a result that a slow worker has not taken is
    overwritten by the next; here ``average`` returns the sum of all that this worker has not taken yet.

    Every ``sync_period`` rounds all wait for all, so that nothing stays pending. Results are the same everywhere, but
    workers take them in different steps, and optimizers with a state (momentum) make different steps of them. So after
    the step of such a round take ``consensus(params)``, on all ranks:

        with wagma.EagerExchange(comm, params) as exchange:
            params = exchange.params
            while exchange.round + 1 < num_rounds:
                grads, info = exchange.average(gradients(params, next(batches)))
                params, opt_state = step(params, opt_state, grads)
                if info.is_sync:
                    params = exchange.consensus(params)

    It is a context manager, as :class:`GroupExchange` is. At most five buffers of the gradients' size exist beside the
    user's own at a time, two as long as nobody is late. (Another n-th of it is needed for n > 2 workers.)

    Args:
        comm: An ``mpi4py`` communicator; None: ``MPI.COMM_WORLD``.
        params: The parameters, a pytree of arrays; gradients are trees like it. All workers start from rank 0's.
        start: "solo" or "majority".
        seed: Of the workers that are drawn.
        quorum: With "solo", how many workers must arrive before a round starts: from 1, for the first, to all, with
            whom this is Allreduce-SGD.
        sync_period: Rounds between those at which all wait for all; None: never.
        clock: "step": every worker hands in a gradient for every round; one that lags behind finds several results at
            once, and then nothing new for some calls. "round": a worker that finds newer rounds complete jumps to them.
        policy: The per-leaf policy: "mean" for increments; "sync" for what has a mean at sync rounds only, such as a
            model's statistics; "keep". None: "mean" for floating and complex leaves, and "keep" for all others.
        timeout_seconds: As for ``GroupExchange``, like all further arguments.
        first_round: The round to begin with.
        state: What ``state()`` returned on this rank.
        ledger: A folder in which each rank writes what happened.

    Attributes:
        schedule: One group of all, and the sync rounds.
        rank: Of this process.
        info: What the last call of ``average`` did. ``late`` is whether nothing was contributed to its round that was
            handed in for it, and ``contributed_rounds`` the newest that each worker had contributed then.

    Raises:
        ValueError, TypeError, TimeoutError, ExchangeError, RuntimeError: As ``GroupExchange``.
    """

    def __init__(
        self,
        comm: MPI.Intracomm | None,
        params: Any,
        *,
        start: Start = "solo",
        seed: int = 0,
        quorum: int = 1,
        sync_period: int | None = 10,
        clock: Clock = "step",
        policy: PolicyFunction | None = None,
        timeout_seconds: float = 600.0,
        first_round: int = 0,
        state: Mapping[str, Any] | None = None,
        ledger: Path | str | None = None,
    ):
        self._begin(
            comm,
            params,
            partial.Check(start, seed, quorum, sync_period, clock),
            policy=policy,
            timeout_seconds=timeout_seconds,
            first_round=first_round,
            state=state,
            ledger=ledger,
            kept=KEPT,
        )

    @property
    def sync_period(self) -> int | None:
        """Rounds between those at which all wait for all, or None."""
        return self.schedule.sync_period

    @guarded
    def average(self, params: Any, tally: Sequence[int] = ()) -> tuple[Any, ExchangeInfo]:
        """One round: hands gradients in, and takes the mean gradients of all rounds whose results it has not taken.

        Args:
            params: The gradients, a tree like the constructor's ``params``, of the same dtypes. They may be donated or
                changed afterwards.
            tally: As for ``GroupExchange.average``.

        Returns:
            The sum of the results, zeros if there is nothing new, and what was done. Leaves with the policy "sync" are
            those that were passed, and their mean after a sync round.

        Raises:
            ValueError, TypeError, ExchangeError, TimeoutError, RuntimeError: As ``GroupExchange.average``.
        """
        entered = time.perf_counter()
        leaves, tally = self._staging.check(params), check_tally(tally)
        self._warn_of_own_start()
        handed = self._staging.pack(leaves)
        ready = time.perf_counter()
        self._stands = None
        self._call.count_on()
        contributed = self._engine.models.pending.version
        t = self._engine.arrive(handed, self._counter, tally)
        self._start, self._leaves = None, leaves
        del handed
        newest, added, waits = self._engine.take(t, self.timeout_seconds)
        woken = time.perf_counter()
        tree = self._taken(added)
        if self.schedule.is_sync(t):
            self._stands = t
        source = None if added.total is None else added.newest
        self._base = self._base if source is None else source
        self._counter = t if self._engine.machine.clock == "step" else max(t, newest)
        self.info = describe(self.schedule, self.rank, t, added, contributed, woken - ready, self._base, False)
        self._leaves = []
        if self._recorder is not None:
            leave = time.perf_counter()
            self._recorder.add(entries.Call(t, entered, ready, woken, leave, "added", source, self._base, dict(waits)))
        return tree, self.info

    def consensus(self, params: Any) -> Any:
        """The mean of all workers' models; their engines go on serving workers that still train.

        All ranks call it equally often. When it returns all workers stand at the same ``round``. Gradients that are
        pending then are contributed later, and results that were not taken are taken later.

        Args:
            params: The model: a tree like the constructor's. Leaves with the policy "keep" come back as they are.

        Returns:
            The mean, equal on all ranks bit for bit.

        Raises:
            ExchangeError, TimeoutError, RuntimeError, ValueError: As ``average``.
        """
        return super().consensus(params)

    def as_transformation(self, every: int = 1) -> optax.GradientTransformationExtraArgs:
        """``average`` as the first link of an optax chain, for a jitted step: ``optax.chain(this, inner)``.

        ``info`` is there when the step is over: take ``consensus`` after it where ``info.is_sync``. To accumulate
        gradients, put them into one update before it: ``every`` is 1.
        """
        if every != 1:
            raise ValueError(
                f"every must be 1, got {every!r}: gradients are averaged before the optimizer sees them, so accumulate "
                "them in the step"
            )
        self._in_steps = True
        return transformation.as_first_link(lambda updates: self.average(updates)[0], self._staging)

    # what the base class asks for

    def _make_engine(self, gathering: Gathering, arguments: startup.Arguments, prepared: Prepared) -> Engine:
        return partial.make_engine(gathering, arguments, prepared)

    def _warm_up(self, gathering: Gathering, arguments: startup.Arguments, prepared: Prepared) -> None:
        partial.warm_up(gathering, arguments, prepared, self._engine.models)

    def _opened(self, arguments: startup.Arguments) -> None:
        own, num_workers = arguments.own, self._gathering.comm.size
        self.schedule = GroupSchedule(num_workers, num_workers, own.sync_period)
        standing = arguments.standing
        self.info = ExchangeInfo(standing.round, False, False, 0, 0.0, (), (), standing.base)

    def _hand_in(self, leaves: list[Any]) -> HandedIn:
        return HandedIn(self._staging.pack(leaves))

    def _saved(self, round_: int) -> dict[str, Any]:
        store = self._engine.models
        return Standing(round_, self._base, store.pending.version, None, store.saved()).saved()

    def _taken(self, added: Added) -> Any:
        """The tree that ``average`` returns."""
        staging, rest = self._staging, added.rest
        if added.total is None:
            ordinary = staging.copy(self._engine.models.zeros())
        else:
            like = self._engine.models.zeros() if staging.widens else added.total
            ordinary = staging.narrow(added.total, like)
        buffers = ordinary if rest is None else staging.completed(ordinary, staging.copy(rest))
        tree = staging.unpack(self._leaves, buffers, needed=False)
        spent = None if added.total is None else staging.spent(added.total, ordinary)
        if spent is not None:
            self._engine.recycle(spent)
        return tree
