"""D-PSGD: each worker mixes its model with those of its neighbours on a ring, and adds its step (Lian et al., 2017)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from wagma_jax.algorithms.base import Algorithm, Settings, Strategy, check_one_program
from wagma_jax.algorithms.mixing import averaged, check, everyone_waits, transformation, wide, with_averaged
from wagma_jax.averaging import divided, without_sync
from wagma_jax.collectives import AxisName, received_sums
from wagma_jax.gossip import ring
from wagma_jax.protocol.mixing import Dpsgd


class DpsgdState(NamedTuple):
    """What a worker remembers.

    Attributes:
        round: int32 scalar, the next round; equal on all workers.
    """

    round: jax.Array
    averages_models = True


def xla(settings: Settings) -> Strategy:
    """Algorithm 1 of the paper: ``x_i <- sum_j W_ij x_j - rate * gradient(x_i)``, W by ``gossip.ring``.

    What is mixed are the models at which the step began. Their exchange does not depend on the gradient, so XLA may
    overlap the two. Neighbours wait for each other: nobody is late.
    """
    check_one_program(settings)
    schedule, policy = ring(settings.num_workers), without_sync(settings.policy)

    def combine(tree, before, state, late):
        del late
        check(tree, before, schedule, settings.axis_name, policy)

        began, stepped = averaged(before, policy), wide(averaged(tree, policy))
        sums = received_sums(began, settings.axis_name, schedule, state.round)
        new = [
            divided(total + old, schedule.group_size) + (after - old)
            for total, old, after in zip(sums, wide(began), stepped, strict=True)
        ]
        return with_averaged(tree, new, policy), DpsgdState(state.round + 1), everyone_waits(state.round)

    return Strategy(schedule, lambda tree: DpsgdState(jnp.full((), settings.first_round, jnp.int32)), combine)


def mixing(options: None) -> Dpsgd:
    """What is pushed."""
    del options
    return Dpsgd()


def mpi(settings: Settings, comm, tree):
    """Each worker's model is sent as soon as it is known, and travels while the gradient is computed."""
    return settings.gossip(comm, tree, ring(comm.size), mixing(settings.options))


def dpsgd(
    inner: optax.GradientTransformation, num_workers: int, axis_name: AxisName = "data"
) -> optax.GradientTransformationExtraArgs:
    """D-PSGD with any local optimizer: mixes the models of ring neighbours, and adds the optimizer's step.

    Lian et al., "Can Decentralized Algorithms Outperform Centralized Algorithms?", NeurIPS 2017 (arXiv:1705.09056),
    algorithm 1. The weights are 1/3, or 1/2 for two workers. Each worker needs ``params`` and a state of its own; where
    it may be used, and how exact it is, is as for :func:`wagma_jax.group_average`.

    Args:
        inner: The local optimizer. Gradients must be this worker's own: no ``pmean`` over the workers before it.
        num_workers: P.
        axis_name: The mapped axis (or tuple of mesh axes) whose indices are the workers.

    Raises:
        ValueError: ``num_workers`` is below 1. From ``update``: without ``params``, the axis is not bound or has
            another size, or a floating leaf is replicated over it.
    """
    return transformation(inner, xla(Settings(num_workers, axis_name=axis_name)))


ALGORITHM = Algorithm(
    "dpsgd",
    "D-PSGD: models mixed with those of ring neighbours at every step",
    "models",
    xla,
    mpi,
    mixing=mixing,
    schedule=lambda settings: ring(settings.num_workers),
)
