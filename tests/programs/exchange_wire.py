"""Bodies for MPI ranks, and a program for six: sums and means of groups of all sizes, with the bits they must have."""

import contextlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from mpi4py import MPI

from wagma_jax.averaging import accumulation_dtype, merge
from wagma_jax.exchange import wire as wire_module
from wagma_jax.exchange.storage import stored
from wagma_jax.exchange.wire import halving, members

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
# in log2 steps, where buffers of more than 4,000 bytes are large
STEPS = {
    4: (
        ([(0, 1, 2), (3,)], ((5, "float32"), (5_003, "bfloat16"))),
        ([(0, 1, 2, 3)], ((2_001, "complex64"), (19, "float32"))),
    ),
    6: (
        ([(0, 1, 2, 3, 5), (4,)], ((5_003, "bfloat16"), (700, "float32"), (4_096, "float32"))),
        ([(0, 1, 2, 3, 4, 5)], ((5, "float32"), (4_321, "float32"))),
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


def check_all(comm, cases):
    world = comm.Dup()
    wire = wire_module.Wire(world, jax.local_devices(backend="cpu")[0])
    for partition, shapes in cases:
        (group,) = (group for group in partition if comm.rank in group)
        check(wire, group, shapes)
    world.Free()


def sums(comm):
    """All partitions of so many ranks."""
    check_all(comm, PARTITIONS[comm.size])


def sums_in_steps(comm):
    """As groups of more than 16 do it."""
    sizes = {"MOST_DIRECT": 2, "LARGE_BYTES": 4_000, "LARGE_BYTES_OF_TWO": 4_000}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(members, **sizes))
        stack.enter_context(mock.patch.multiple(halving, MESSAGE_BYTES=1_000, CHUNK_BYTES=300))
        check_all(comm, STEPS[comm.size])


if __name__ == "__main__":
    sums(MPI.COMM_WORLD)
    sums_in_steps(MPI.COMM_WORLD)
