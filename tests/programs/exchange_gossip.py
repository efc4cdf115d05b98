"""Bodies for MPI ranks: gossip between processes. As a program: the trajectories on all ranks there are."""

import gc
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from exchange_common import bits, close, local_step, tree
from exchange_small import expect
from mpi4py import MPI

from wagma_jax import algorithms
from wagma_jax.exchange import ExchangeError, GossipExchange
from wagma_jax.exchange.barrier import barrier
from wagma_jax.exchange.replay import replay
from wagma_jax.exchange.wire import polled
from wagma_jax.gossip import exponential, ring
from wagma_jax.protocol.mixing import Dpsgd, PushSum
from wagma_jax.schedule import GroupSchedule

KINDS = {"dpsgd": ("dpsgd", {}), "sgp": ("sgp", {}), "overlap": ("sgp", {"overlap": 1})}
FLOATS = ("scalar", "matrix", "large")


def open_exchange(comm, kind, start, **settings):
    name, options = KINDS[kind]
    algorithm = algorithms.find(name)
    own = algorithm.options(**options) if options else None
    settings = algorithms.Settings(comm.size, timeout_seconds=60, options=own, **settings)
    return algorithm.mpi(settings, comm, start)


class Papers:
    """x and w, float64, of all workers in lockstep, by loops over them."""

    def __init__(self, kind, start, size):
        self.kind, self.size, self.t, self.on_way = kind, size, 0, []
        self.graph = ring(size) if kind == "dpsgd" else exponential(size)
        self.x, self.w = [np.asarray(start, np.float64)] * size, [1.0] * size

    def round(self, steps):
        """One round, with the steps of those that have made one; the models after it."""
        size, t = self.size, self.t
        if self.kind == "dpsgd":
            mixed = [np.mean([self.x[j] for j in (i, *self.graph.receives_from(i, t))], 0) for i in range(size)]
            self.x = [mixed[i] + steps.get(i, 0.0) for i in range(size)]
        else:
            parts = len(self.graph.sends_to(0, t)) + 1
            self.x = [(self.x[i] + steps.get(i, 0.0)) / parts for i in range(size)]
            self.w = [each / parts for each in self.w]
            sent = [(dest, self.x[i], self.w[i]) for i in range(size) for dest in self.graph.sends_to(i, t)]
            counts, self.on_way = (self.on_way, sent) if self.kind == "overlap" else (sent, [])
            for dest, share, weight in counts:
                self.x[dest] = self.x[dest] + share
                self.w[dest] += weight
        self.t += 1
        return [x / w for x, w in zip(self.x, self.w, strict=True)]

    def mean(self, brought):
        """The global mean, with what is on its way."""
        assert abs(sum(self.w) + sum(weight for _, _, weight in self.on_way) - self.size) < 1e-12
        return (sum(self.x) + sum(share for _, share, _ in self.on_way)) / self.size + brought

    def gather(self, mean):
        """All take the mean."""
        self.x, self.w, self.on_way = [mean] * self.size, [1.0] * self.size, []


