"""One of several MPI processes: GroupExchange against references, on communicators of 2 to all processes at once."""

import argparse
import contextlib
import pickle
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mpi4py import MPI
from reference import LateRuleReference

import wagma_jax as wagma
from wagma_jax.exchange.barrier import barrier

WORLD = MPI.COMM_WORLD
SIZES = {2: 2, 3: 2, 4: 2, 5: 3, 6: 3, 8: 4}  # workers: group size


def tree(value, dtype=np.float32):
    """A model that is not equal in any two elements."""
    grid = np.linspace(-1, 1, 2000, dtype=np.float64)
    return {
        "scalar": np.asarray(value, dtype),
        "matrix": (value + np.arange(35).reshape(5, 7) / 10).astype(dtype),
        "large": (value * grid).astype(dtype),
        "steps": np.asarray(3, np.int32),
    }


def local_step(params, worker, t):
    """W' = W + U, different on every worker and at every round."""
    rng = np.random.default_rng((worker, t))
    kick = rng.normal(size=3)
    return {
        "scalar": params["scalar"] * np.float32(0.9) + np.float32(kick[0]),
        "matrix": params["matrix"] * np.float32(0.8) + np.float32(kick[1]),
        "large": params["large"] * np.float32(0.7) + np.float32(kick[2]),
        "steps": params["steps"],
    }


def stacked_trees(trees):
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)


def of_worker(stacked, worker):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[worker], stacked)


def close(ours, reference, tolerance):
    for name in ours:
        np.testing.assert_allclose(
            np.asarray(ours[name]), reference[name], rtol=tolerance, atol=tolerance, err_msg=name
        )


def nobody_late(comm, chained):
    """The same as the XLA averager, 30 rounds; with ``chained`` in two exchanges at once, one as a transformation."""
    group_size, rounds = SIZES[comm.size], 30
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
                wait_for(lambda t=t: exchange._engine.complete(t))
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


def wait_for(condition, seconds=60):
    end = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < end, "waited too long"
        time.sleep(0.001)


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
    """No torn or mixed result, every result explained by the records, bit-equal after syncs, staleness bounded."""
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
        records = dict(exchange._engine.models.exchanged())
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


def tallies(comm):
    """What is counted between sync rounds adds up exactly; a worker that rests adds nothing."""
    start, big = {"w": np.zeros(3, np.float32)}, (1 << 63) - 1
    with wagma.GroupExchange(comm, start, group_size=2, sync_period=3, timeout_seconds=60) as exchange:
        counted, params = 0, start
        for t in range(6):
            counted += 10**comm.rank
            params, info = exchange.average(params, (counted, big, -1)[: comm.rank + 1])
            assert (info.tally == ()) == ((t + 1) % 3 != 0), info
            if info.tally:
                sums = (3 * sum(10**rank for rank in range(comm.size)), (comm.size - 1) * big, 2 - comm.size)
                assert info.tally == sums[: comm.size], info
                counted = 0
        for bad, words in ((1 << 63,), "at most 64 bits"), ((0.5,), "integers"), (7, "integers"), ("ab", "integers"):
            with pytest.raises(ValueError, match=words):
                exchange.average(params, bad)
            with pytest.raises(ValueError, match=words):
                exchange.meet(bad)
        if comm.rank == 0:
            assert exchange.meet((5,)) == (5, 7 * (comm.size - 1))
        else:
            for _ in range(3):
                _, info = exchange.average(params, (1,))
            assert info.tally == (comm.size - 1,), info
            assert exchange.meet((0, 7)) == (5, 7 * (comm.size - 1))
        assert exchange.round == 8
        assert exchange.meet(np.arange(3)) == (0, comm.size, 2 * comm.size)


def meetings(comm, sync_period, clock):
    """Nobody leaves a meeting before all have come; all stand at the same round then, and nothing else has happened."""
    start = {"w": np.zeros(3, np.float32)}
    options = {"group_size": 2, "sync_period": sync_period, "clock": clock, "timeout_seconds": 60}
    came = []
    with wagma.GroupExchange(comm, start, **options) as exchange:
        params = start
        for epoch in range(3):
            for _ in range(1 + 3 * ((comm.rank + epoch) % 2)):
                params, _ = exchange.average({"w": params["w"] + np.float32(comm.rank)})
            time.sleep(0.05 * (comm.rank == epoch))
            came.append(time.time())
            number, rounds = exchange.meet((1,)), exchange.round
            came[-1] = came[-1], time.time()
            assert number == (comm.size,)
            assert len(set(comm.allgather(rounds))) == 1, rounds
            assert exchange._engine.models.inbox.newest is None or exchange._engine.models.inbox.newest.round <= rounds
    everyone = comm.allgather(came)
    for times in zip(*everyone, strict=True):
        assert max(entered for entered, _ in times) <= min(left for _, left in times) + 1e-3, times


