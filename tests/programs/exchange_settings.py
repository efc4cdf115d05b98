"""Bodies for MPI ranks: GroupExchange under the user's settings of JAX."""

import contextlib
import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
from exchange_common import bits, wait_for
from exchange_small import expect
from jax.experimental.xla_metadata import set_xla_metadata
from jax.sharding import AxisType

import wagma_jax as wagma
from wagma_jax.exchange.barrier import barrier

OPTIONS = {"group_size": 2, "sync_period": 3, "timeout_seconds": 60}
PROCESS_WIDE = {
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_default_matmul_precision": "bfloat16",
    "jax_debug_nans": True,
    "jax_debug_infs": True,
    "jax_debug_key_reuse": True,
    "jax_transfer_guard": "disallow",
}


@contextlib.contextmanager
def everything():
    """Settings that go together."""
    with contextlib.ExitStack() as stack:
        for setting in (
            jax.default_device(jax.devices()[1]),
            jax.numpy_dtype_promotion("strict"),
            jax.numpy_rank_promotion("raise"),
            jax.default_matmul_precision("bfloat16"),
            jax.debug_nans(True),
            jax.debug_infs(True),
            jax.debug_key_reuse(True),
            jax.threefry_partitionable(False),
            jax.checking_leaks(),
            jax.transfer_guard("disallow"),
        ):
            stack.enter_context(setting)
        yield


@contextlib.contextmanager
def process_wide():
    wanted = {**PROCESS_WIDE, "jax_default_device": jax.devices()[1]}
    before = {name: getattr(jax.config, name) for name in wanted}
    for name, value in wanted.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@contextlib.contextmanager
def mesh_of_the_thread():
    """``jax.set_mesh`` as a statement."""
    mesh = jax.set_mesh(jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,)))
    try:
        yield
    finally:
        mesh.__exit__(None, None, None)


@contextlib.contextmanager
def mesh_of_old():
    """``with mesh:``, which JAX will give up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,)).__enter__()
    try:
        yield
    finally:
        mesh.__exit__(None, None, None)


SETTINGS = {
    "none": contextlib.nullcontext,
    "mesh": lambda: jax.set_mesh(jax.make_mesh((2,), ("x",))),
    "mesh_of_the_thread": mesh_of_the_thread,
    "mesh_of_old": mesh_of_old,
    "metadata": lambda: set_xla_metadata(place="here"),
    "x64": lambda: jax.enable_x64(True),
    "disable_jit": jax.disable_jit,
    "first_device": lambda: jax.default_device(jax.devices()[0]),
    "everything": everything,
    "process_wide": process_wide,
}


def model(rank):
    """One leaf is sent ahead, to uninitialized memory. Two ranks' are within a factor of 2: see ``in_steps``."""
    grid = np.linspace(1.0, 1.5, 70_000, dtype=np.float32)
    return {
        "large": jax.device_put(grid + np.float32(rank / 16)),
        "narrow": jax.device_put((grid[::999] + np.float32(rank / 16)).astype(jnp.bfloat16)),
        "complex": jax.device_put(grid[::999] * np.complex64(1 + 1j)),
        "steps": jax.device_put(np.asarray([3, 1], np.int32)),
    }


def turn(exchange, comm, t):
    """Has rank 1 arrive when ordinary rounds are over, so that it merges."""
    barrier(comm)
    if comm.rank == 1 and not exchange.schedule.is_sync(t):
        wait_for(lambda: exchange._engine.state.round > t)


def everything_once(comm):
    """Calls everything; what came, as bits."""
    came = []
    with wagma.GroupExchange(comm, model(comm.rank), **OPTIONS) as exchange:
        params = exchange.params
        came.append(bits(params))
        for t in range(4):  # two late merges, a global mean, another late merge
            turn(exchange, comm, t)
            params, info = exchange.average(jax.tree.map(jax.device_put, params if t else model(comm.rank)))
            assert info.late == (comm.rank == 1 and t != 2), info
            came.append(bits(params))
        params = exchange.consensus(params)
        came.append(bits(params))
        came += in_steps(exchange, comm, model(comm.rank))
    assert len({str(leaf.dtype) for leaf in jax.tree.leaves(params)}) == 4
    return came