def trajectory(comm, kind, rounds):
    """The models are those of the papers, and those of the version inside of XLA, bit for bit where w is 1."""
    mine = []
    with open_exchange(comm, kind, tree(1.0)) as exchange:
        params = jax.tree.map(jnp.asarray, exchange.params)
        for t in range(rounds):
            stepped = local_step(params, comm.rank, t)
            before, (params, info) = params, exchange.average(stepped)
            assert info == info._replace(round=t, is_sync=False, late=False, staleness=0, base=t), info
            sources = set(exchange.schedule.receives_from(comm.rank, t - (kind == "overlap")))
            assert set(info.group) == {comm.rank} | (sources if t or kind != "overlap" else set())
            assert isinstance(params["large"], jax.Array)
            assert params["steps"] == 3
            mine.append(jax.tree.map(np.asarray, (before, stepped, params)))
    everyone = comm.gather(mine)
    if comm.rank:
        return
    papers = Papers(kind, tree(1.0)["large"], comm.size)
    for t in range(rounds):
        large = [[everyone[i][t][which]["large"].astype(np.float64) for i in range(comm.size)] for which in range(3)]
        expected = papers.round({i: large[1][i] - large[0][i] for i in range(comm.size)})
        np.testing.assert_allclose(large[2], expected, rtol=1e-5, atol=1e-5)
    name, options = KINDS[kind]
    own = algorithms.find(name).options(**options) if options else None
    strategy = algorithms.build(name, algorithms.Settings(comm.size, axis_name="w", options=own))
    stack = lambda t, which: jax.tree.map(lambda *x: np.stack(x), *(everyone[i][t][which] for i in range(comm.size)))
    run = jax.jit(jax.vmap(lambda tree, before, state: strategy.combine(tree, before, state, None)[:2], axis_name="w"))
    state = jax.vmap(strategy.init)(stack(0, 0))
    for t in range(rounds):
        models, state = run(stack(t, 1), stack(t, 0), state)
        for leaf in FLOATS:
            tolerance = 1e-6 if kind == "overlap" else 0  # where w is not 1, compilers may fuse z w + step
            np.testing.assert_allclose(models[leaf], stack(t, 2)[leaf], rtol=tolerance, atol=tolerance)


def unequal(comm, kind, seed):
    """Random delays, unequal numbers of steps, meetings, a mean in their midst: no step is lost, none counts twice."""
    delays, size = np.random.default_rng((seed, comm.rank)), comm.size
    counts = np.random.default_rng(seed).integers(0, 5, (4, size))  # steps of each worker in each part
    steps, seen = {}, []
    with open_exchange(comm, kind, tree(1.0)) as exchange:
        taken = exchange.params

        def some(count, taken):
            for _ in range(count):
                stepped = local_step(taken, comm.rank, exchange.round + 1)
                if delays.random() < 0.3:
                    time.sleep(delays.exponential(0.01))
                before, (taken, info) = taken, exchange.average(stepped)
                steps[info.round] = np.subtract(*(np.asarray(x["large"], np.float64) for x in (stepped, before)))
            return taken

        for part, rest in enumerate(("meet", "consensus", "meet")):
            taken = some(counts[part][comm.rank], taken)
            if rest == "meet":
                assert exchange.meet((1, comm.rank)) == (size, size * (size - 1) // 2)
                share = np.asarray(exchange.share(taken)["large"], np.float64)
                seen.append((exchange.round, comm.allreduce(share) / size))
            else:
                taken = exchange.consensus(taken | {"large": np.asarray(taken["large"]) + np.float32(comm.rank)})
                seen.append((exchange.round, np.asarray(taken["large"])))
        some(counts[3][comm.rank], taken)
    steps, everyone = comm.gather(steps), comm.gather([(r, x.tobytes()) for r, x in seen])
    if comm.rank:
        return
    assert all(one == everyone[0] for one in everyone)
    papers = Papers(kind, tree(1.0)["large"], size)
    for (newest, mean), is_mean in zip(seen, (False, True, False), strict=True):
        for t in range(papers.t, newest + 1):
            papers.round({i: steps[i][t] for i in range(size) if t in steps[i]})
        expected = papers.mean((size - 1) / 2 if is_mean else 0.0)
        np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-5)
        if is_mean:
            papers.gather(expected)


