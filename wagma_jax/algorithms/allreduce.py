"""Allreduce-SGD: the mean gradient of all workers at every step, the synchronous baseline."""

import functools

from wagma_jax.algorithms.base import Algorithm, Settings, Strategy
from wagma_jax.averager import GroupAverager
from wagma_jax.schedule import GroupSchedule


def xla(settings: Settings) -> Strategy:
    """Every round is a global mean, which waits for all, so that nobody is ever late."""
    schedule = GroupSchedule(settings.num_workers, settings.num_workers, 1)
    averager = GroupAverager(schedule, settings.axis_name)

    def combine(tree, before, state, late):
        del before, late
        return averager.average(tree, state)

    return Strategy(schedule, functools.partial(averager.init, first_round=settings.first_round), combine)


def mpi(settings: Settings, comm, tree):
    """Every round is a sync round."""
    return settings.exchange(comm, tree, GroupSchedule(comm.size, comm.size, 1))


ALGORITHM = Algorithm("allreduce", "Allreduce-SGD: global gradient mean at every step", "gradients", xla, mpi)
