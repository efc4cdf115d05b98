"""Local SGD: no exchange but a global mean of the models every sync_period rounds (Stich, ICLR 2019)."""

from wagma_jax.averager import GroupAverager
from wagma_jax.schedule import GroupSchedule
from wagma_jax.strategies import Algorithm, Settings, Strategy


def xla(settings: Settings) -> Strategy:
    """Groups of one; everybody waits at the sync rounds, so that nobody is ever late."""
    schedule = GroupSchedule(settings.num_workers, 1, settings.sync_period)
    averager = GroupAverager(schedule, settings.axis_name)
    return Strategy(
        schedule,
        averager.init,
        lambda grads: grads,
        lambda model, state, late: averager.average(model, state),
    )


def mpi(settings: Settings, comm, model):
    """Groups of one, which wait for nobody."""
    return settings.exchange(comm, model, GroupSchedule(comm.size, 1, settings.sync_period))


ALGORITHM = Algorithm("local", "local SGD: global model mean every sync_period rounds", xla, "models", mpi)