def resumed(comm, kind):
    """A run that goes on from a meeting, at which not all had made equally many steps, has the bits of one that did."""

    def some(exchange, params, rounds):
        while exchange.round + 1 < rounds:
            params, _ = exchange.average(local_step(params, comm.rank, exchange.round + 1))
        return params

    with open_exchange(comm, kind, tree(1.0)) as exchange:
        kept = some(exchange, exchange.params, 5 + comm.rank % 2)
        exchange.meet()
        assert exchange.round == 5
        state = exchange.state()
        through = some(exchange, kept, 9)
        end = exchange.consensus(through)
    assert ("published" in state) == (comm.rank % 2 == 0)
    assert ("came" in state) == ("weight" in state) == (kind == "overlap")
    saved = jax.tree.map(np.array, state)
    with open_exchange(comm, kind, kept, state=saved) as exchange:
        assert exchange.round == 5
        assert bits(exchange.params) == bits(kept)
        again = some(exchange, exchange.params, 9)
        assert bits(again) == bits(through)
        assert bits(exchange.consensus(again)) == bits(end)
    if kind == "overlap":
        with expect(Exception, "state['came'] does not fit to params"):  # whoever finds it first tells the others
            open_exchange(comm, kind, kept, state=saved | {"came": saved["came"][:-1]})
        comm.barrier()


def alone(comm, kind):
    """One worker is plain optax, in a jitted step as well."""
    optimizer = optax.adam(0.1)
    grads = lambda params: jax.tree.map(lambda x: x * 3 - 1, params)
    start = jax.tree.map(jnp.asarray, {name: tree(1.0)[name] for name in FLOATS})

    @jax.jit
    def plain(params, state):
        updates, state = optimizer.update(grads(params), state, params)
        return optax.apply_updates(params, updates), state

    expected, state = start, optimizer.init(start)
    params, own, in_step = start, optimizer.init(start), start
    with open_exchange(comm, kind, start) as exchange, open_exchange(comm, kind, start) as other:
        chain = optax.chain(optimizer, other.as_transformation())

        @jax.jit
        def step(params, state):
            updates, state = chain.update(grads(params), state, params)
            return optax.apply_updates(params, updates), state

        of_chain = chain.init(start)
        for t in range(5):
            expected, state = plain(expected, state)
            stepped, own = plain(params, own)
            params, info = exchange.average(stepped)
            assert params is stepped, "nothing is copied"
            assert (info.round, info.group) == (t, (0,))
            in_step, of_chain = step(in_step, of_chain)
        assert bits(params) == bits(expected)
        close(in_step, jax.tree.map(np.asarray, expected), 1e-6)
        assert bits(exchange.consensus(params)) == bits(expected)
        assert bits(exchange.share(params)) == bits(expected)
        assert exchange.state() == {"round": 4, "base": 4, "version": 4}


def fails(comm, kind):
    """Rank 1 fails while others wait for it, and for those that wait; a timeout names it; a run after it goes well."""
    with (
        expect(LookupError if comm.rank == 1 else ExchangeError, "no more data"),
        open_exchange(comm, kind, tree(1.0)) as exchange,
    ):
        params = exchange.params
        for t in range(6):
            if comm.rank == 1 and t == 3:
                raise LookupError("no more data")
            params, _ = exchange.average(params)
    barrier(comm)
    words = "has waited for", "rank 1 has not arrived at round 1: it has computed for"
    with expect(Exception, *words), open_exchange(comm, kind, tree(1.0)) as exchange:
        params, _ = exchange.average(exchange.params)
        exchange.meet()
        exchange.timeout_seconds = 0.5
        while comm.rank == 1 and not exchange._engine.state.life.aborted:
            time.sleep(0.01)
        for _ in range(9):
            params, _ = exchange.average(params)
    barrier(comm)
    with open_exchange(comm, kind, tree(1.0)) as exchange:
        params, _ = exchange.average(exchange.params)
        close(exchange.consensus(params), tree(1.0), 1e-6)


