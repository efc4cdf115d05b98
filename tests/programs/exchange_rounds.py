"""Bodies for MPI ranks: GroupExchange against references. As a program: all of them, long, on 2 to all of 8 ranks."""

import contextlib
import functools
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from exchange_common import bits, close, local_step, tree, wait_for
from mpi4py import MPI
from reference import LateRuleReference

import wagma_jax as wagma
from wagma_jax.exchange import startup
from wagma_jax.exchange.barrier import barrier
from wagma_jax.protocol.messages import Kind

WORLD = MPI.COMM_WORLD
SIZES = {2: 2, 3: 2, 4: 2, 5: 3, 6: 3, 8: 4}  # workers: group size


def stacked_trees(trees):
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)


def of_worker(stacked, worker):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[worker], stacked)


def nobody_late(comm, rounds, chained):
    """The same as the XLA averager; with ``chained`` in two exchanges at once, one as a transformation."""
    group_size = SIZES[comm.size]
    start = tree(1.0)
    options = {"group_size": group_size, "sync_period": 7, "quorum": group_size, "timeout_seconds": 60}
    mine = []
    with contextlib.ExitStack() as stack:
        exchange = stack.enter_context(wagma.GroupExchange(comm, start, **options))
        step = chain(stack.enter_context(wagma.GroupExchange(comm, start, **options))) if chained else None
        params = jax.tree.map(jnp.asarray, exchange.params)
        other = params
        for t in range(rounds):
            assert exchange.round == t - 1
            params, info = exchange.average(local_step(params, comm.rank, t))
            assert info == info._replace(round=t, is_sync=(t + 1) % 7 == 0, late=False, staleness=0, base=t), info
            assert info.contributed_rounds == (t,) * len(info.group)
            mine.append(params)
            if step is not None:
                other = step(other, local_step(other, comm.rank, t))
                close(other, params, 1e-5)
        mean = exchange.consensus(params)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(mean)[:-1])
    barrier(comm)
    everyone = comm.gather((mine, mean))
    if comm.rank:
        return
    schedule = wagma.GroupSchedule(comm.size, group_size, 7)
    averager = wagma.GroupAverager(schedule, axis_name="w")
    average = jax.jit(jax.vmap(averager.average, axis_name="w"))
    stacked = stacked_trees([start] * comm.size)
    state = jax.vmap(averager.init)(stacked)
    for t in range(rounds):
        stacked, state, _ = average(
            stacked_trees([local_step(of_worker(stacked, w), w, t) for w in range(comm.size)]), state
        )
        for w in range(comm.size):
            close(everyone[w][0][t], of_worker(stacked, w), 1e-6)
    for w in range(comm.size):
        close(everyone[w][1], jax.tree.map(lambda leaf: np.asarray(leaf, np.float64).mean(0), stacked), 1e-6)


