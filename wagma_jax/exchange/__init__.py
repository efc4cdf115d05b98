"""Averaging across processes over MPI. Needs the extra ``mpi``."""

try:
    from wagma_jax import announcing, lineage
    from wagma_jax.exchange import children

    children.prepare()
    with announcing.announced(
        f"waiting for all of {lineage.ranks() or 'the'} ranks, as MPI says, to join; what is to run alone must be "
        "started without mpirun or srun, or by a rank that has joined",
        patience=5,  # MPI itself takes a while with many ranks
    ):
        from mpi4py import MPI
    import mpi4jax  # noqa: F401

    children.joined()
except ImportError as error:
    raise ImportError(
        "averaging across processes needs mpi4py and mpi4jax, which the extra 'mpi' brings: "
        "pip install 'wagma_jax[mpi]'"
    ) from error

from wagma_jax.exchange.base import Exchange
from wagma_jax.exchange.eager import EagerExchange
from wagma_jax.exchange.errors import ExchangeError
from wagma_jax.exchange.exchange import GroupExchange
from wagma_jax.exchange.gossip_exchange import GossipExchange
from wagma_jax.exchange.info import ExchangeInfo
from wagma_jax.exchange.pairwise import PairwiseExchange, PairwiseInfo

__all__ = [
    "MPI",
    "EagerExchange",
    "Exchange",
    "ExchangeError",
    "ExchangeInfo",
    "GossipExchange",
    "GroupExchange",
    "PairwiseExchange",
    "PairwiseInfo",
]
