"""What every algorithm keeps across processes, whatever it exchanges: one set of bodies for all of them."""

import dataclasses
import gc
import threading
import time
from typing import Any

import jax
import numpy as np
import optax
from exchange_common import bits
from papers import reference

from wagma_jax.algorithms import ALGORITHMS, Settings, find
from wagma_jax.algorithms.sgp import SgpOptions
from wagma_jax.exchange import MPI

RATE = 0.1
PERIOD = 4


@dataclasses.dataclass
class Worker:
    """A training loop that knows no algorithm; ``gradient`` maps parameters to this worker's gradient."""

    name: str
    comm: Any
    gradient: Any
    settings: Settings
    params: Any = None

    def __enter__(self):
        self.algorithm = find(self.name)
        like = {"params": np.zeros(3, np.float32) if self.params is None else self.params}
        self.exchange = self.algorithm.mpi(self.settings, self.comm, like)
        self.exchange.__enter__()
        self.params = self.exchange.params["params"] if self.params is None else self.params
        return self

    def __exit__(self, *error):
        self.exchange.__exit__(*error)

    def step(self, rate=RATE):
        """One step and one round."""
        grads = self.gradient(np.asarray(self.params))
        if self.algorithm.exchanges == "models":
            tree, info = self.exchange.average({"params": np.asarray(self.params) - np.float32(rate) * grads})
            self.params = tree["params"]
            return info
        tree, info = self.exchange.average({"params": grads})
        self.params = np.asarray(self.params) - np.float32(rate) * np.asarray(tree["params"])
        if info.is_sync and self.algorithm.drifts:
            self.params = self.consensus()
        return info

    def consensus(self):
        """The mean of all models."""
        return np.asarray(self.exchange.consensus({"params": self.params})["params"])


def settings_of(name, comm, synchronous=True, overlap=0, **others):
    """Settings with which nobody is late, unless ``synchronous`` is false."""
    size = min(2, comm.size)
    quorum = {"wagma": size, "eager": comm.size}.get(name, 1) if synchronous else 1
    options = SgpOptions(overlap) if overlap else None
    others = {"sync_period": PERIOD, "timeout_seconds": 60} | others
    return Settings(comm.size, comm.size if name == "eager" else size, quorum=quorum, options=options, **others)


def quadratic(targets, rank):
    return lambda params: params - targets[rank].astype(np.float32)


def trajectory(comm, name, targets, rounds, overlap=0):
    """This rank's models after each round, [rounds, 3]; nobody is late."""
    models = []
    with Worker(name, comm, quadratic(targets, comm.rank), settings_of(name, comm, overlap=overlap)) as worker:
        for _ in range(rounds):
            worker.step()
            models.append(np.asarray(worker.params))
    return models


def delays(kind, rank, size):
    """Endless seconds of a straggler."""
    own, common = np.random.default_rng(rank), np.random.default_rng(99)
    while True:
        yield {
            "rotating": 0.004 * (common.integers(size) == rank),
            "fixed": 0.003 * (rank == 1),
            "lognormal": 0.001 * float(np.exp(own.normal())),
        }[kind]