def chain(exchange):
    """A jitted step to a given W', averaged by the last link of an optax chain."""
    inner = optax.GradientTransformation(lambda params: optax.EmptyState(), lambda u, s, p=None: (u, s))
    optimizer = optax.chain(inner, exchange.as_transformation())

    @jax.jit
    def step(params, target):
        updates = jax.tree.map(jnp.subtract, target, params)
        updates, _ = optimizer.update(updates, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    return step


def forced_lateness(comm, dtype):
    """`quorum` members of every group are on time and the others late: the same as the NumPy reference."""
    group_size, rounds, quorum = SIZES[comm.size], 13, max(1, SIZES[comm.size] - 1)
    dtype = jnp.dtype(dtype)
    schedule = wagma.GroupSchedule(comm.size, group_size, 5)
    rng = np.random.default_rng(comm.size)
    late = np.zeros((rounds, comm.size), bool)
    for t in range(rounds):
        for group in schedule.groups(t):
            late[t, rng.permutation(group)[min(quorum, len(group)) :]] = not schedule.is_sync(t)
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype) if leaf.dtype == np.float32 else leaf, tree(1.0))
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    options = {"group_size": group_size, "sync_period": 5, "quorum": quorum, "timeout_seconds": 60}
    mine = []
    with wagma.GroupExchange(comm, start, **options) as exchange:
        params = start
        for t in range(rounds):
            moved = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), local_step(params, comm.rank, t), params)
            if late[t, comm.rank]:
                wait_for(lambda t=t: exchange._engine.state.round > t)
            params, info = exchange.average(moved)
            assert info.late == late[t, comm.rank], (t, info)
            assert info.contributed_rounds == tuple(t - 1 if late[t, w] else t for w in info.group), (t, info)
            mine.append((moved, params))
            barrier(comm)
    everyone = comm.gather(mine)
    if comm.rank:
        return
    names = ["large", "matrix", "scalar"]
    stacked = stacked_trees([start] * comm.size)
    reference = LateRuleReference(schedule.groups, 5, comm.size, ["mean"] * 3)
    reference.init([stacked[name] for name in names])
    for t in range(rounds):
        moved = stacked_trees([everyone[w][t][0] for w in range(comm.size)])
        result = reference.update([moved[name] for name in names], late[t])
        for name, expected in zip(names, result, strict=True):
            ours = np.stack([np.asarray(everyone[w][t][1][name], np.float64) for w in range(comm.size)])
            np.testing.assert_allclose(ours, expected, rtol=tolerance, atol=tolerance, err_msg=f"{name} at {t}")


def patience(comm):
    """Whoever has come waits for the quorum, but not for ever; then the other is late."""
    rank, other = comm.rank, 1 - comm.rank
    options = {"group_size": 2, "sync_period": None, "quorum": 2, "timeout_seconds": 60}
    with wagma.GroupExchange(comm, tree(1.0), quorum_seconds=50, **options) as exchange:
        params = exchange.params
        for t in range(4):
            if t % 2 == rank:
                wait_for(lambda t=t: exchange._engine.state.facts.who(t, Kind.ARRIVED) >> other & 1)
            params, info = exchange.average(local_step(params, rank, t))
            assert info == info._replace(late=False, contributed_rounds=(t, t)), info
    with wagma.GroupExchange(comm, tree(1.0), quorum_seconds=0.05, **options) as exchange:
        params = exchange.params
        for t in range(4):
            first = t % 2 == rank
            if not first:
                barrier(comm)  # which the other comes to when its call is over
            params, info = exchange.average(local_step(params, rank, t))
            assert info.late != first, (t, info)
            assert not first or info.waited_seconds >= 0.05, (t, info)
            assert info.contributed_rounds[rank] == t if first else info.contributed_rounds[rank] < t, (t, info)
            if first:
                barrier(comm)


@jax.jit
def burn(x, n):
    return jax.lax.fori_loop(0, n, lambda i, y: jnp.tanh(y @ y), x)


def dawdle(kind, seconds, square):
    """Being late in one of three ways: asleep, in a jitted computation, in Python code."""
    end = time.perf_counter() + seconds
    if kind == 0:
        time.sleep(seconds)
    while time.perf_counter() < end:
        if kind == 1:
            burn(square, 3).block_until_ready()
        else:
            sum(range(1000))


