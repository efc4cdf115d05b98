"""WAGMA-SGD: models averaged in rotating groups, global means every sync_period rounds (Li et al., TPDS 2021)."""

import functools

from wagma_jax.algorithms.base import Algorithm, Settings, Strategy
from wagma_jax.averager import GroupAverager


def xla(settings: Settings) -> Strategy:
    """Group averages of the models; a late worker contributes its previous one."""
    schedule = settings.schedule()
    averager = GroupAverager(schedule, settings.axis_name, simulate_lateness=settings.simulate_lateness)

    def combine(tree, before, state, late):
        del before
        return averager.average(tree, state, late)

    return Strategy(schedule, functools.partial(averager.init, first_round=settings.first_round), combine)


def mpi(settings: Settings, comm, tree):
    """The first member of a group to arrive starts its exchange."""
    return settings.exchange(comm, tree, settings.schedule(), settings.quorum)


ALGORITHM = Algorithm("wagma", "WAGMA-SGD: wait-avoiding group model averaging", "models", xla, mpi)
