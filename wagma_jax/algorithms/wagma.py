"""WAGMA-SGD: models averaged in rotating groups, global means every sync_period rounds (Li et al., TPDS 2021)."""

from wagma_jax.algorithms.base import Algorithm, Settings, Strategy, averaging


def xla(settings: Settings) -> Strategy:
    """Group averages of the models; a late worker contributes its previous one."""
    return averaging(settings.schedule(), settings, settings.simulate_lateness, settings.policy)


def mpi(settings: Settings, comm, tree):
    """The first member of a group to arrive starts its exchange."""
    return settings.exchange(comm, tree, settings.schedule(), settings.quorum)


ALGORITHM = Algorithm("wagma", "WAGMA-SGD: wait-avoiding group model averaging", "models", xla, mpi, takes_means=True)
