"""Allreduce-SGD: the mean gradient of all workers at every step, the synchronous baseline."""

from wagma_jax.algorithms.base import Algorithm, Settings, Strategy, averaging
from wagma_jax.schedule import GroupSchedule


def xla(settings: Settings) -> Strategy:
    """Every round is a global mean, which waits for all, so that nobody is ever late."""
    return averaging(GroupSchedule(settings.num_workers, settings.num_workers, 1), settings)


def mpi(settings: Settings, comm, tree):
    """Every round is a sync round."""
    return settings.exchange(comm, tree, GroupSchedule(comm.size, comm.size, 1))


ALGORITHM = Algorithm("allreduce", "Allreduce-SGD: global gradient mean at every step", "gradients", xla, mpi)