def stragglers(comm, floats, rounds, clock, quorum=1, seconds=0.003):
    """No torn or mixed result, every result explained by the records, bit-equal after syncs, staleness bounded.

    Returns:
        How many calls were late, and how many there were, on all ranks.
    """
    period = 6
    rng = np.random.default_rng((comm.rank, floats))
    square = jnp.eye(32)
    published = {-1: 1.0}
    models, at_syncs = [], {}
    start = {"w": jnp.full(floats, 1.0), "b": jnp.ones(3)}
    step = jax.jit(lambda params, by: jax.tree.map(lambda leaf: leaf * 0.75 + by, params), donate_argnums=0)
    options = {
        "group_size": SIZES[comm.size],
        "sync_period": period,
        "clock": clock,
        "quorum": quorum,
        "timeout_seconds": 60,
    }
    with wagma.GroupExchange(comm, start, **options) as exchange:
        params = start
        while exchange.round + 1 < rounds:
            if rng.random() < 0.3:
                dawdle(rng.integers(3), seconds * rng.random(), square)
            params = step(params, float(rng.normal()))
            value = float(params["w"][0])
            params, info = exchange.average(params)
            published[info.round] = value
            result = np.asarray(params["w"])
            assert result.min() == result.max() == np.asarray(params["b"]).min(), f"torn or mixed at {info}"
            assert info.is_sync == ((info.round + 1) % period == 0)
            assert 0 <= info.staleness <= period - 1
            assert all(info.round - period < version <= info.round for version in info.contributed_rounds), info
            if info.is_sync:
                at_syncs[info.round] = float(result[0])
                published[info.round] = float(result[0])
            models.append((info, value, float(result[0])))
        records = dict(exchange._engine.models.history.rounds())
        final = exchange.consensus(params)
    everyone = comm.allgather(
        (published, at_syncs, float(final["w"][0]), {r: v.contributed for r, v in records.items()})
    )
    assert len({final for _, _, final, _ in everyone}) == 1
    for k in at_syncs:
        assert len({syncs[k] for _, syncs, _, _ in everyone if k in syncs}) == 1, f"not bit-equal after sync {k}"
    for r, record in records.items():  # every worker executed every round with the same members and contributions
        assert all(everyone[w][3].get(r, record.contributed) == record.contributed for w in record.group), r
    base = -1
    for info, value, result in models:
        if info.is_sync or info.base == base:
            expected = result if info.is_sync else value
        else:
            record = records[info.base]
            total = sum(everyone[w][0][v] for w, v in zip(record.group, record.contributed, strict=True))
            own = record.contributed[record.group.index(comm.rank)]
            contained = own == info.round
            size = len(record.group)
            expected = total / size if contained else (total + value) / (size + 1)
        assert abs(result - expected) < 1e-5 * (1 + abs(expected)), (info, value, result, expected)
        base = info.base
    late = sum(info.late for info, _, _ in models)
    return comm.allreduce(late), comm.allreduce(len(models))


def unequal_steps(comm):
    """Workers that stop after different numbers of steps; user code that overwrites what it passed in."""
    params = {"w": np.full(1000, float(comm.rank), np.float32)}
    with wagma.GroupExchange(comm, {"w": np.zeros(1000, np.float32)}, group_size=2, sync_period=4) as exchange:
        for epoch in range(2):
            for _ in range(3 + 2 * ((comm.rank + epoch) % 3)):
                averaged, _ = exchange.average(params)
                params["w"][:] = np.nan  # ours since the call has returned
                assert np.isfinite(np.asarray(averaged["w"])).all()
                params = {"w": np.asarray(averaged["w"]) + np.float32(1)}
            mean = exchange.consensus(params)
            expected = np.mean([p["w"] for p in comm.allgather(params)], 0)
            np.testing.assert_allclose(np.asarray(mean["w"]), expected, rtol=1e-6)
    return exchange.round


def policies(comm):
    """ "keep" leaves stay, "sync" leaves are averaged at sync rounds only, others at every round."""

    def policy(path, leaf):
        return {"m": "mean", "s": "sync", "k": "keep"}[path[0].key]

    params = {name: jnp.full((3,), float(comm.rank)) for name in "msk"}
    same = {"m": jnp.zeros(3), "s": jnp.zeros(3), "k": params["k"]}
    options = {"group_size": 2, "sync_period": 3, "policy": policy, "quorum": 2}
    with wagma.GroupExchange(comm, same, **options) as exchange:
        for t in range(3):
            new, info = exchange.average(params)
            everyone = comm.size * (comm.size - 1) / 2 / comm.size
            assert float(new["m"][0]) == (everyone if t == 2 else np.mean(info.group))
            assert float(new["s"][0]) == (everyone if t == 2 else comm.rank)
            assert float(new["k"][0]) == comm.rank


