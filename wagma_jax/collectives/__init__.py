"""Means inside XLA: sums over groups of a mapped axis, in every lowering and under every mapping.

What the rounds mean (lateness, sync, policies) does not belong here.

Lowerings of a group's sum:

- ``psum``: one grouped all-reduce. Under ``pmap`` and ``shard_map(check_vma=False)``.
- ``reduce_scatter``: a grouped ``psum_scatter`` and ``all_gather``. Under ``pmap`` and ``shard_map`` with any
  ``check_vma``; groups of equal size. Not on CPUs of several processes before JAX 0.12, where it gives wrong sums.
- ``ppermute``: recursive doubling between partners. Anywhere; the first hop carries the leaf's own dtype.
- ``matrix``: the rows of each group in an ``all_gather``, summed. Anywhere, and best under ``vmap``, where the gather
  costs nothing; elsewhere every worker receives all models.

All add in float32 or wider and in an order that does not depend on the member, so members get the same bits.

Modules: ``axes`` (the workers' axis), ``packing`` (buffers), ``lowerings`` (a group's sum in each way), ``sums`` (which
way), ``neighbours`` (sums over those a worker receives from), ``lockstep`` (what is equal on all workers), ``means``
(the functions for users).
"""

from wagma_jax.collectives.axes import AxisName, axis_size, canonical_axis, check_varying
from wagma_jax.collectives.lockstep import per_worker
from wagma_jax.collectives.lowerings import LOWERINGS, GroupTables, Lowering, check_lowering, group_tables, widen
from wagma_jax.collectives.means import consensus, consensus_distance, group_mean, mean_of_all
from wagma_jax.collectives.neighbours import received_sums
from wagma_jax.collectives.packing import pack
from wagma_jax.collectives.sums import global_sums, group_sums

__all__ = [
    "LOWERINGS",
    "AxisName",
    "GroupTables",
    "Lowering",
    "axis_size",
    "canonical_axis",
    "check_lowering",
    "check_varying",
    "consensus",
    "consensus_distance",
    "global_sums",
    "group_mean",
    "group_sums",
    "group_tables",
    "mean_of_all",
    "pack",
    "per_worker",
    "received_sums",
    "widen",
]
