"""What `wagma doctor` runs on every rank: whether the exchange between these processes is fast, right and patient.

Facts go to stdout as lines of JSON behind a marker, each as soon as it is known, so that those of one step survive a
crash of the next. What they mean is decided in ``between_ranks``.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

from wagma_jax import cpus
from wagma_jax.commands.launch import gpus
from wagma_jax.exchange import ExchangeInfo, GroupExchange
from wagma_jax.exchange.barrier import barrier
from wagma_jax.schedule import GroupSchedule

ROUNDS = 32  # of the exchange that is checked; a power of two, so that the numbers below are exact
SYNC_PERIOD = 8
MODEL_FLOATS = 1 << 19
MESSAGE_BYTES = 1 << 21
MOST_LINKS = 16
STEPS_PER_STRAGGLE = 20
TIMEOUT_SECONDS = 60.0  # the doctor's own limits are shorter; this one ends ranks whose doctor is gone


def facts_of_this_rank() -> dict[str, Any]:
    """What a rank can say without a message from others."""
    packages = ("wagma_jax", "jax", "jaxlib", "numpy", "optax", "mpi4py", "mpi4jax")
    versions = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "rank": MPI.COMM_WORLD.rank,
        "size": MPI.COMM_WORLD.size,
        "host": socket.gethostname(),
        "cores": cpus.cores(),
        "quota": cpus.quota(),
        "threads": cpus.threads(),
        "thread_level": MPI.Query_thread(),
        "gpus": gpus.facts(os.environ),
        "versions": versions | {"MPI": MPI.Get_library_version().partition(",")[0].strip()},
    }


# --- Links: what MPI itself does between two ranks ---


def links(comm: MPI.Intracomm) -> dict[str, Any]:
    """Latency and bandwidth between neighbouring ranks, one pair at a time; those between hosts first."""
    hosts = comm.allgather(socket.gethostname())
    pairs = sorted({tuple(sorted((rank, (rank + 1) % comm.size))) for rank in range(comm.size)})
    pairs.sort(key=lambda pair: hosts[pair[0]] == hosts[pair[1]])
    measured: list[dict[str, Any]] = []
    for first, second in pairs[:MOST_LINKS]:
        if comm.rank in (first, second):
            is_first = comm.rank == first
            other = second if is_first else first
            latency = _one_way(comm, other, is_first, 8, most=200)
            seconds = _one_way(comm, other, is_first, MESSAGE_BYTES, most=10)
            measured.append(
                {
                    "ranks": (first, second),
                    "hosts": (hosts[first], hosts[second]),
                    "latency_seconds": latency,
                    "bytes_per_second": MESSAGE_BYTES / seconds,
                }
            )
        barrier(comm)
    everyone = comm.gather([one for one in measured if one["ranks"][0] == comm.rank]) or []
    return {"links": [one for rank in everyone for one in rank]}


def _one_way(comm: MPI.Intracomm, other: int, is_first: bool, size: int, most: int) -> float:
    """Median seconds of a message of ``size`` bytes. Sends as many as take a third of a second, at most ``most``."""
    data = np.ones(size, np.uint8)  # not zeros, which would all be the same page of memory

    def there_and_back():
        start = time.perf_counter()
        if is_first:
            comm.Send(data, other)
            comm.Recv(data, other)
        else:
            comm.Recv(data, other)
            comm.Send(data, other)
        return time.perf_counter() - start

    there_and_back()  # MPI connects at the first message
    count = max(1, min(most, int(0.3 / there_and_back())))
    theirs = comm.sendrecv(count, other, source=other)
    count = count if is_first else theirs  # both must count alike
    return statistics.median(there_and_back() for _ in range(count)) / 2


# --- Exchange: models that show who is in them ---


def number(rank: int, version: int) -> int:
    """The constant that fills what a rank publishes for a round: distinct, and small enough for exact sums.

    At -1, before the first round, all publish rank 0's.
    """
    return 0 if version < 0 else rank * ROUNDS + version + 1


def contribution(schedule: GroupSchedule, rank: int, version: int) -> float:
    """The constant that a rank with newest publication ``version`` contributes: after a sync round, the mean."""
    if version >= 0 and schedule.is_sync(version):
        return statistics.fmean(number(worker, version) for worker in range(schedule.num_workers))
    return number(rank, version)


def expected(schedule: GroupSchedule, rank: int, info: ExchangeInfo, base_before: int) -> float | None:
    """The constant that ``average`` must have returned; None where the versions in it are not known.

    Args:
        schedule: The exchange's.
        rank: This one.
        info: What the call has returned.
        base_before: ``base`` of the call before.
    """
    t = info.round
    if info.is_sync:
        return contribution(schedule, rank, t)
    if info.base == base_before:  # late, and the newest sum was taken at an earlier call: W' itself
        return number(rank, t)
    if info.base != t or not info.contributed_rounds:  # late by several rounds, it has merged the sum of a newer one
        return None
    members = zip(info.group, info.contributed_rounds, strict=True)
    total = sum(contribution(schedule, member, version) for member, version in members)
    size = len(info.group)
    return (total + number(rank, t)) / (size + 1) if info.late else total / size


def exchange(comm: MPI.Intracomm) -> dict[str, Any]:
    """Rounds with random stragglers, in which every model is checked for parts of other models."""
    rng = np.random.default_rng(comm.rank)
    group_size = max(2, round(comm.size**0.5))
    torn, wrong, known, late, digests, base = [], [], 0, 0, [], -1
    model = lambda value: {"large": np.full(MODEL_FLOATS, value, np.float32), "small": np.full(3, value, np.float32)}
    with GroupExchange(
        comm, model(0), group_size=group_size, sync_period=SYNC_PERIOD, timeout_seconds=TIMEOUT_SECONDS
    ) as group_exchange:
        for t in range(ROUNDS):
            time.sleep(rng.uniform(0.01, 0.03) if rng.random() < 0.4 else 0.001)
            params, info = group_exchange.average(model(number(comm.rank, t)))
            leaves = [np.asarray(leaf) for leaf in params.values()]
            value = float(leaves[0][0])
            if any((leaf != leaves[0][0]).any() for leaf in leaves):
                values = sorted({float(one) for leaf in leaves for one in np.unique(leaf)[:5]})
                torn.append(f"rank {comm.rank} at round {t}: {values[:5]}")
            target = expected(group_exchange.schedule, comm.rank, info, base)
            base = info.base
            if target is not None:
                known += 1
                if abs(value - target) > 1e-3 + 1e-6 * abs(target):
                    wrong.append(f"rank {comm.rank} at round {t}: expected {target}, got {value}")
            late += info.late
            if info.is_sync:
                digests.append(_digest(leaves))
        consensus = group_exchange.consensus(model(comm.rank + 0.1))
        digests.append(_digest([np.asarray(leaf) for leaf in consensus.values()]))
    everyone = comm.gather((torn, wrong, known, late, digests)) or []
    rounds = [f"sync round {t}" for t in range(ROUNDS) if (t + 1) % SYNC_PERIOD == 0] + ["consensus()"]
    by_round = zip(rounds, *(rank[4] for rank in everyone), strict=True) if everyone else ()
    return {
        "models": ROUNDS * comm.size,
        "known": sum(rank[2] for rank in everyone),
        "late": sum(rank[3] for rank in everyone),
        "torn": [text for rank in everyone for text in rank[0]],
        "wrong": [text for rank in everyone for text in rank[1]],
        "syncs": len(rounds),
        "differing": [name for name, *each in by_round if len(set(each)) > 1],
    }


def _digest(leaves: Sequence[np.ndarray]) -> str:
    return hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()


# --- Straggler ---


def straggler(comm: MPI.Intracomm, seconds: float) -> dict[str, Any]:
    """The last rank is late once by ``seconds``: how long calls of ``average`` take the others, in ordinary rounds."""
    step = seconds / STEPS_PER_STRAGGLE
    last = comm.size - 1
    model = {"w": np.zeros(1 << 16, np.float32)}
    waits, met = [], 0
    with GroupExchange(comm, model, group_size=2, sync_period=None, timeout_seconds=TIMEOUT_SECONDS) as group_exchange:
        barrier(comm)
        # The others' steps go on for half as long again as the straggler's, so that they meet it again.
        for t in range(STEPS_PER_STRAGGLE * 3 // 2):
            time.sleep(seconds if comm.rank == last and t == 2 else step)
            start = time.perf_counter()
            _, info = group_exchange.average(model)
            waits.append(time.perf_counter() - start)
            if last in info.group and info.contributed_rounds:
                met += info.contributed_rounds[info.group.index(last)] < t
    mine = ([], 0) if comm.rank == last else (waits, met)
    everyone = comm.gather(mine) or []
    waits = [wait for rank in everyone for wait in rank[0]] or [0.0]
    return {
        "straggle_seconds": seconds,
        "rounds": STEPS_PER_STRAGGLE * 3 // 2,
        "longest_seconds": max(waits),
        "median_seconds": statistics.median(waits),
        "met": sum(rank[1] for rank in everyone),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the steps that are named, in order, and ends this process."""
    parser = argparse.ArgumentParser(
        prog="wagma_jax.commands.doctor.checkup", description="What `wagma doctor` starts."
    )
    parser.add_argument("--marker", default="checkup", help="what the lines with facts begin with")
    parser.add_argument("--straggle", type=float, default=1.0, help="seconds for which the last rank is late")
    parser.add_argument("steps", nargs="*", choices=["links", "exchange", "straggler"], default=[])
    options = parser.parse_args(arguments)
    comm = MPI.COMM_WORLD
    steps = {
        "links": lambda: links(comm),
        "exchange": lambda: exchange(comm),
        "straggler": lambda: straggler(comm, options.straggle),
    }

    def say(**facts):
        # one write, so that it stays one line: over hosts ranks share mpirun's pipes
        os.write(1, f"{options.marker} {json.dumps(facts)}\n".encode())

    step = "start"
    try:
        say(here=facts_of_this_rank())
        assert comm.allreduce(1) == comm.size
        for step in options.steps:
            if comm.rank == 0:
                say(begin=step)
            result = steps[step]()
            if comm.rank == 0:
                say(end=step, result=result)
    except Exception as error:
        say(failed=step, rank=comm.rank, error=f"{type(error).__name__}: {error}")
        # Without MPI_Finalize, which would wait for ranks that wait for this one: mpirun ends them.
        os._exit(1)
    if comm.rank == 0:
        say(begin="end")


if __name__ == "__main__":
    main()