def trained(comm, name, rounds, gradient, rate):
    """The mean of all models after so many rounds, with each kind of straggler in turn."""
    with Worker(name, comm, gradient, settings_of(name, comm, synchronous=False)) as worker:
        pauses = [delays(kind, comm.rank, comm.size) for kind in ("lognormal", "fixed", "rotating")]
        for t in range(rounds):
            time.sleep(next(pauses[len(pauses) * t // rounds]))
            worker.step(rate / (1 + 14 * t / rounds))
            if worker.exchange.sync_period is None and t % PERIOD == PERIOD - 1:
                worker.exchange.meet()  # as training scripts do
        return worker.consensus()


def converges(comm, name, rounds):
    """To the optimum of a mean quadratic."""
    targets = np.random.default_rng(3).normal(size=(comm.size, 3))
    mean = trained(comm, name, rounds, quadratic(targets, comm.rank), 0.3)
    error = np.abs(mean - targets.mean(0)).max()
    assert error < 0.2, (name, error)


def fits(comm, name, rounds):
    """A shared logistic regression."""
    rng = np.random.default_rng(3)
    points = rng.normal(size=(comm.size, 40, 3)).astype(np.float32)
    labels = (points @ [1.0, -2.0, 0.5] + 2 * rng.normal(size=points.shape[:2]) > 0).astype(np.float32)

    def gradient(params):
        x, y = points[comm.rank], labels[comm.rank]
        return (x.T @ (1 / (1 + np.exp(-(x @ params))) - y) / len(y)).astype(np.float32)

    def loss(params):
        z = points @ params
        return float(np.mean(np.logaddexp(0, z) - labels * z))

    best, x = np.zeros(3), points.reshape(-1, 3)
    for _ in range(10):  # Newton's method
        chance = 1 / (1 + np.exp(-(x @ best)))
        curvature = (x.T * (chance * (1 - chance))) @ x
        best -= np.linalg.solve(curvature, x.T @ (chance - labels.ravel()))
    found = loss(trained(comm, name, rounds, gradient, 3.0))
    assert loss(best) - 1e-6 <= found < loss(best) + 0.02, (name, found, loss(best))


def keeps_the_mean(comm, name):
    """Without steps the mean of models that differ stays, whatever the delays; push-sum's mass among it."""
    rng = np.random.default_rng(comm.rank)
    with Worker(name, comm, None, settings_of(name, comm)) as worker:
        own = rng.normal(size=3).astype(np.float32)
        mean = np.mean(comm.allgather(own), 0)
        params = own
        for _ in range(9):
            time.sleep(rng.exponential(1e-3))
            params, _ = worker.exchange.average({"params": params})
            params = params["params"]
        worker.exchange.meet()
        share = np.asarray(worker.exchange.share({"params": params})["params"])
        np.testing.assert_allclose(np.mean(comm.allgather(share), 0), mean, atol=1e-6)
        worker.params = params
        np.testing.assert_allclose(worker.consensus(), mean, atol=1e-6)


def unequal(comm, name):
    """Workers with fewer steps rest while others train on; all end with the same model, and leave nothing behind."""
    threads, targets = set(threading.enumerate()), np.random.default_rng(5).normal(size=(comm.size, 3))
    arrays = len(jax.live_arrays())
    for _ in range(2):
        settings = settings_of(name, comm, synchronous=False, sync_period=None)
        with Worker(name, comm, quadratic(targets, comm.rank), settings) as worker:
            for _ in range(3 + 4 * comm.rank):
                worker.step()
            mean = worker.consensus()
            assert len(set(comm.allgather(bits({"w": mean})))) == 1
            assert np.isfinite(mean).all()
            worker.params = mean
            for _ in range(2 * (comm.size - comm.rank)):
                worker.step()
        del worker
    gc.collect()
    assert set(threading.enumerate()) <= threads
    left = len(jax.live_arrays()) - arrays
    assert left <= 4, left


def resumes(comm, name, rounds, overlap=0):
    """A run that is interrupted at a meeting goes on with the same bits; nobody is late."""
    targets = np.random.default_rng(7).normal(size=(comm.size, 3))

    def run(stops):
        models, params, state, begin = [], None, None, 0
        for end in (*stops, rounds):
            settings = settings_of(name, comm, overlap=overlap, state=state)
            with Worker(name, comm, quadratic(targets, comm.rank), settings, params) as worker:
                for _ in range(begin, end):
                    worker.step()
                    models.append(bits({"w": worker.params}))
                worker.exchange.meet()
                state, params, begin = worker.exchange.state(), worker.params, end
        return models

    assert run(()) == run((rounds // 2 + 1,))


def alone(comm, name):
    """One worker is the local optimizer, with momentum."""
    optimizer = optax.sgd(RATE, momentum=0.9)
    step = jax.jit(optimizer.update)
    plain = ours = np.ones(3, np.float32)
    states = [optimizer.init(plain)] * 2
    algorithm = find(name)
    with algorithm.mpi(settings_of(name, comm), comm, {"params": plain}) as exchange:
        for _ in range(6):
            grads = np.cos(plain)
            updates, states[0] = step(grads, states[0])
            plain = plain + np.asarray(updates)
            grads = np.cos(ours)
            if algorithm.exchanges == "gradients":
                grads = np.asarray(exchange.average({"params": grads})[0]["params"])
            updates, states[1] = step(grads, states[1])
            ours = ours + np.asarray(updates)
            if algorithm.exchanges == "models":
                ours = np.asarray(exchange.average({"params": ours})[0]["params"])
            np.testing.assert_array_equal(plain, ours)
        np.testing.assert_array_equal(exchange.consensus({"params": ours})["params"], plain)


def main():
    """All of it for as many workers as there are."""
    comm = MPI.COMM_WORLD
    for name in ALGORITHMS:
        converges(comm, name, 60)
        fits(comm, name, 60)
        unequal(comm, name)
        targets = np.random.default_rng(0).normal(size=(comm.size, 3))
        for overlap in (0, 1) if name == "sgp" else (0,):
            if name == "adpsgd":  # whose results depend on times
                keeps_the_mean(comm, name)
                continue
            models = trajectory(comm, name, targets, 9, overlap)
            expected = np.array(reference(name, comm.size, 9, targets, overlap))[:, comm.rank]
            np.testing.assert_allclose(models, expected, rtol=1e-5, atol=1e-6)
            resumes(comm, name, 10, overlap)


if __name__ == "__main__":
    main()
