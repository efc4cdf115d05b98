"""One rank of a run that fails, or that ends well after failures: the first argument names how. See test_ends.py."""

import ctypes
import os
import signal
import sys
import threading
import time

import jax.numpy as jnp
from exchange_small import FAR_MORE, a_run_goes_well, expect, open_small, train
from mpi4py import MPI

from wagma_jax.exchange import ExchangeError, ending, engine
from wagma_jax.exchange.wire import Wire

WORLD = MPI.COMM_WORLD
RANK = WORLD.rank
SHORT = 0.7  # timeout_seconds of those who are to lose patience, once all stand at the same place
ending.GOODBYE_SECONDS = 1.0 if sys.argv[1] in ("stuck", "exit_while_others_compute", "inside", "handled") else 5.0
engine.WIND_UP_SECONDS = 2.0  # longer for users; the programs end in the same way


def say(text):
    os.write(1, f"{text}\n".encode())


def ends_now():
    say(f"ends at {time.time()}")


def exception():
    """Rank 1 fails, while rank 0 waits for a round and rank 2 computes."""
    with open_small(WORLD) as exchange:
        params = train(exchange, exchange.params, 2)
        if RANK == 2:
            time.sleep(FAR_MORE)
        if RANK == 1:
            time.sleep(0.2)
            ends_now()
            raise LookupError("no more data")
        train(exchange, params, 2)


def ends_while_others_wait(end):
    """Rank 1 ends itself, while rank 0 waits for a round."""
    with open_small(WORLD) as exchange:
        params = train(exchange, exchange.params, 2)
        if RANK == 1:
            ends_now()
            end()
        train(exchange, params, 2)


def exit_while_others_wait():
    ends_while_others_wait(lambda: sys.exit(3))


def exit_while_others_compute():
    """Rank 1 is asked to end while it waits."""
    with open_small(WORLD) as exchange:
        params = train(exchange, exchange.params, 2)
        if RANK == 0:
            time.sleep(FAR_MORE)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        ends_now()
        train(exchange, params, 1)


def sigterm():
    ends_while_others_wait(lambda: os.kill(os.getpid(), signal.SIGTERM))


def forgotten():
    """Rank 1 ends well but for close(); nothing in its program refers to the exchange any more."""
    exchange = open_small(WORLD)
    params = train(exchange, exchange.params, 2)
    if RANK == 1:
        ends_now()
        return
    train(exchange, params, 2)


def stuck():
    """Rank 1 holds Python's GIL for ever."""
    with open_small(WORLD, group_size=2, sync_period=None) as exchange:
        params = train(exchange, exchange.params, 2)
        WORLD.barrier()
        exchange.timeout_seconds = SHORT
        if RANK == 1:
            ctypes.PyDLL(None).usleep(int(FAR_MORE * 1e6))
        ends_now()
        train(exchange, params, 2)


def inside():
    """Rank 1's engine fails when rank 0's is inside their exchange, where nothing can be told it."""
    with open_small(WORLD) as exchange:
        params = train(exchange, exchange.params, 2)
        if RANK == 1:

            def broken(*arguments):
                ends_now()
                raise MemoryError("no room for the sum")

            exchange._engine.wire.exchange = broken
        train(exchange, params, 2)


def before():
    """Rank 1 fails before it has an exchange, while rank 0 waits for it in the constructor."""
    if RANK == 1:
        time.sleep(0.5)
        ends_now()
        raise LookupError("no data")
    open_small(WORLD)


def inside_start():
    """Rank 1 fails inside of its constructor, when rank 0 has a thread in MPI's own waits, and one that computes on."""

    def compute_on():
        matrix = jnp.ones((64, 64))
        while True:
            jnp.matmul(matrix, matrix).block_until_ready()

    if RANK == 0:
        ending.thread(compute_on, "computes on").start()
    if RANK == 1:

        def broken(*arguments):
            ends_now()
            raise MemoryError("no room for the sum")

        Wire.exchange = broken
    open_small(WORLD)


def handled():
    """Rank 1 fails, all handle it and go on with a new exchange, and rank 1 ends later than a failed one could."""
    kind, words = (LookupError, "") if RANK == 1 else (ExchangeError, "rank 1 ended with LookupError: ")
    with expect(kind, f"{words}no more data"), open_small(WORLD) as exchange:
        params = train(exchange, exchange.params, 2)
        if RANK == 1:
            raise LookupError("no more data")
        train(exchange, params, 2)
    a_run_goes_well(WORLD)
    if RANK == 1:
        time.sleep(ending.GOODBYE_SECONDS + 0.5)  # longer than a process that fails would wait for it
    say("lives on")


say(f"pid {os.getpid()}")
SCENARIOS = (
    exception,
    exit_while_others_wait,
    exit_while_others_compute,
    sigterm,
    forgotten,
    stuck,
    inside,
    before,
    inside_start,
    handled,
)
{scenario.__name__: scenario for scenario in SCENARIOS}[sys.argv[1]]()
