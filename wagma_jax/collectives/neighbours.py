"""Sums over the workers that a worker receives from in a round of a gossip schedule."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from wagma_jax.collectives.axes import AxisName
from wagma_jax.collectives.lockstep import per_worker
from wagma_jax.collectives.lowerings import widen
from wagma_jax.collectives.packing import pack
from wagma_jax.gossip import GossipSchedule


def received_sums(leaves: list[jax.Array], axis_name: AxisName, schedule: GossipSchedule, t: Any) -> list[jax.Array]:
    """The sum of each leaf over the other workers that this one receives from at round t.

    Args:
        leaves: This worker's, which it sends in their own dtypes.
        axis_name: The mapped axis of the workers.
        schedule: Who receives from whom.
        t: int32 scalar, the round; equal on all workers, and traced once for all rounds.

    Returns:
        The sums, in the accumulation dtypes; zeros where there is nobody to receive from.
    """
    workers = range(schedule.num_workers)

    def receive(shifts):
        pairs = [[(i, (i + shift) % schedule.num_workers) for i in workers] for shift in shifts[1:]]

        def total(x):
            received = [widen(lax.ppermute(x, axis_name, permutation)) for permutation in pairs]
            return sum(received[1:], received[0]) if received else jnp.zeros_like(widen(x))

        return lambda buffers: [total(x) for x in buffers]

    def body(vmapped, lockstep, leaves):
        del vmapped
        (t,) = lockstep
        buffers, unpack = pack(leaves)
        branches = [receive(shifts) for shifts in schedule.shifts]
        chosen = branches[0](buffers) if len(branches) == 1 else lax.switch(t % len(branches), branches, buffers)
        return unpack(chosen)

    return per_worker(body, axis_name, (t,), leaves) if leaves else []
