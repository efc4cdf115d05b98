"""Bodies for MPI ranks: gossip between processes. As a program: the trajectories on all ranks there are."""

import functools
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from exchange_common import bits, local_step, tree
from mpi4py import MPI

from wagma_jax import algorithms
from wagma_jax.exchange import ExchangeError
from wagma_jax.exchange.barrier import barrier
from wagma_jax.gossip import exponential, ring

KINDS = {"dpsgd": ("dpsgd", {}), "sgp": ("sgp", {}), "overlap": ("sgp", {"overlap": 1})}
FLOATS = ("scalar", "matrix", "large")


def open_exchange(comm, kind, start, **settings):
    name, options = KINDS[kind]
    algorithm = algorithms.find(name)
    own = algorithm.options(**options) if options else None
    settings = algorithms.Settings(comm.size, timeout_seconds=60, options=own, **settings)
    return algorithm.mpi(settings, comm, start)


def by_the_papers(kind, size, steps):
    """x and w, float64, after each round: loops over workers; steps [round][worker], a number or None."""
    graph = ring(size) if kind == "dpsgd" else exponential(size)
    x, w, on_way, found = [1.0] * size, [1.0] * size, [], []
    step_of = lambda t, i: steps[t][i]
    for t in range(len(steps)):
        moved = [0.0 if step_of(t, i) is None else step_of(t, i)(x[i] / w[i]) - x[i] / w[i] for i in range(size)]
        if kind == "dpsgd":
            x = [np.mean([x[j] for j in (i, *graph.receives_from(i, t))]) + moved[i] for i in range(size)]
        else:
            parts = len(graph.sends_to(0, t)) + 1
            x = [(x[i] + moved[i]) / parts for i in range(size)]
            w = [each / parts for each in w]
            sent = [(dest, x[i], w[i]) for i in range(size) for dest in graph.sends_to(i, t)]
            counts, on_way = (on_way, sent) if kind == "overlap" else (sent, [])
            for dest, share, weight in counts:
                x[dest] += share
                w[dest] += weight
        found.append([a / b for a, b in zip(x, w, strict=True)])
    return found


def scalar_step(worker, t):
    return lambda x: float(local_step({name: np.float64(x) for name in (*FLOATS, "steps")}, worker, t)["scalar"])


def trajectory(comm, kind, rounds):
    """The models of every round: those of the papers, and those of the version inside of XLA, bit for bit where w is 1."""
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
    steps = [[scalar_step(i, t) for i in range(comm.size)] for t in range(rounds)]
    expected = by_the_papers(kind, comm.size, steps)
    for t in range(rounds):
        found = [float(everyone[i][t][2]["scalar"]) for i in range(comm.size)]
        np.testing.assert_allclose(found, expected[t], rtol=2e-5, atol=2e-6)
    name, options = KINDS[kind]
    own = algorithms.find(name).options(**options) if options else None
    strategy = algorithms.build(name, algorithms.Settings(comm.size, axis_name="w", options=own))
    stack = lambda t, which: jax.tree.map(lambda *x: np.stack(x), *(everyone[i][t][which] for i in range(comm.size)))
    run = jax.jit(jax.vmap(lambda tree, before, state: strategy.combine(tree, before, state, None)[:2], axis_name="w"))
    state = jax.vmap(strategy.init)(stack(0, 0))
    for t in range(rounds):
        models, state = run(stack(t, 1), stack(t, 0), state)
        for leaf in FLOATS:
            ulps = 4 if kind == "overlap" else 0  # where weights are not 1, compilers may fuse x w + step
            np.testing.assert_array_max_ulp(np.asarray(models[leaf]), stack(t, 2)[leaf], ulps)


def main():
    for kind in KINDS:
        trajectory(MPI.COMM_WORLD, kind, 12)


if __name__ == "__main__":
    main()
