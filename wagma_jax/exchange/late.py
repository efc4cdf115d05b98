"""What a late worker makes of its group's sum: the paper's mean with its own model, or the mean and its last step.

A late worker's step is not in the sum, which holds an older model of it. The paper's merge, ``(sum + W') / (S + 1)``,
keeps a share of 1 / (S + 1) of that step. Adding the step to the mean, ``sum / S + (W' - W)``, keeps all of it, and
with it the mean over the workers. So do the gossip algorithms, which mix models and add the step (Lian et al., NeurIPS
2017, algorithm 1).
"""

import jax

from wagma_jax.averaging import merge_by_adding
from wagma_jax.exchange.staging import Staging
from wagma_jax.exchange.storage import Buffers, stored, sum_dtype, values


class Late:
    """Merges a late worker's model with its group's sum.

    Args:
        staging: Of the worker's models.
        adds: Whether its last step is added to the group's mean, in place of the paper's merge.
        start: The model that the first step begins with, all buffers.
    """

    def __init__(self, staging: Staging, adds: bool, start: Buffers):
        self._staging, self._adds = staging, adds
        self._before: Buffers = ()  # what the step that is next begins with
        if self._adds:
            here = jax.sharding.SingleDeviceSharding(staging.device)
            donated = () if staging.widens else (0,)
            self._add = jax.jit(_added, donate_argnums=donated, in_shardings=here, out_shardings=here)
            self.returned(start)

    def returned(self, buffers: Buffers) -> None:
        """The next step begins with these buffers: all, or those of ordinary rounds."""
        if self._adds:
            ordinary = buffers if len(buffers) < len(self._staging.layouts) else self._staging.ordinary(buffers)
            self._before = self._staging.copy(ordinary)

    def merge(self, totals: Buffers, own: Buffers, size: int, weight: int | None = None) -> Buffers:
        """The model of a late worker; ``totals`` are donated.

        Args:
            totals: Sums of the buffers of ordinary rounds.
            own: W', of the same.
            size: S, the number of contributions, or their weight.
            weight: See ``Staging.merge_late``.
        """
        if self._adds:
            return self._add(totals, own, self._before, size)
        return self._staging.merge_late(totals, own, size, weight)

    def warm_up(self) -> None:
        """Compiles what a late round needs."""
        if self._adds:
            totals = tuple(buffer.astype(sum_dtype(buffer.dtype)) for buffer in self._staging.copy(self._before))
            self._add(totals, self._before, self._before, 2)


def _added(totals: Buffers, own: Buffers, before: Buffers, size: jax.Array) -> Buffers:
    return tuple(
        stored(merge_by_adding(total, values(mine), values(begun), size))
        for total, mine, begun in zip(totals, own, before, strict=True)
    )