def interrupted(comm, sync_period):
    """A run that is interrupted at a meeting, and goes on in a new exchange, has the same bits as one that is not."""
    group_size, rounds = SIZES[comm.size], 18
    quorum = max(1, group_size - 1)
    schedule = wagma.GroupSchedule(comm.size, group_size, sync_period)
    rng = np.random.default_rng(comm.size)
    late = np.zeros((rounds, comm.size), bool)
    for t in range(rounds):
        for group in schedule.groups(t):
            late[t, rng.permutation(group)[min(quorum, len(group)) :]] = not schedule.is_sync(t)

    def run(stops):
        """Stops after these rounds; all that is known at its end."""
        start = {name: jnp.asarray(leaf) for name, leaf in tree(1.0).items()}
        start["half"] = jnp.linspace(-1, 1, 99, dtype=jnp.bfloat16)
        policy = dict.fromkeys(start, "mean") | {"matrix": "sync", "steps": "keep"}
        options = {"group_size": group_size, "sync_period": sync_period, "quorum": quorum}
        options |= {"policy": lambda path, leaf: policy[path[0].key], "timeout_seconds": 60}
        history, params, state = [], start, None
        begin = 0
        for end in (*stops, rounds):
            with wagma.GroupExchange(comm, params, state=state, **options) as exchange:
                params = exchange.params
                assert exchange.round == begin - 1
                for t in range(begin, end):
                    moved = local_step(params, comm.rank, t) | {"half": params["half"] * (1 + comm.rank)}
                    moved = {name: jnp.asarray(leaf, params[name].dtype) for name, leaf in moved.items()}
                    if late[t, comm.rank]:
                        wait_for(lambda t=t: exchange._engine.complete(t))
                    params, info = exchange.average(moved)
                    assert info.late == late[t, comm.rank], (t, info)
                    history.append((info._replace(waited_seconds=0.0), bits(params)))
                    comm.barrier()
                if end != rounds:
                    exchange.meet()
                    state = pickle.loads(pickle.dumps(exchange.state()))
                    assert state["round"] == end - 1
                    assert ("published" in state) != schedule.is_sync(end - 1), state.keys()
            begin = end
        return history

    whole, parts = run(()), run((4, 7, 12))
    for t, (expected, came) in enumerate(zip(whole, parts, strict=True)):
        assert expected == came, (t, expected[0], came[0])
    assert any(info.late for info, _ in whole) or group_size == 1


def bits(params):
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params))


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


def check(comm, rounds, floats):
    """What is checked with so many workers; each check is made with several numbers."""
    size, lateness = comm.size, {}
    checks = [
        lambda: nobody_late(comm, chained=size == 2),
        lambda: forced_lateness(comm, jnp.bfloat16 if size == 2 else jnp.float32),
    ]
    if size == 2:
        checks.append(lambda: stragglers(comm, floats, rounds // 10, "step"))
        checks.append(lambda: policies(comm))
        checks.append(lambda: other_device(comm))
    if size in (2, 3, 4):
        checks.append(lambda: tallies(comm))
        checks.append(lambda: meetings(comm, None if size == 4 else 5, "round" if size == 2 else "step"))
        checks.append(lambda: interrupted(comm, 5 if size == 3 else None))
    if size == 3:
        checks.append(lambda: unequal_steps(comm))
        checks.append(lambda: lateness.update(jumps=stragglers(comm, 1000, rounds // 6, "round")))
    if size == 6:
        checks.append(lambda: lateness.update(quorum_2=stragglers(comm, 1000, rounds // 10, "step", quorum=2)))
    if size not in (2, 6):
        number = rounds if size == 4 else rounds // 10
        checks.append(lambda: lateness.update(late=stragglers(comm, 1000, number, "step")))
    began = time.perf_counter()
    times = []
    for run in checks:
        run()
        barrier(comm)
        times.append(round(time.perf_counter() - began - sum(times), 1))
    if comm.rank == 0:
        print(f"{size} workers ok: {lateness}, {times} s", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--splits", nargs="*", type=int, default=[2, 3, 4, 8])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--floats", type=int, default=5_000_000)
    options = parser.parse_args()
    done = set()
    for first in options.splits:  # the first so many processes, and all others
        comm = WORLD.Split(WORLD.rank < first)
        sizes = {first, WORLD.size - first} - done
        if comm.size in sizes and (first != WORLD.size - first or WORLD.rank < first):
            check(comm, options.rounds, options.floats)
        done |= sizes
        barrier(WORLD)
        comm.Free()


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)
    main()
