"""Wait-avoiding group model averaging (WAGMA-SGD) for JAX."""

from wagma_jax.averager import GroupAverager, GroupAverageState
from wagma_jax.averaging import AverageInfo
from wagma_jax.collectives import consensus, consensus_distance, group_mean
from wagma_jax.schedule import GroupSchedule
from wagma_jax.transformations import allreduce_gradients, group_average, wagma
from wagma_jax.workers import for_workers, replicate

__version__ = "0.1.0"

__all__ = [
    "AverageInfo",
    "GroupAverageState",
    "GroupAverager",
    "GroupSchedule",
    "allreduce_gradients",
    "consensus",
    "consensus_distance",
    "for_workers",
    "group_average",
    "group_mean",
    "replicate",
    "wagma",
]
