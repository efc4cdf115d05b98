"""Contributions that count for the steps of their workers: each member of a group scales its own before the sum."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from wagma_jax.exchange.pool import Signature, signature
from wagma_jax.exchange.storage import Buffers, stored, sum_dtype, values, widened
from wagma_jax.exchange.wire import Wire
from wagma_jax.protocol.rules import group_weights, mean_weights


class Weighing:
    """Weighs the contributions of one worker.

    A contribution of weight 1 goes on as it is. Others are scaled into memory that is kept for the next time: it costs
    as much as a model.

    Args:
        wire: Tells the members of a group each other's steps.
        device: The CPU device of the buffers.
    """

    def __init__(self, wire: Wire, device: Any):
        self._wire = wire
        here = jax.sharding.SingleDeviceSharding(device)
        jit = functools.partial(jax.jit, in_shardings=here, out_shardings=here)
        self._scale = jit(scaled)
        self._scale_into = jit(_scaled_into, donate_argnums=2, keep_unused=True)
        self._memory: dict[Signature, Buffers] = {}

    def __call__(
        self, group: tuple[int, ...], steps: int | None, buffers: Buffers, is_sync: bool
    ) -> tuple[tuple[int, ...], Buffers]:
        """The weights of a group's contributions, and this worker's times its weight. All members call it.

        Args:
            group: Ascending ranks, this one among them.
            steps: For which this worker's contribution counts.
            buffers: The contribution, left as it is.
            is_sync: Whether it is the exchange of a sync round.

        Returns:
            The weight of each member, and what is to be summed: it is valid until the next call.
        """
        assert steps is not None, "the steps are counted"
        of_all = self._wire.gather(group, steps)
        weights = mean_weights(of_all) if is_sync else group_weights(of_all)
        return weights, self.scaled(buffers, weights[group.index(self._wire.comm.rank)])

    def scaled(self, buffers: Buffers, weight: int) -> Buffers:
        """``buffers`` times a weight; zeros for 0, whatever they hold."""
        if weight == 1:
            return buffers
        kind = signature(buffers)
        memory = self._memory.pop(kind, None)
        times = self._scale(buffers, weight) if memory is None else self._scale_into(buffers, weight, memory)
        self._memory[kind] = jax.block_until_ready(times)
        return times

    def warm_up(self, buffers: Buffers) -> None:
        """Compiles everything beforehand, for such buffers, and allocates the memory."""
        for _ in range(2):
            self.scaled(buffers, 2)

    def release(self) -> None:
        """Frees the memory that is kept."""
        self._memory.clear()


def scaled(buffers: Buffers, weight: jax.Array) -> Buffers:
    """Buffers times an integer, which is rounded to their dtypes; zeros for 0, even of what is not finite."""

    def times(buffer: jax.Array) -> jax.Array:
        wide = widened(buffer, sum_dtype(buffer.dtype))
        product = jnp.where(weight == 0, 0, wide * weight.astype(jnp.finfo(wide.dtype).dtype))
        return stored(product.astype(values(buffer).dtype))

    return tuple(map(times, buffers))


def _scaled_into(buffers: Buffers, weight: jax.Array, memory: Buffers) -> Buffers:
    del memory
    return scaled(buffers, weight)
