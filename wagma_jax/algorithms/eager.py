"""eager-SGD: gradients averaged over all workers without waiting for late ones (Li et al., PPoPP 2020)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wagma_jax import collectives
from wagma_jax.algorithms.base import Algorithm, Settings, Strategy, averaging
from wagma_jax.algorithms.mixing import averaged, wide, with_averaged
from wagma_jax.averager import GroupAverageState, boolean_per_worker
from wagma_jax.averaging import PolicyFunction, sync_under
from wagma_jax.choices import Start, check_start
from wagma_jax.collectives import AxisName
from wagma_jax.schedule import GroupSchedule


@dataclasses.dataclass(frozen=True)
class EagerOptions:
    """The options that eager-SGD alone has.

    Attributes:
        start: Across processes, whose arrival starts a round. solo: the first. majority: a worker drawn anew for every
            round, so that about half of the workers have arrived on average. In one program lateness is drawn, and
            this has no effect.
        seed: Of the workers that are drawn.
    """

    start: Start = "solo"
    seed: int = 0

    def __post_init__(self):
        check_start(self.start)
        if self.seed < 0:
            raise ValueError(f"seed of eager must not be negative, got {self.seed}: pass for example 0")


class EagerState(NamedTuple):
    """What a worker remembers.

    Attributes:
        average: Of the global means.
        pending: The gradients that came too late for the round before, or zeros, in the dtypes of sums: an array for
            each leaf with a mean in every round. () unless lateness is simulated.
    """

    average: GroupAverageState
    pending: tuple[jax.Array, ...]


statistics_at_sync = sync_under("stats")
"""The policy of eager-SGD. Statistics of a model, unlike gradients, are no increments: sums of them mean nothing."""


def xla(settings: Settings) -> Strategy:
    """A partial allreduce of the gradients in every round, with simulated lateness.

    A late worker takes part with what is in its send buffer: zeros, or gradients that came too late before. Its
    gradient of this round is kept, and added to its next contribution (section 5 of the paper). So with g the gradient
    of a worker and p what is pending there, it contributes ``p + g`` on time and ``p`` if late, and p is 0 or g
    afterwards. All take ``sum / P``. At sync rounds nobody is late, so that nothing stays pending.

    All workers take the same mean, so that their parameters never differ, and need no mean. (Those of processes do.)
    """
    return _strategy(settings, statistics_at_sync)


def _strategy(settings: Settings, policy: PolicyFunction | None) -> Strategy:
    schedule = GroupSchedule(settings.num_workers, settings.num_workers, settings.sync_period)
    means = averaging(schedule, settings, policy=policy)
    lateness = settings.simulate_lateness

    def init(tree):
        pending = [jnp.zeros_like(leaf) for leaf in wide(averaged(tree, policy))] if lateness else []
        return EagerState(means.init(tree), tuple(pending))

    def combine(tree, before, state, late):
        sent, kept, is_late = tree, [], None
        if lateness:
            collectives.axis_size(settings.axis_name)  # raises where it is not bound
            collectives.check_varying(tree, settings.axis_name)  # what is pending varies, and would hide what does not
            is_late = _late(late, schedule, state.average.round)
            grads = wide(averaged(tree, policy))  # gradients may be of another dtype than the parameters
            kept = [jnp.where(is_late, grad, 0) for grad in grads]
            came = [jnp.where(is_late, 0, grad) for grad in grads]
            sent = with_averaged(tree, [old + new for old, new in zip(state.pending, came, strict=True)], policy)
        mean, average, info = means.combine(sent, before, state.average, None)
        if is_late is not None:
            info = info._replace(late=is_late, staleness=is_late.astype(jnp.int32))
        return mean, EagerState(average, tuple(kept)), info

    return Strategy(schedule, init, combine)


def _late(late: Any, schedule: GroupSchedule, t: jax.Array) -> jax.Array:
    """Whether this worker is late at round t: never at sync rounds."""
    if late is None or schedule.num_workers == 1:
        return jnp.zeros_like(t, bool)
    late = boolean_per_worker(late, schedule.num_workers)
    return late if schedule.sync_period is None else late & ((t + 1) % schedule.sync_period != 0)


def mpi(settings: Settings, comm, tree):
    """Partial allreduces of gradients, and the mean of the models after the step of a sync round."""
    from wagma_jax.exchange import EagerExchange

    options = settings.options or EagerOptions()
    return EagerExchange(
        comm,
        tree,
        start=options.start,
        seed=options.seed,
        quorum=settings.quorum,
        sync_period=settings.sync_period,
        clock=settings.clock,
        policy=statistics_at_sync,
        **settings.of_every_exchange(),
    )


def eager_sgd(
    inner: optax.GradientTransformation,
    num_workers: int,
    sync_period: int | None = 10,
    axis_name: AxisName = "data",
    simulate_lateness: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """eager-SGD with any optimizer: the mean of the gradients that are there, and late ones in a later mean.

    Li et al., "Taming Unbalanced Training Workloads in Deep Learning with Partial Collective Operations", PPoPP 2020
    (arXiv:1908.04207). Inside one program nobody is late but by ``late=``, a boolean scalar per worker, for ``update``:
    a late worker's gradient waits for its next contribution. Without it this is :func:`wagma_jax.allreduce_sgd`. Every
    gradient is applied once on all workers, whose parameters stay equal.

    Args:
        inner: The optimizer, which gets the mean gradient.
        num_workers: P.
        sync_period: Rounds between those at which nobody is late, so that no gradient stays pending; None: never.
        axis_name: The mapped axis (or tuple of mesh axes) whose indices are the workers.
        simulate_lateness: Whether ``update`` accepts ``late``. The state then holds a gradient of each worker.

    Raises:
        ValueError: A number is out of range. From ``update``: the axis is not bound or has another size, a gradient is
            replicated over it, or ``late`` is no boolean scalar, or given without ``simulate_lateness=True``.
    """
    settings = Settings(
        num_workers, sync_period=sync_period, axis_name=axis_name, simulate_lateness=bool(simulate_lateness)
    )
    strategy = _strategy(settings, None)

    def update(updates, state, params=None, *, late=None, **extra_args):
        del params, extra_args
        if late is not None and not simulate_lateness:
            raise ValueError("late needs simulate_lateness=True: pass that to eager_sgd(), or leave late out")
        mean, state, _ = strategy.combine(updates, None, state, late)
        return mean, state

    link = optax.GradientTransformationExtraArgs(lambda params: strategy.init(params), update)
    return optax.chain(link, inner)


ALGORITHM = Algorithm(
    "eager",
    "eager-SGD: gradient mean at every step without waiting for late workers",
    "gradients",
    xla,
    mpi,
    EagerOptions,
    drifts=True,
)
