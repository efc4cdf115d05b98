"""Allreduce-SGD: the mean gradient of all workers at every step, the synchronous baseline."""

import optax

from wagma_jax.algorithms.base import Algorithm, Settings, Strategy, averaging
from wagma_jax.collectives import AxisName
from wagma_jax.schedule import GroupSchedule
from wagma_jax.transformations import allreduce_gradients


def xla(settings: Settings) -> Strategy:
    """Every round is a global mean, which waits for all, so that nobody is ever late."""
    schedule = GroupSchedule(settings.num_workers, settings.num_workers, 1)
    return averaging(schedule, settings, policy=settings.policy)


def mpi(settings: Settings, comm, tree):
    """Every round is a sync round."""
    return settings.exchange(comm, tree, GroupSchedule(comm.size, comm.size, 1))


def allreduce_sgd(
    inner: optax.GradientTransformation, axis_name: AxisName = "data"
) -> optax.GradientTransformationExtraArgs:
    """Allreduce-SGD with any optimizer: ``optax.chain(allreduce_gradients(axis_name), inner)``.

    ``late=`` for ``update`` changes nothing: everybody waits for who is late.

    Args:
        inner: The optimizer, which gets the mean gradient. Parameters stay equal on all workers.
        axis_name: The mapped axis (or tuple of mesh axes) whose indices are the workers.

    Raises:
        ValueError: From ``update``: as :func:`wagma_jax.allreduce_gradients`.
    """
    return optax.chain(allreduce_gradients(axis_name), inner)


ALGORITHM = Algorithm("allreduce", "Allreduce-SGD: global gradient mean at every step", "gradients", xla, mpi)