def other_device(comm):
    """Models on another device than the host's first come back there, sharded as they were."""
    devices = jax.devices()
    mesh = jax.make_mesh((2,), ("x",), devices=devices[:2], axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    params = {
        "one": jax.device_put(jnp.full(5, float(comm.rank)), devices[1]),
        "two": jax.device_put(jnp.full(8, float(comm.rank)), spread),
    }
    with wagma.GroupExchange(
        comm, jax.tree.map(jnp.zeros_like, params), group_size=comm.size, quorum=comm.size
    ) as exchange:
        new, _ = exchange.average(params)
    assert float(new["one"][0]) == float(new["two"][7]) == (comm.size - 1) / 2
    assert new["one"].devices() == {devices[1]}
    assert new["two"].sharding == spread


def places(comm):
    """Averages are where the models were, so that the next step runs; and models that are cut into many buffers."""
    second = jax.devices()[1]
    with jax.default_device(second):
        loose = jnp.ones(3) * comm.rank
    trees = [
        {"a": np.float32(comm.rank), "b": jax.device_put(jnp.full(3, float(comm.rank)), second), "c": 0.5},
        {"a": loose, "b": loose + 1},
    ]
    step = jax.jit(lambda params: jax.tree.map(lambda leaf: leaf + params["a"], params))
    for params in trees:
        committed = {name: getattr(leaf, "committed", False) for name, leaf in params.items()}
        placed = {name: leaf.sharding for name, leaf in params.items() if isinstance(leaf, jax.Array)}
        with wagma.GroupExchange(comm, params, group_size=comm.size, sync_period=2, quorum=comm.size) as exchange:
            assert {name: leaf.committed for name, leaf in exchange.params.items()} == committed
            for _ in range(3):
                params, _ = exchange.average(params)
                assert {name: leaf.committed for name, leaf in params.items()} == committed
                assert {name: params[name].sharding for name in placed} == placed
                step(params)  # fails where leaves are bound to different devices
            mean = exchange.consensus(params)
            assert {name: leaf.committed for name, leaf in mean.items()} == committed
    whole, startup.Staging = startup.Staging, functools.partial(startup.Staging, most_elements=128)
    try:
        start = tree(1.0)
        with wagma.GroupExchange(comm, start, group_size=comm.size, sync_period=2, quorum=comm.size) as exchange:
            buffers = exchange._engine.models.outbox.model
            assert [buffer.size for buffer in buffers] == [128] * 16 + [16]
            for t in range(2):
                new, _ = exchange.average(jax.tree.map(lambda leaf: leaf + leaf.dtype.type(comm.rank), start))
                for name, leaf in start.items():
                    shift = comm.rank if name == "steps" else (comm.size - 1) / 2
                    np.testing.assert_allclose(new[name], leaf + shift, rtol=1e-6, atol=1e-6, err_msg=f"{name} at {t}")
    finally:
        startup.Staging = whole


def memory_of_sums(comm):
    """No round of a bfloat16 model, whose sums are wider, allocates memory for them once each kind has been made."""
    start = {"w": jnp.zeros(300_000, jnp.bfloat16), "b": jnp.zeros(3, jnp.bfloat16)}
    with wagma.GroupExchange(comm, start, group_size=comm.size, sync_period=3, timeout_seconds=60) as exchange:
        allocate, allocated = exchange._engine.wire.memory, []
        exchange._engine.wire.memory = lambda buffers: (allocated.append(exchange.round + 1), allocate(buffers))[1]
        params, late = start, 0
        for t in range(15):
            if t % 3 == 1 and t > 6 and comm.rank:
                wait_for(lambda t=t: exchange._engine.state.round > t)
            params, info = exchange.average(jax.tree.map(lambda leaf: leaf + comm.rank, params))
            late += info.late
            barrier(comm)
        assert late >= 2 * (comm.rank > 0)
        assert all(t < 6 for t in allocated), allocated


def frozen(comm):
    """Leaves that are equal on all workers keep their bits in groups of powers of two, also -0 and infinity."""
    rng = np.random.default_rng(0)
    special = [0.0, -0.0, np.inf, -np.inf, 1e37, 3e-38]
    start = {
        "small": np.asarray([*rng.standard_normal(1000), *special], np.float32),
        "large": rng.standard_normal(550_000).astype(np.float32),
        "half": jnp.asarray(rng.standard_normal(3000), jnp.bfloat16),
        "trained": np.zeros(3, np.float32),
    }
    with wagma.GroupExchange(comm, start, group_size=2, sync_period=3, quorum=2) as exchange:
        params = exchange.params
        for t in range(3):
            params, info = exchange.average({**params, "trained": params["trained"] + comm.rank})
            assert not info.late
            for name in ("small", "large", "half"):
                assert bits(params[name]) == bits(start[name]), f"{name} at {t}"
        params = exchange.consensus(params)
        assert bits(params["small"]) == bits(start["small"])
        assert np.asarray(params["trained"]).any()


LONG = 300
CASES = [
    *((size, nobody_late, (30, size == 2)) for size in SIZES),
    *((size, forced_lateness, ("bfloat16" if size == 2 else "float32",)) for size in SIZES),
    (2, stragglers, (5_000_000, LONG // 10, "step")),
    (3, stragglers, (1000, LONG // 6, "round")),
    (3, stragglers, (1000, LONG // 10, "step")),
    (4, stragglers, (1000, LONG, "step")),
    (5, stragglers, (1000, LONG // 10, "step")),
    (6, stragglers, (1000, LONG // 10, "step", 2)),
    (8, stragglers, (1000, LONG // 10, "step")),
]


def main():
    done = set()
    for first in (2, 3, 4, 8):  # the first so many processes, and all others
        comm = WORLD.Split(WORLD.rank < first)
        sizes = {first, WORLD.size - first} - done
        if comm.size in sizes and (first != WORLD.size - first or WORLD.rank < first):
            for size, body, arguments in CASES:
                if size == comm.size:
                    began = time.perf_counter()
                    result = body(comm, *arguments)
                    barrier(comm)
                    if comm.rank == 0:
                        seconds = time.perf_counter() - began
                        print(f"{size} workers: {body.__name__}{arguments} ok, {result}, {seconds:.1f} s", flush=True)
        done |= sizes
        barrier(WORLD)
        comm.Free()


if __name__ == "__main__":
    assert not sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 2)
    main()


def alone(comm):
    """Groups of one: what was passed comes back between global means, and who has ended counts with its last model."""
    start = {"w": jnp.zeros(5), "b": np.zeros(2, np.float32)}
    for in_step in (False, True):
        with wagma.GroupExchange(comm, start, group_size=1, sync_period=4, timeout_seconds=60) as exchange:
            link = exchange.as_transformation()
            params, state = exchange.params, link.init(start)

            @jax.jit
            def step(params, state, link=link):
                updates, state = link.update(jax.tree.map(jnp.ones_like, params), state, params)
                return optax.apply_updates(params, updates), state

            for t in range(3 if comm.rank == 0 else 6):
                sync = t == 3
                if in_step:
                    params, state = step(params, state)
                    jax.block_until_ready(params)
                else:
                    target = jax.tree.map(lambda leaf: leaf + 1, params)
                    params, info = exchange.average(target)
                    assert info.round == t
                    assert not info.late
                    assert sync or params is target
                    assert sync or (info.group, info.contributed_rounds, info.base) == ((comm.rank,), (t,), t)
                # at the sync round rank 0 has ended with 3, and all others have 4
                mean = (3 + 4 * (comm.size - 1)) / comm.size
                expected = t + 1 if t < 3 else mean + t - 3
                for leaf in jax.tree.leaves(params):
                    np.testing.assert_allclose(leaf, expected, rtol=1e-6)
