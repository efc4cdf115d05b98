"""A body for MPI ranks, and a program for six: sums and means of groups of all sizes, with the bits they must have."""

import jax
import jax.numpy as jnp
import numpy as np
from mpi4py import MPI

from wagma_jax.averaging import accumulation_dtype, merge
from wagma_jax.exchange import wire as wire_module
from wagma_jax.exchange.storage import stored

SMALL_FIRST = (5, "float32"), (3, "float32"), (70_001, "float32"), (550_003, "float32"), (140_003, "float16")
LARGE_FIRST = (1_100_001, "bfloat16"), (99, "float32"), (550_003, "float32"), (40_001, "complex64")
PARTITIONS = {
    4: (
        ([(0,), (1, 2, 3)], LARGE_FIRST[::3]),
        ([(0, 2), (1, 3)], SMALL_FIRST[::2]),
        ([(0, 1, 2, 3)], SMALL_FIRST[1:]),
    ),
    6: (
        ([(0,), (1,), (2,), (3,), (4,), (5,)], LARGE_FIRST),
        ([(0, 3), (1, 4), (2, 5)], SMALL_FIRST),
        ([(0, 1, 2), (3, 4, 5)], LARGE_FIRST),
        ([(0, 2, 3, 5), (1, 4)], SMALL_FIRST),
        ([(0, 1, 2, 3, 4, 5)], SMALL_FIRST),
    ),
}
divide = jax.jit(lambda total, size: merge(total, total, size))


def contributions(rank, shapes):
    rng = np.random.default_rng(rank)
    return [jnp.asarray(rng.standard_normal(size), dtype) for size, dtype in shapes]


def check(wire, group, shapes):
    rank = wire.comm.rank
    buffers = tuple(map(stored, contributions(rank, shapes)))
    before = [np.asarray(buffer).copy() for buffer in buffers]
    wire.prepare(group, buffers)
    results = {}
    for turn in range(2):  # some want the sum, the others the mean
        divisor = (1, len(group))[(turn + group.index(rank)) % 2]
        header = (turn, 100_000 + rank)
        versions, results[divisor] = wire.exchange(group, divisor, header, buffers, wire.memory(buffers))
        assert versions == tuple(100_000 + member for member in group), versions
    totals, means = results[1], results[len(group)]
    of_all = zip(*(contributions(member, shapes) for member in group), strict=True)
    for total, mean, own, old, leaves in zip(totals, means, buffers, before, of_all, strict=True):
        expected = wire_module.sum_in_order([leaf.astype(accumulation_dtype(leaf.dtype)) for leaf in leaves])
        np.testing.assert_array_equal(total, expected, strict=True)
        # as a trainer that divides a sum by itself, and as a replay
        np.testing.assert_array_equal(mean, divide(total, len(group)), strict=True)
        np.testing.assert_array_equal(own, old, strict=True)


def sums(comm):
    """All partitions of so many ranks."""
    world = comm.Dup()
    wire = wire_module.Wire(world, jax.local_devices(backend="cpu")[0])
    for partition, shapes in PARTITIONS[comm.size]:
        (group,) = (members for members in partition if comm.rank in members)
        check(wire, group, shapes)
    world.Free()


if __name__ == "__main__":
    sums(MPI.COMM_WORLD)
