"""Wait-avoiding group model averaging (WAGMA-SGD) for JAX.

Names are looked up when they are first used: what needs MPI is imported only then, and the `wagma` command starts
without JAX.
"""

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wagma_jax.algorithms.allreduce import allreduce_sgd
    from wagma_jax.algorithms.dpsgd import dpsgd
    from wagma_jax.algorithms.eager import eager_sgd
    from wagma_jax.algorithms.local import local_sgd
    from wagma_jax.algorithms.sgp import sgp
    from wagma_jax.averager import GroupAverager, GroupAverageState
    from wagma_jax.averaging import AverageInfo
    from wagma_jax.collectives import consensus, consensus_distance, group_mean
    from wagma_jax.exchange import (
        EagerExchange,
        ExchangeError,
        ExchangeInfo,
        GossipExchange,
        GroupExchange,
        PairwiseExchange,
        PairwiseInfo,
    )
    from wagma_jax.keys import fold_in
    from wagma_jax.schedule import GroupSchedule
    from wagma_jax.transformations import allreduce_gradients, group_average, wagma
    from wagma_jax.workers import for_workers, replicate

__version__ = "0.1.0"

importlib.import_module("wagma_jax.leaving").watch()
if sys.modules.get("jax") is not None:  # and, mostly, has no clients yet
    importlib.import_module("wagma_jax.threads").reserve_one()

_MODULES = {
    "algorithms.allreduce": ("allreduce_sgd",),
    "algorithms.dpsgd": ("dpsgd",),
    "algorithms.eager": ("eager_sgd",),
    "algorithms.local": ("local_sgd",),
    "algorithms.sgp": ("sgp",),
    "averager": ("GroupAverageState", "GroupAverager"),
    "averaging": ("AverageInfo",),
    "collectives": ("consensus", "consensus_distance", "group_mean"),
    "exchange": (
        "EagerExchange",
        "ExchangeError",
        "ExchangeInfo",
        "GossipExchange",
        "GroupExchange",
        "PairwiseExchange",
        "PairwiseInfo",
    ),
    "keys": ("fold_in",),
    "schedule": ("GroupSchedule",),
    "transformations": ("allreduce_gradients", "group_average", "wagma"),
    "workers": ("for_workers", "replicate"),
}

_SUBMODULES = ("algorithms", "bipartite", "collectives", "exchange", "gossip", "ledger", "protocol")

__all__ = [
    "AverageInfo",
    "EagerExchange",
    "ExchangeError",
    "ExchangeInfo",
    "GossipExchange",
    "GroupAverageState",
    "GroupAverager",
    "GroupExchange",
    "GroupSchedule",
    "PairwiseExchange",
    "PairwiseInfo",
    "allreduce_gradients",
    "allreduce_sgd",
    "consensus",
    "consensus_distance",
    "dpsgd",
    "eager_sgd",
    "fold_in",
    "for_workers",
    "group_average",
    "group_mean",
    "local_sgd",
    "replicate",
    "sgp",
    "wagma",
]


def __getattr__(name: str):
    for module, names in _MODULES.items():
        if name in names:
            value = getattr(importlib.import_module(f"wagma_jax.{module}"), name)
            globals()[name] = value
            return value
    if name in _SUBMODULES:
        return importlib.import_module(f"wagma_jax.{name}")
    raise AttributeError(f"module 'wagma_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
