"""A body for two MPI ranks: many exchanges, one after the other, leave nothing behind."""

import gc
import os
import sys
import threading
from pathlib import Path

import jax
from exchange_small import open_small, train
from mpi4py import MPI

from wagma_jax.exchange import GroupExchange


def leaks(comm, cycles):
    interval = sys.getswitchinterval()
    before = {}
    arrays = len(jax.live_arrays())
    for cycle in range(cycles):
        exchange = open_small(comm)
        assert sys.getswitchinterval() < interval
        exchange.consensus(train(exchange, exchange.params, 2))
        exchange.close()
        assert exchange._control == exchange._data == MPI.COMM_NULL
        assert sys.getswitchinterval() == interval
        gc.collect()
        assert len(jax.live_arrays()) <= arrays + 1, "close() frees all models"
        del exchange
        gc.collect()
        if cycle in (cycles // 2, cycles - 1):
            after = {
                "threads": threading.active_count(),
                "descriptors": len(os.listdir("/proc/self/fd")),
                "executables": len(jax.devices()[0].client.live_executables()),
                "arrays": len(jax.live_arrays()),
                "exchanges": sum(isinstance(thing, GroupExchange) for thing in gc.get_objects()),
                "MiB": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20,
            }
            if before:
                grown = after.pop("MiB") - before.pop("MiB")
                assert after == before, (before, after)
                assert grown < 40, grown
            before = after
