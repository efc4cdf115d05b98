"""Averaging across processes over MPI. Needs the extra ``mpi``."""

try:
    from wagma_jax.exchange import children

    children.prepare()
    import mpi4jax  # noqa: F401
    from mpi4py import MPI

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
