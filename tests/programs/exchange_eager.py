"""Bodies for MPI ranks: EagerExchange. Most gradients are integers, so that sums are exact and tell what is in them."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from exchange_common import bits, wait_for
from exchange_small import expect

import wagma_jax as wagma
from wagma_jax.exchange.barrier import barrier
from wagma_jax.protocol.messages import Kind
from wagma_jax.protocol.plan import PartialPlan

TAU = 5
LARGE = 40_000  # floats of a buffer that is sent ahead


def gradient(worker, t, size=8):
    """An integer that depends on the worker and on its step."""
    return np.float32(1 + (worker * 7 + t * 3) % 11) * np.ones(size, np.float32)


def opened(comm, params, **options):
    return wagma.EagerExchange(comm, params, **{"sync_period": TAU, "timeout_seconds": 60, **options})


def nobody_late(comm):
    """With all arrivals waited for it is Allreduce-SGD: the same as optax on the mean gradient."""
    optimizer = optax.adam(0.1)
    update = jax.jit(optimizer.update)
    targets = np.random.default_rng(0).normal(size=(comm.size, 8)).astype(np.float32)
    start = {"w": np.ones(8, np.float32), "n": np.int32(7)}
    with opened(comm, start, quorum=comm.size) as exchange:
        params, expected = exchange.params, np.ones(8, np.float32)
        state, reference = optimizer.init(params["w"]), optimizer.init(expected)
        for t in range(2 * TAU):
            grads, info = exchange.average({"w": params["w"] - targets[comm.rank], "n": params["n"]})
            assert info == info._replace(round=t, is_sync=(t + 1) % TAU == 0, late=False, staleness=0, base=t)
            updates, state = update(grads["w"], state)
            params = {"w": np.asarray(params["w"]) + np.asarray(updates), "n": grads["n"]}
            updates, reference = update(expected - targets.mean(0), reference)
            expected = expected + np.asarray(updates)
            np.testing.assert_allclose(params["w"], expected, rtol=1e-5, atol=1e-6)
            assert params["n"] == 7
        mean = exchange.consensus(params)
        np.testing.assert_allclose(mean["w"], expected, rtol=1e-5, atol=1e-6)


def in_a_step(comm):
    """As the first link of a chain in a jitted step; with a leaf that is kept."""
    start = {"w": np.ones(8, np.float32), "n": np.int32(7)}
    targets = np.random.default_rng(0).normal(size=(comm.size, 8)).astype(np.float32)
    with opened(comm, start, quorum=comm.size, sync_period=3) as exchange:
        optimizer = optax.chain(
            exchange.as_transformation(), optax.masked(optax.sgd(0.1, momentum=0.9), {"w": 1, "n": 0})
        )
        with expect(ValueError, "every must be 1, got 2"):
            exchange.as_transformation(every=2)

        @jax.jit
        def step(params, state):
            updates, state = optimizer.update({"w": params["w"] - targets[comm.rank], "n": jnp.int32(0)}, state, params)
            return optax.apply_updates(params, updates), state

        params, state = exchange.params, optimizer.init(exchange.params)
        expected, velocity = np.ones(8), 0.0
        for t in range(5):
            params, state = step(params, state)
            velocity = 0.9 * velocity + expected - targets.mean(0)
            expected = expected - 0.1 * velocity
            np.testing.assert_allclose(params["w"], expected, rtol=1e-5, atol=1e-6)
            assert (exchange.info.round, exchange.info.is_sync) == (t, t == 2)
            if exchange.info.is_sync:
                params = exchange.consensus(params)
        assert params["n"] == 7


def once(comm, start, clock, rounds, size):
    """Random delays: what a worker has applied after its last sync round is the sum of all gradients until then."""
    rng = np.random.default_rng((comm.rank, rounds))
    applied, handed, late, calls = np.zeros(size), 0.0, 0, 0
    versions = []
    with opened(comm, {"w": np.zeros(size, np.float32)}, start=start, seed=3, clock=clock) as exchange:
        while exchange.round + 1 < rounds:
            if rng.random() < 0.4:
                time.sleep(rng.exponential(0.01))
            grads = gradient(comm.rank, calls, size) * comm.size
            result, info = exchange.average({"w": grads})
            calls += 1
            assert info.group == tuple(range(comm.size))
            applied = applied + np.asarray(result["w"], np.float64)
            handed += float(grads[0]) / comm.size
            late += info.late
            versions += [version for version in info.contributed_rounds if version > info.round]
            if info.is_sync and info.round < rounds:  # to later ones not all come
                assert not info.late
                counts = exchange.consensus({"w": np.float32(applied)})
                np.testing.assert_allclose(counts["w"], applied, rtol=1e-6)  # equal on all
                assert exchange._engine.models.pending.total is None
                np.testing.assert_array_equal(applied, np.full(size, comm.allreduce(handed)))
        exchange.meet()
        store = exchange._engine.models
        left = 0.0 if store.pending.total is None else float(store.pending.total[0][0]) / comm.size
        untaken = 0.0 if store.untaken.total is None else float(store.untaken.total[0][0])
        everything = comm.allreduce(handed - left)
        np.testing.assert_array_equal(applied + untaken, np.full(size, everything))
        barrier(comm)
    assert not versions
    return calls, late


def forced(comm):
    """The last rank is late on purpose in the first two rounds: what it contributes, by hand."""
    P, last, got = comm.size, comm.rank == comm.size - 1, []
    with opened(comm, {"w": np.float32(0)}, quorum=P - 1, sync_period=4) as exchange:
        for t in range(4):
            if last and t < 2:
                wait_for(lambda t=t: exchange._engine.state.round > t)
            elif t == 2:  # whoever comes last here is late, so all have to hand in the same
                barrier(comm)
            value = 10 ** (t if last else 4) if t < 2 else 0
            result, info = exchange.average({"w": np.float32(P * value)})
            got.append((float(result["w"]), info.late, info.staleness, info.contributed_rounds))
            barrier(comm)
    others = (P - 1) * 10.0**4
    # in round 0 the last rank has nothing, in round 1 its gradient of round 0, afterwards that of round 1
    for t, total in enumerate([others, others + 1]):
        versions = (*[t] * (P - 1), t - 1)
        assert got[t] == (total, last, int(last), versions), got
    assert got[2][0] + got[3][0] == 10
    assert got[3][1:] == (False, 0, (3,) * P)


def majority(comm):
    """A round begins with the worker that is drawn for it, and with nobody else."""
    plan, applied, handed = PartialPlan(comm.size, None, seed=3), 0.0, 0.0
    assert {plan.step(0, r).initiator for r in range(6)} == {0, 1}
    with opened(comm, {"w": np.float32(0)}, start="majority", seed=3, sync_period=None) as exchange:
        for t in range(6):
            initiates = plan.step(0, t).initiator == comm.rank
            if t % 2 == 0 and not initiates:  # begins without this rank
                wait_for(lambda t=t: exchange._engine.state.round > t)
            if t % 2 == 1 and initiates:  # does not begin without this one
                wait_for(
                    lambda t=t, other=1 << (1 - comm.rank): exchange._engine.state.facts.who(t, Kind.ARRIVED) & other
                )
                assert exchange._engine.state.round == t
            result, info = exchange.average({"w": np.float32(2**t * comm.size)})
            assert info.late == (t % 2 == 0 and not initiates)
            applied += float(result["w"])
            handed += 2.0**t * comm.size
            barrier(comm)
            late = 2.0**t if t % 2 == 0 else 0.0
            assert applied == handed - late
            assert info.contributed_rounds[comm.rank] == t - info.late


def lags(comm):
    """Rank 1 sleeps through rounds and takes all their results at once, and then zeros; what is pending is saved."""
    tree = lambda value: {"w": np.full(LARGE, value, np.float32)}
    with opened(comm, tree(0), sync_period=None) as exchange:
        results = []
        if comm.rank == 1:
            wait_for(lambda: exchange._engine.state.round == 4)
        for t in range(4):
            result, info = exchange.average(tree(2 + 2 * t))
            results.append(float(result["w"][-1]))
            assert info.base == (3 if comm.rank == 1 else t)
        others = [1.0 + t for t in range(4)]
        assert results == ([10, 0, 0, 0] if comm.rank == 1 else others), results
        exchange.meet()
        state = jax.tree.map(np.asarray, exchange.state())
    assert ("pending" in state) == (comm.rank == 1)
    assert "untaken" not in state
    with opened(comm, tree(0), state=state, quorum=2) as exchange:
        result, info = exchange.average(tree(2))
        assert (info.round, info.is_sync) == (4, True)
        np.testing.assert_array_equal(result["w"], np.full(LARGE, 2 + 10, np.float32))


def misses(comm):
    """Rank 1 goes to a meeting early: the results of the rounds that it misses are kept, saved, and taken later."""
    with opened(comm, {"w": np.float32(0)}, sync_period=None) as exchange:
        if comm.rank == 1:
            wait_for(lambda: exchange._engine.state.round == 1)
        result, info = exchange.average({"w": np.float32(2)})
        assert (float(result["w"]), info.late) == (1, comm.rank == 1)
        barrier(comm)
        if comm.rank == 0:
            results = [float(exchange.average({"w": np.float32(2 * 10**t)})[0]["w"]) for t in range(1, 4)]
            assert results == [11, 100, 1000]
        exchange.meet()
        assert exchange.round == 3
        state = jax.tree.map(np.asarray, exchange.state())
    assert ("untaken" in state) == (comm.rank == 1)
    assert "pending" not in state
    with opened(comm, {"w": np.float32(0)}, state=state, sync_period=None, quorum=2) as exchange:
        result, info = exchange.average({"w": np.float32(2)})
        assert float(result["w"]) == (2 + 1111 if comm.rank == 1 else 2)
        assert (info.base, info.late) == (4, False)


def unequal_steps(comm):
    """Ranks stop after different numbers of steps; sync rounds go on with the statistics of those that rest."""
    tree = {"w": np.float32(0), "stats": np.float32(0)}
    policy = lambda path, leaf: "sync" if path[0].key == "stats" else "mean"
    total = 0.0
    with opened(comm, tree, policy=policy, sync_period=3) as exchange:
        steps = 6 - 2 * (comm.rank == 0)
        for t in range(steps):
            result, info = exchange.average({"w": np.float32(comm.size), "stats": np.float32(comm.rank + t)})
            total += float(result["w"])
            if info.is_sync:
                expected = np.mean([rank + (min(t, 3) if rank == 0 else t) for rank in range(comm.size)])
                np.testing.assert_allclose(result["stats"], expected, rtol=1e-6)
            else:
                assert result["stats"] == comm.rank + t
        if comm.rank:
            assert total == 6 * (comm.size - 1) + 4


def resumes(comm):
    """A run in which nobody is late goes on bit for bit."""

    def run(exchange, params, first, until):
        for t in range(first, until):
            kick = np.float32(comm.rank + t)
            grads, info = exchange.average({name: (x * 0.3 + kick).astype(x.dtype) for name, x in params.items()})
            params = {name: (x - 0.1 * grads[name]).astype(x.dtype) for name, x in params.items()}
            if info.is_sync:
                params = exchange.consensus(params)
        return params

    start = {"w": jnp.linspace(-1, 1, 300), "half": jnp.linspace(-1, 1, 200).astype(jnp.bfloat16)}
    with opened(comm, start, quorum=comm.size) as exchange:
        once = run(exchange, exchange.params, 0, 8)
    with opened(comm, start, quorum=comm.size) as exchange:
        params = run(exchange, exchange.params, 0, 5)
        state = jax.tree.map(np.asarray, exchange.state())
    assert set(state) == {"round", "base", "version"}
    with opened(comm, params, state=state, quorum=comm.size) as exchange:
        assert exchange.round == 4
        assert bits(exchange.params) == bits(params)
        again = run(exchange, exchange.params, 5, 8)
    assert bits(again) == bits(once)


def alone(comm):
    """P = 1 is plain optax."""
    optimizer = optax.adam(0.1)
    update = jax.jit(optimizer.update)
    with opened(comm, {"w": np.float32(1)}, sync_period=3) as exchange:
        params, expected = exchange.params, {"w": jnp.float32(1)}
        state, reference = optimizer.init(params), optimizer.init(expected)
        for t in range(7):
            grads, info = exchange.average(params)
            assert (info.round, info.late, info.is_sync) == (t, False, (t + 1) % 3 == 0)
            updates, state = update(grads, state)
            params = optax.apply_updates(params, updates)
            updates, reference = update(expected, reference)
            expected = optax.apply_updates(expected, updates)
        assert bits(params) == bits(expected)
        assert bits(exchange.consensus(params)) == bits(params)


def fails(comm):
    """Rank 1 fails in the middle of rounds; all others hear of it, and can begin again."""
    for rounds in (0, 3):
        kind = LookupError if comm.rank == 1 else wagma.ExchangeError
        options = {"start": "majority", "sync_period": None}
        with expect(kind, "no more data"), opened(comm, {"w": np.float32(0)}, **options) as exchange:
            for _ in range(rounds):
                exchange.average({"w": np.float32(1)})
            if comm.rank == 1:
                raise LookupError("no more data")
            while True:
                exchange.average({"w": np.float32(1)})
        barrier(comm)


def misuse(comm):
    """Errors are raised on all ranks before anything is sent."""
    cases = [
        ({"start": "all"}, "start must be 'solo' or 'majority', got 'all'"),
        ({"seed": -1}, "seed must be between 0 and"),
        ({"quorum": comm.size + 1}, f"quorum must be between 1 and {comm.size}, got {comm.size + 1}"),
        ({"quorum": 2, "start": "majority"}, "quorum is for start='solo', got 2 with start='majority'"),
        ({"clock": "wall"}, "clock must be 'step' or 'round', got 'wall'"),
        ({"sync_period": 0}, "sync_period"),
        ({"seed": comm.rank}, "rank 1 and rank 0 differ: seed is 1 there, and 0 on rank 0"),
        ({"state": {"round": 0}}, "state must be what state() of such an exchange returned"),
    ]
    at = {"round": 0, "base": 0, "version": 0}
    cases.append(({"state": at | {"pending": [np.zeros(1, np.float32)]}}, "state must be of the same params"))
    for options, message in cases:
        with expect(ValueError, message):
            opened(comm, {"w": np.zeros(40, np.float32)}, **options)
    barrier(comm)


if __name__ == "__main__":
    from mpi4py import MPI

    WORLD = MPI.COMM_WORLD
    for settings in (("solo", "step"), ("majority", "step"), ("majority", "round")):
        calls, late = once(WORLD, *settings, 60, 1000)
        if WORLD.rank == 0:
            print(f"{WORLD.size} workers: {settings} {calls} calls, {late} late", flush=True)
    nobody_late(WORLD)
    forced(WORLD)
    unequal_steps(WORLD)
