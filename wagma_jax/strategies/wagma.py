"""WAGMA-SGD: models averaged in rotating groups, global means every sync_period rounds (Li et al., TPDS 2021)."""

from wagma_jax.averager import GroupAverager
from wagma_jax.strategies import Algorithm, Settings, Strategy


def xla(settings: Settings) -> Strategy:
    """Local gradients, group averages; a late worker contributes its previous model."""
    schedule = settings.schedule()
    averager = GroupAverager(schedule, settings.axis_name, simulate_lateness=settings.simulate_lateness)
    return Strategy(schedule, averager.init, lambda grads: grads, averager.average)


def mpi(settings: Settings, comm, model):
    """Whoever arrives first starts its group's exchange."""
    return settings.exchange(comm, model, settings.schedule(), settings.quorum)


ALGORITHM = Algorithm("wagma", "WAGMA-SGD: wait-avoiding group model averaging", xla, "models", mpi)
