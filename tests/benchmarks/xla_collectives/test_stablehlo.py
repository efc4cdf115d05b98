"""Counted bytes and messages against ones worked by hand. Nothing is timed."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from benchmarks.xla_collectives.stablehlo import Cost, count

PAIRS = [[0, 1], [2, 3], [4, 5], [6, 7]]


def counted(function, *shapes, dtype=jnp.float32, platform="tpu"):
    """Costs of a per-device function on 8 abstract devices."""
    mesh = AbstractMesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("data")
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    arguments = [jax.ShapeDtypeStruct((8 * shape[0], *shape[1:]), dtype) for shape in shapes]
    return count(jax.jit(mapped).trace(*arguments).lower(lowering_platforms=(platform,)), 8)


# Each device holds [64] float32, 256 bytes.
COLLECTIVES = {
    "psum": (lambda x: lax.psum(x, "data"), 2 * 7 / 8 * 256, 6),
    "psum, groups of 2": (lambda x: lax.psum(x, "data", axis_index_groups=PAIRS), 256, 2),
    "psum, groups of 3 and 5": (
        lambda x: lax.psum(x, "data", axis_index_groups=[[0, 1, 2], [3, 4, 5, 6, 7]]),
        256 * (3 * 2 * 2 / 3 + 5 * 2 * 4 / 5) / 8,
        2 * 3,
    ),
    "psum_scatter": (lambda x: lax.psum_scatter(x, "data", tiled=True), 7 / 8 * 256, 3),
    "all_gather": (lambda x: lax.all_gather(x, "data", tiled=True), 7 * 256, 3),
    "all_gather, groups of 2": (
        lambda x: lax.all_gather(x, "data", axis_index_groups=PAIRS, tiled=True),
        256,
        1,
    ),
    "all_to_all": (lambda x: lax.all_to_all(x, "data", 0, 0, tiled=True), 7 / 8 * 256, 7),
    "ppermute of all": (lambda x: lax.ppermute(x, "data", [(i, i ^ 1) for i in range(8)]), 256, 1),
    "ppermute of two, one to itself": (lambda x: lax.ppermute(x, "data", [(0, 1), (2, 2)]), 256 / 8, 1),
}


@pytest.mark.parametrize("name", COLLECTIVES)
@pytest.mark.parametrize("platform", ["tpu", "cuda", "cpu"])
def test_count_of_one_collective_by_hand(name, platform):
    if "3 and 5" in name and platform == "tpu":
        pytest.skip("JAX has no unequal groups on TPUs")
    function, sent, messages = COLLECTIVES[name]
    (cost,) = counted(function, (64,), platform=platform)
    assert cost == pytest.approx((sent, messages, 1))


@pytest.mark.parametrize(("dtype", "width"), [("bfloat16", 2), ("float32", 4), ("complex64", 8), ("int8", 1)])
def test_count_of_bytes_per_element(dtype, width):
    (cost,) = counted(lambda x: lax.ppermute(x, "data", [(i, i ^ 1) for i in range(8)]), (6, 5), dtype=dtype)
    assert cost.bytes == 30 * width


def test_messages_are_those_of_the_longest_chain():
    @jax.jit
    def chain(x):  # a call within the program
        return lax.psum(lax.psum(x, "data") * 2, "data")

    assert counted(lambda x, y: (lax.psum(x, "data"), lax.psum(y, "data")), (4,), (4,))[0].messages == 6
    assert counted(lambda x, y: (chain(x), lax.psum(y, "data")), (4,), (4,)) == [Cost(3 * 28, 12, 3)]


def test_count_takes_branches_apart_and_refuses_unknown_counts():
    def switch(x):
        index = x[0].astype(int)
        return lax.switch(index, [lambda x: x, lambda x: lax.psum(x, "data"), lambda x: chain(x)], x)

    def chain(x):
        return lax.psum(lax.psum(x, "data") * 2, "data")

    assert counted(switch, (4,)) == [Cost(0, 0, 0), Cost(28, 6, 1), Cost(56, 12, 2)]
    with pytest.raises(ValueError, match="at most one switch"):
        counted(lambda x: switch(switch(x)), (4,))
    with pytest.raises(ValueError, match="how often"):
        counted(lambda x: lax.fori_loop(0, 3, lambda _, x: lax.psum(x, "data"), x), (4,))
