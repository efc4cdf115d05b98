"""Between the user's tree and the buffers: what comes back, and where."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)

from wagma_jax.exchange import flattening
from wagma_jax.exchange import staging as staging_module
from wagma_jax.exchange.layouts import MOST_ELEMENTS, make_layouts
from wagma_jax.exchange.staging import Staging

FIRST, SECOND, THIRD = jax.devices()[:3]


def spread(*devices, kind=AxisType.Auto):
    return NamedSharding(Mesh(np.asarray(devices), ("x",), axis_types=(kind,)), PartitionSpec("x"))


def loose(value, device):
    with jax.default_device(device):
        array = jnp.asarray(value) + 0
    assert not array.committed
    return array


def round_trip(staging, tree, needed=True):
    leaves = staging.check(tree)
    return staging.unpack(leaves, staging.pack(leaves), needed)


GRID = np.arange(48, dtype=np.float32).reshape(6, 8)
PLACED = {
    "numpy": {"a": GRID, "b": np.float32(2)},
    "python": {"a": 0.5, "b": 2j, "c": GRID},
    "uncommitted": {"a": loose(GRID, FIRST), "b": loose(1.5, FIRST)},
    "committed": {"a": jax.device_put(GRID, FIRST), "b": jax.device_put(np.float32(3), FIRST)},
    "both": {"a": jax.device_put(GRID, FIRST), "b": loose(GRID, FIRST), "c": GRID},
    "uncommitted elsewhere": {"a": loose(GRID, SECOND), "b": loose(1.5, SECOND)},
    "committed elsewhere": {"a": jax.device_put(GRID, SECOND), "b": jax.device_put(GRID[0], SECOND)},
    "both elsewhere": {"a": jax.device_put(GRID, SECOND), "b": loose(GRID, SECOND)},
    "sharding of one device": {"a": jax.device_put(GRID, spread(SECOND)), "b": jax.device_put(GRID, SECOND)},
    "sharding of the first": {"a": jax.device_put(GRID, spread(FIRST)), "b": loose(GRID, FIRST)},
    "explicit sharding of the first": {
        "a": jax.device_put(GRID, spread(FIRST, kind=AxisType.Explicit)),
        "b": jax.device_put(GRID[0], NamedSharding(spread(FIRST, kind=AxisType.Explicit).mesh, PartitionSpec())),
    },
    "sharding of two": {"a": jax.device_put(GRID, spread(SECOND, THIRD)), "b": loose(GRID, FIRST), "c": 1.0},
    "explicit sharding": {"a": jax.device_put(GRID, spread(FIRST, SECOND, kind=AxisType.Explicit)), "b": GRID},
    "explicit sharding of one": {"a": jax.device_put(GRID, spread(SECOND, kind=AxisType.Explicit))},
    "two devices": {"a": jax.device_put(GRID, SECOND), "b": jax.device_put(GRID, THIRD), "c": np.float32(1)},
}


@pytest.mark.parametrize("copies", [True, False], ids=["small leaves", "large leaves"])
@pytest.mark.parametrize("name", PLACED)
def test_leaves_come_back_where_they_were(name, copies, monkeypatch):
    monkeypatch.setattr(staging_module, "SMALL_LEAF_BYTES", 1 << 18 if copies else 0)
    tree = PLACED[name]
    staging = Staging(tree)
    assert staging.copies == copies
    for needed in (True, False):
        back = round_trip(staging, tree, needed)
        for key, leaf in tree.items():
            new = back[key]
            assert isinstance(new, jax.Array)
            np.testing.assert_array_equal(new, leaf)
            assert new is not leaf
            assert new.dtype == jnp.result_type(leaf)
            if isinstance(leaf, jax.Array):
                assert new.sharding == leaf.sharding
                assert new.committed == leaf.committed
            else:
                assert not new.committed
    elsewhere = {leaf.sharding for leaf in tree.values() if isinstance(leaf, jax.Array) and leaf.committed}
    if len(elsewhere) <= 1:  # then the next step runs
        jax.block_until_ready(jax.jit(lambda tree: sum(map(jnp.sum, tree.values())))(back))


def test_what_comes_back_does_not_change_with_the_buffers():
    """The buffers may be overwritten as soon as ``unpack`` has returned, if they were left to their owner."""
    for tree in (PLACED["uncommitted"], PLACED["committed elsewhere"], PLACED["two devices"]):
        staging = Staging(tree)
        leaves = staging.check(tree)
        buffers = staging.pack(leaves)
        back = staging.unpack(leaves, buffers, needed=False)
        assert staging.spent((), buffers) is buffers
        for buffer in buffers:  # as an exchange does
            jax.jit(lambda buffer: buffer * 0 - 1, donate_argnums=0)(buffer).block_until_ready()
        for key, leaf in tree.items():
            np.testing.assert_array_equal(back[key], leaf)


def test_models_on_one_accelerator_travel_as_buffers(monkeypatch):
    """A second CPU device stands for the accelerator: it shows what is sent, not how fast."""
    tree = {f"{i}": jax.device_put(GRID + i, SECOND) for i in range(150)}
    tree |= {f"half {i}": jax.device_put(jnp.ones(3, jnp.bfloat16), SECOND) for i in range(3)}
    staging = Staging(tree)
    round_trip(staging, tree)  # sends the offsets, once
    sent = []
    device_put = jax.device_put
    monkeypatch.setattr(
        jax, "device_put", lambda x, *args, **options: (sent.append(x), device_put(x, *args, **options))[1]
    )
    back = round_trip(staging, tree)
    assert staging.copies
    assert [(leaf.ndim, leaf.size) for leaf in jax.tree.leaves(sent)] == [(1, 150 * 48), (1, 3 * 32)] * 2
    for key, leaf in tree.items():
        np.testing.assert_array_equal(back[key], leaf)


POLICY = {"mean": "mean", "sync": "sync", "keep": "keep"}


def test_leaves_that_a_round_does_not_average_are_not_copied():
    tree = {"keep": jnp.ones(3), "mean": jnp.ones(4), "sync": jnp.ones(5), "numpy": np.ones(2, np.float32)}
    policy = lambda path, leaf: POLICY.get(path[0].key, "sync")
    staging = Staging(tree, policy)
    leaves = staging.check(tree)
    buffers = staging.pack(leaves)
    assert sum(buffer.size for buffer in buffers) == 3 * 16, "'keep' leaves are in no buffer"
    ordinary = staging.unpack(leaves, staging.ordinary(buffers), needed=False)
    assert ordinary["sync"] is tree["sync"]
    assert ordinary["keep"] is tree["keep"]
    assert ordinary["mean"] is not tree["mean"]
    assert isinstance(ordinary["numpy"], jax.Array)
    assert not ordinary["numpy"].committed
    everything = staging.unpack(leaves, buffers)
    assert everything["sync"] is not tree["sync"]
    assert everything["keep"] is tree["keep"]


@pytest.mark.parametrize(("limit", "dtype"), [(64, jnp.bfloat16), (128, np.float32), (1024, np.float32)])
def test_buffers_are_limited_and_larger_leaves_are_cut(limit, dtype, monkeypatch):
    rng = np.random.default_rng(0)
    shapes = [(3,), (), (0, 2), (70, 3), (64,), (5, 5), (130,), (2, 2)]
    tree = [rng.normal(size=shape).astype(dtype) for shape in shapes]
    for small in (0, 1 << 18):
        monkeypatch.setattr(staging_module, "SMALL_LEAF_BYTES", small)
        staging = Staging(tree, most_elements=limit)
        buffers = staging.pack(staging.check(tree))
        assert max(buffer.size for buffer in buffers) <= limit
        assert sum(buffer.size for buffer in buffers) < sum(leaf.size for leaf in tree) + 64 * (
            len(tree) + len(buffers)
        )
        for new, leaf in zip(round_trip(staging, tree), tree, strict=True):
            np.testing.assert_array_equal(new, leaf, strict=True)
        for new, leaf in zip(staging.to_arrays(buffers), tree, strict=True):
            np.testing.assert_array_equal(new, leaf, strict=True)
        on_second = jax.device_put(tree, SECOND)
        for new, leaf in zip(round_trip(staging, on_second), tree, strict=True):
            assert new.devices() == {SECOND}
            np.testing.assert_array_equal(new, leaf, strict=True)


def test_positions_of_three_billion_elements_fit():
    """By tracing alone: no memory is used."""
    n = 1 << 30
    leaves = [jax.ShapeDtypeStruct((n,), jnp.bfloat16)] * 2 + [jax.ShapeDtypeStruct((3, n // 2 + 1000), jnp.bfloat16)]
    staging = Staging(leaves)
    assert [layout.size for layout in staging.layouts] == [n, n, n, n // 2 + 3008]
    wanted = [[leaves[part.leaf] for part in layout.parts] for layout in staging.layouts]
    for layout, some in zip(staging.layouts, wanted, strict=True):
        text = jax.jit(lambda some, layout=layout: flattening.joined(layout, some)).lower(some).as_text()
        assert f"tensor<{layout.size}xui16>" in text
        numbers = [int(number) for number in re.findall(r"dense<(-?\d+)>", text)]
        assert all(0 <= number <= n for number in numbers), "positions that overflow are negative"
        buffer = jax.ShapeDtypeStruct((layout.size,), jnp.uint16)
        starts = [jax.ShapeDtypeStruct((), jnp.int32)] * len(some)
        pieces = jax.eval_shape(lambda *args, layout=layout: flattening.split(layout, *args), buffer, starts)
        assert sum(piece.size for piece in pieces) <= layout.size <= MOST_ELEMENTS
    whole = make_layouts([(n + 1,)], [np.dtype(np.float32)], ["mean"], n)
    assert [(part.start, part.size, part.is_whole) for layout in whole for part in layout.parts] == [
        (0, n, False),
        (n, 1, False),
    ]


@pytest.mark.parametrize(
    "leaf",
    [jax.nn.relu, "relu", b"x", object(), np.array("x"), jax.ShapeDtypeStruct((2,), jnp.float32), np.longdouble(1)],
    ids=lambda leaf: type(leaf).__name__,
)
@pytest.mark.parametrize("policy", [None, lambda path, leaf: "keep"], ids=["default", "keep"])
def test_leaves_that_are_no_arrays_are_named(leaf, policy):
    good = {"layer": {"w": np.ones(2, np.float32), "x": np.ones(2, np.float32)}}
    bad = {"layer": {"w": np.ones(2, np.float32), "x": leaf}}
    expected = rf"\['layer'\]\['x'\] must be an array or a number .* got {type(leaf).__name__}"
    with pytest.raises(TypeError, match=expected):
        Staging(good, policy).check(bad)
    with pytest.raises(TypeError, match=expected):
        Staging(bad, policy).check(bad)


@pytest.mark.parametrize("dtype", [jnp.float4_e2m1fn])
def test_floats_narrower_than_a_byte_are_refused(dtype):
    tree = {"w": jnp.ones(2), "x": jnp.ones(2, dtype)}
    with pytest.raises(TypeError, match=rf"\['x'\] is {dtype.__name__}, which is too narrow .*'keep'"):
        Staging(tree)
    staging = Staging(tree, lambda path, leaf: "keep" if path[0].key == "x" else "mean")
    assert round_trip(staging, tree)["x"] is tree["x"]


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float32", "complex64"])
def test_floats_of_a_byte_and_more_are_averaged(name):
    dtype = jnp.dtype(name)
    tree = {"x": jnp.asarray([1, 2, 0.5, -1.5], dtype)}
    staging = Staging(tree)
    leaves = staging.check(tree)
    totals = tuple(buffer.astype(staging_module.sum_dtype(buffer.dtype)) for buffer in staging.pack(leaves))
    if name == "bfloat16":  # as bits
        totals = tuple(staging_module.values(buffer).astype(jnp.float32) for buffer in staging.pack(leaves))
    merged = staging.merge_late(totals, staging.pack(leaves), 1)
    np.testing.assert_array_equal(staging.unpack(leaves, merged)["x"], tree["x"], strict=True)
