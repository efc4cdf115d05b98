"""One rank of the pool of tests/ranks.py: runs bodies until it is told to end, or its folder or its owner are gone."""

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

from mpi4py import MPI

WORLD = MPI.COMM_WORLD
ROOT = Path(__file__).parent.parent.parent


def watch(place, owner):
    """Ends this process without ceremony when nobody needs it any more."""
    while place.exists():
        with contextlib.suppress(PermissionError):
            try:
                os.kill(owner, 0)
            except ProcessLookupError:
                break
        time.sleep(0.5)
    os._exit(0)


def execute(task):
    """What a body returns on this rank; None on ranks that it does not run on."""
    name, arguments, num_ranks, timeout, optimized = task
    comm = WORLD.Split(WORLD.rank < num_ranks)
    result = None
    if WORLD.rank < num_ranks:
        module, _, function = name.rpartition(".")
        faulthandler.dump_traceback_later(max(timeout / 2, timeout - 6))
        is_new = module not in sys.modules
        body = getattr(importlib.import_module(module), function)
        compilations = importlib.import_module("compilations")
        if "jax" in sys.modules:
            compilations.share()
        if is_new:
            gc.freeze()  # or each collection that a body asks for goes through all modules
        with compilations.as_users_do() if optimized else contextlib.nullcontext():
            result = body(comm, *arguments)
        faulthandler.cancel_dump_traceback_later()
        request = comm.Ibarrier()
        while not request.Test():  # MPI's own wait would take the CPU time from ranks that go on
            time.sleep(0.005)
    comm.Free()
    return result


def main(folder, start):
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: with whoever started it
    place = Path(folder) / f"rank-{start}-{WORLD.rank}"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(place))
    server.listen()
    threading.Thread(target=watch, args=(place, int((Path(folder) / "owner").read_text())), daemon=True).start()
    while True:
        connection, _ = server.accept()
        with connection, connection.makefile("rwb") as stream:
            try:
                report = True, execute(pickle.load(stream))
            except BaseException:
                report = False, traceback.format_exc()
            pickle.dump(report, stream)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "programs")]
    main(*sys.argv[1:])
