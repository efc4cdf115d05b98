"""What bodies and programs share that need a small exchange, its failures, and messages beside it. No pytest here."""

import contextlib
import time

import numpy as np

from wagma_jax.exchange import GroupExchange

START = {"b": np.zeros(2, np.float32), "w": np.arange(4, dtype=np.float32)}
FAR_MORE = 60.0  # seconds: what nobody waits for in a run that ends well


def step(params, rank):
    return {"b": params["b"] + np.float32(1), "w": params["w"] + np.float32(rank)}


def train(exchange, params, rounds):
    for _ in range(rounds):
        params, _ = exchange.average(step(params, exchange.rank))
    return params


def open_small(comm, **options):
    """An exchange with as little to compile as possible: each round is a sync round, unless asked for otherwise."""
    settings = {"group_size": 1, "sync_period": 1, "timeout_seconds": FAR_MORE} | options
    return GroupExchange(comm, START, **settings)


def a_run_goes_well(comm, **options):
    """That the processes and their communicator are still good for something."""
    with open_small(comm, **options) as exchange:
        mean = train(exchange, exchange.params, 2)
        np.testing.assert_allclose(mean["w"], START["w"] + 2 * (comm.size - 1) / 2, rtol=1e-6)
        np.testing.assert_allclose(mean["b"], 2)


@contextlib.contextmanager
def expect(kind, *words):
    """The body must raise ``kind`` with all these words in its message."""
    text = None
    try:
        yield
    except kind as error:
        text = str(error)
    assert text is not None, f"expected {kind.__name__} with {words}, but nothing was raised"
    missing = [word for word in words if word not in text]
    assert not missing, f"{missing} not in: {text}"


def tell(comm, *ranks):
    for rank in ranks:
        comm.send(None, rank, tag=1)


def told(comm, source):
    """Whether ``tell`` was called; without waiting."""
    return comm.improbe(source, tag=1)


def wait_until(condition):
    end = time.monotonic() + FAR_MORE
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)
