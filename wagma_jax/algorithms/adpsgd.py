"""AD-PSGD: workers average in pairs, at any time, and wait for nobody (Lian et al., ICML 2018)."""

import dataclasses
from typing import NoReturn

from wagma_jax.algorithms.base import Algorithm, Settings
from wagma_jax.bipartite import PairSchedule
from wagma_jax.choices import Graph


@dataclasses.dataclass(frozen=True)
class AdpsgdOptions:
    """The options that AD-PSGD alone has.

    Attributes:
        graph: Whom a worker averages with: "exponential": those at distances 1, 3, 5, 9, 17, ...; "ring": those beside
            it.
        seed: Of the draws of partners.
    """

    graph: Graph = "exponential"
    seed: int = 0

    def __post_init__(self):
        PairSchedule(1, self.graph, self.seed)  # raises what is wrong with them


def xla(settings: Settings) -> NoReturn:
    """Refused: in one program all workers step together, so that nothing is asynchronous."""
    del settings
    raise ValueError(
        "adpsgd needs a process for each worker, got one program, in which all workers step together: run it over MPI, "
        "or take dpsgd, which mixes models at every step"
    )


def schedule(settings: Settings) -> PairSchedule:
    """Who averages with whom."""
    options = settings.options or AdpsgdOptions()
    return PairSchedule(settings.num_workers, options.graph, options.seed)


def mpi(settings: Settings, comm, tree):
    """A live model on each worker, to which its trainer adds steps, and which swaps average."""
    from wagma_jax.exchange import PairwiseExchange

    options = settings.options or AdpsgdOptions()
    return PairwiseExchange(
        comm,
        tree,
        graph=options.graph,
        seed=options.seed,
        clock=settings.clock,
        policy=settings.policy,
        on_nonfinite=settings.on_nonfinite,
        **settings.of_every_exchange(),
    )


ALGORITHM = Algorithm(
    "adpsgd",
    "AD-PSGD: models averaged in pairs, asynchronously",
    "models",
    xla,
    mpi,
    options=AdpsgdOptions,
    schedule=schedule,
)