def in_steps(exchange, comm, params):
    """Rounds by a jitted step, which leaves its own updates out: what came, as bits.

    Under strict promotion updates are as narrow as leaves: exact where leaves change by less than a factor of 2.
    """
    optimizer = optax.chain(optax.set_to_zero(), exchange.as_transformation())
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
        return optax.apply_updates(params, updates), state

    for t in range(exchange.round + 1, exchange.round + 3):
        turn(exchange, comm, t)
        params, state = step(params, state)
        jax.block_until_ready(params)
        yield bits(params)


def same_bits(comm, names):
    """The same bits under all settings."""
    results = {}
    for name in names:
        with SETTINGS[name]():
            results[name] = everything_once(comm)
    expected = results.pop("none")
    for name, came in results.items():
        for i, (ours, theirs) in enumerate(zip(came, expected, strict=True)):
            assert ours == theirs, f"{name}: call {i}"


def nothing_is_compiled_again(comm):
    """An exchange that was made without any setting compiles nothing when it is called under one."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if name.endswith("backend_compile_duration") else None
    )
    params = model(comm.rank)
    with wagma.GroupExchange(comm, params, **OPTIONS) as exchange:
        for name, setting in SETTINGS.items():
            with setting():
                if name != "none":  # where packing is compiled
                    before = len(compiled)
                for _ in range(3):
                    turn(exchange, comm, exchange.round + 1)
                    exchange.average(params)
                exchange.consensus(params)
                if name != "none":
                    assert len(compiled) == before, name
    assert compiled, "nothing is counted"


def wide(comm):
    """64-bit leaves stay 64 bits wide, whether they are enabled as a context or not at all, in steps as well."""
    grid = np.linspace(1.0, 1.5, 40_001)
    alone = comm.Split(comm.rank)
    for group in (comm, alone):
        mean = grid * 3 + (group.size - 1) / 2
        with jax.enable_x64(True):
            start = {"w": grid * 3, "z": (grid[:5] * 3).astype(np.complex128)}
            params = {name: jnp.asarray(leaf) + group.rank for name, leaf in start.items()}
            exchange = wagma.GroupExchange(group, start, group_size=1, sync_period=1)
        for enabled in (True, False):
            with jax.enable_x64(enabled):
                for own in (params, jax.tree.map(np.asarray, params)):
                    new, _ = exchange.average(own)
                    for leaf, dtype, expected in ((new["w"], np.float64, mean), (new["z"], np.complex128, mean[:0])):
                        assert leaf.dtype == dtype
                        np.testing.assert_allclose(leaf[: len(expected)], expected, rtol=1e-15)
                assert exchange.consensus(new)["w"].dtype == np.float64
        with jax.enable_x64(True):
            optimizer = exchange.as_transformation()

            @jax.jit
            def step(params, optimizer=optimizer):
                large = jnp.sin(jnp.arange(1e5)).sum()  # dispatched to another thread
                params = {**params, "w": params["w"] + 0 * large}
                updates = jax.tree.map(jnp.zeros_like, params)
                updates, _ = optimizer.update(updates, optimizer.init(params), params)
                return optax.apply_updates(params, updates)

            for _ in range(2):
                new = step(params)
                np.testing.assert_allclose(new["w"], mean, rtol=1e-15)
                assert new["z"].dtype == np.complex128
        exchange.close()
    alone.Free()


def refusals(comm):
    """What cannot work is explained: a call by a function that is traced, and a step that takes all threads of XLA."""
    params = {"w": jnp.ones(3)}
    with wagma.GroupExchange(comm, params, group_size=1, sync_period=1) as exchange:
        optimizer = exchange.as_transformation()
        step = jax.jit(lambda params: optimizer.update(params, optimizer.init(params), params)[0])
        before = os.environ["NPROC"]
        os.environ["NPROC"] = "2"  # as many as there are devices
        try:
            with mesh_of_the_thread(), expect(RuntimeError, "XLA has 2 of the 3 threads", "set NPROC=3"):
                step(params)
        finally:
            os.environ["NPROC"] = before
        step(params)
        with expect(RuntimeError, "while JAX traces a function"):
            jax.jit(lambda params: exchange.average(params)[0])(params)
        exchange.average(params)
