"""Local SGD: no exchange but a global mean of the models every sync_period rounds (Stich, ICLR 2019)."""

from wagma_jax.algorithms.base import Algorithm, Settings, Strategy, averaging
from wagma_jax.schedule import GroupSchedule


def xla(settings: Settings) -> Strategy:
    """Groups of one. All wait for all at the sync rounds, so that nobody is ever late."""
    return averaging(GroupSchedule(settings.num_workers, 1, settings.sync_period), settings)


def mpi(settings: Settings, comm, tree):
    """Groups of one, which wait for nobody."""
    return settings.exchange(comm, tree, GroupSchedule(comm.size, 1, settings.sync_period))


ALGORITHM = Algorithm("local", "local SGD: global model mean every sync_period rounds", "models", xla, mpi)
