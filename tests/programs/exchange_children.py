"""Ranks start children in every way while their exchange is open, and go on."""

import contextlib
import multiprocessing
import os
import subprocess
import sys
import warnings

import jax.numpy as jnp
from mpi4py import MPI

import wagma_jax as wagma


def square(x):
    return x * x


def construct(x):
    try:
        wagma.GroupExchange(None, jnp.zeros(3), group_size=2)
    except RuntimeError as error:
        return str(error), MPI.Is_initialized()


def forked(name, function):
    pid = os.fork()
    if pid == 0:
        return function()
    print(f"{name} {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}", flush=True)
    return False


def report(function, *arguments):
    try:
        function(*arguments)
    except RuntimeError as error:
        print(error, flush=True)
    sys.exit(4)


def fail():
    raise ZeroDivisionError("of the child")


def main():
    warnings.simplefilter("ignore")  # JAX's about forks
    params = {"w": jnp.zeros(100)}
    with wagma.GroupExchange(None, params, group_size=2, sync_period=3, timeout_seconds=30) as exchange:
        params, _ = exchange.average(params)
        forked("exit", lambda: sys.exit(3))
        forked("average", lambda: report(exchange.average, params))
        forked("fail", fail)
        if forked("leaves", lambda: True):
            return
        if MPI.COMM_WORLD.rank == 1:  # on one rank, since children of these kinds import all over again
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print("pool", pool.map(square, [2, 3]), *pool.map(construct, [0])[0], flush=True)
            code = "from train.transports import launchers; import os; print('alone', launchers.launched(os.environ))"
            subprocess.run([sys.executable, "-c", code], check=True)
        for _ in range(5):
            params, info = exchange.average(params)
    print("went on to", info.round, flush=True)


if __name__ == "__main__":
    with contextlib.redirect_stderr(sys.stdout):
        main()