def refused(comm):
    """What cannot be right is refused on all ranks, before anything is sent."""
    with expect(ValueError, "the schedule is for num_workers=7, but the communicator has"):
        GossipExchange(comm, tree(1.0), ring(7), Dpsgd())
    with expect(TypeError, "schedule must be a GossipSchedule, got"):
        GossipExchange(comm, tree(1.0), GroupSchedule(comm.size, 1), Dpsgd())
    with expect(ValueError, "policy() returned 'sync', but gossip has no sync rounds"):
        policy = lambda path, leaf: "sync" if leaf.dtype.kind == "f" else "keep"
        GossipExchange(comm, tree(1.0), ring(comm.size), Dpsgd(), policy=policy)
    with expect(ValueError, "mixing is"):
        GossipExchange(comm, tree(1.0), ring(comm.size), Dpsgd() if comm.rank else PushSum())
    with expect(ValueError, "clock='round' lets slow workers take fewer steps"):
        open_exchange(comm, "dpsgd", tree(1.0), clock="round")
    barrier(comm)
    with open_exchange(comm, "sgp", tree(1.0)) as exchange:
        params, _ = exchange.average(exchange.params)
        with expect(RuntimeError, "share() was called while others may be training"):
            exchange.share(params)


def skips(comm, kind):
    """A step that is not finite is left out; bfloat16 is mixed in float32; in a jitted step."""
    start = {"w": jnp.arange(6, dtype=jnp.bfloat16), "n": np.int32(2)}
    with open_exchange(comm, kind, start, on_nonfinite="skip") as exchange:
        params, link = jax.tree.map(jnp.asarray, exchange.params), exchange.as_transformation()

        @jax.jit
        def step(params, kick):
            updates, _ = link.update({"w": kick, "n": jnp.zeros_like(params["n"])}, link.init(params), params)
            return optax.apply_updates(params, updates)

        for t in range(3):
            bad = t == 1 and comm.rank == 0
            params = jax.block_until_ready(step(params, jnp.full(6, jnp.nan if bad else 1.0, jnp.bfloat16)))
            assert exchange.info.nonfinite == bad
        mean = exchange.consensus(params)
    steps = (3 * comm.size - 1) / comm.size
    np.testing.assert_allclose(np.asarray(mean["w"], np.float32), np.arange(6) + steps, atol=0.05)


def replayed(comm, kind, folder):
    """A run with a rest, a mean and steps that are not finite, and its replay on the first rank: the same bits."""

    def step(rank, call, params):
        stepped = local_step(params, rank, call)
        return stepped | ({"large": stepped["large"] * np.float32(np.nan)} if (call + rank) % 5 == 3 else {})

    results = []
    with open_exchange(comm, kind, tree(1.0), ledger=folder, on_nonfinite="skip") as exchange:
        params = exchange.params
        for part in range(3):
            for _ in range(3 + (comm.rank + part) % 2):
                params, _ = exchange.average(step(comm.rank, len(results), params))
                results.append(bits(params))
            if part == 0:
                exchange.meet()
            elif part == 1:
                params = exchange.consensus(params)
                exchange.state()
    everyone = comm.gather((results, bits(params)))
    if comm.rank:
        return None
    seen = [[] for _ in everyone]
    found = replay(folder, tree(1.0), step, observe=lambda rank, call, params: seen[rank].append(bits(params)))
    for rank, (calls, last) in enumerate(everyone):
        assert seen[rank] == calls, f"rank {rank}"
        assert bits(found[rank]) == last
    return len(seen[0])


def leaks(comm, kind, cycles):
    """Exchanges one after the other leave no arrays, threads or requests behind."""
    start, counts, before = tree(1.0), [], set(polled._posted)
    for _ in range(cycles):
        exchange = open_exchange(comm, kind, start)
        params = exchange.params
        for t in range(3 + comm.rank % 2):
            params, _ = exchange.average(local_step(params, comm.rank, t))
        exchange.consensus(params)
        engine = exchange._engine
        exchange.close()
        assert not len(engine._pool)
        assert polled._posted <= before, "every message has come, or was cancelled"
        del exchange, engine, params
        gc.collect()
        counts.append((len(jax.live_arrays()), threading.active_count()))
    assert counts[-1] == counts[1], counts


def main():
    for kind in KINDS:
        trajectory(MPI.COMM_WORLD, kind, 12)
        for seed in range(5):
            unequal(MPI.COMM_WORLD, kind, seed)


if __name__ == "__main__":
    main()
