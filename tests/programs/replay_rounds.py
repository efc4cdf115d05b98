"""One of several MPI processes: runs with random stragglers, and their replays on the first, for all settings."""

import argparse
import time
from pathlib import Path

import jax
import numpy as np
from mpi4py import MPI

import wagma_jax as wagma
from wagma_jax.exchange.replay import replay

WORLD = MPI.COMM_WORLD


def start():
    grid = np.linspace(-1, 1, 70_000, dtype=np.float32)
    return {
        "large": grid,
        "small": np.float32(3),
        "half": jax.numpy.asarray(grid[:999], jax.numpy.bfloat16),
        "kept": np.int32(1),
        "now_and_then": grid[:7],
    }


def policy(path, leaf):
    name = path[0].key
    return "sync" if name == "now_and_then" else "keep" if name == "kept" else "mean"


@jax.jit
def shrunk(params, kick):
    return jax.tree.map(lambda leaf: (leaf * 0.9 + kick).astype(leaf.dtype), params)


def local_step(rank, call, params):
    kick = np.random.default_rng((rank, call)).normal()
    return shrunk(params, np.float32(kick)) | {"kept": params["kept"] + 1}


def bits(tree):
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))


def run(folder, clock, quorum, group_size, sync_period):
    """Some rounds, a consensus in their midst, and some more; unequal numbers where the clock allows it."""
    rng = np.random.default_rng((WORLD.rank, quorum))
    options = {"group_size": group_size, "sync_period": sync_period, "quorum": quorum, "clock": clock}
    results = []
    with wagma.GroupExchange(WORLD, start(), policy=policy, ledger=folder, timeout_seconds=60, **options) as exchange:
        params = exchange.params
        for end in (17 + WORLD.rank % 2, 40):
            while exchange.round + 1 < end:
                params = local_step(WORLD.rank, len(results), params)
                if rng.random() < 0.3:
                    time.sleep(rng.exponential(0.02))
                params, _ = exchange.average(params)
                results.append(bits(params))
            params = exchange.consensus(params)
    everyone = WORLD.gather((results, bits(params)))
    if WORLD.rank:
        return
    again = [[] for _ in everyone]
    final = replay(
        folder, start(), local_step, policy=policy, observe=lambda rank, call, tree: again[rank].append(bits(tree))
    )
    for rank, (results, last) in enumerate(everyone):
        same = [a == b for a, b in zip(results, again[rank], strict=True)]
        assert all(same), f"{clock}, quorum {quorum}: call {same.index(False)} of rank {rank} differs"
        assert bits(final[rank]) == last, f"{clock}, quorum {quorum}: rank {rank} differs in the end"
    merges = [line.count('"merge": "late"') for line in (folder / "ledger-1.jsonl").read_text().splitlines()]
    print(f"replayed {clock} {quorum}: {sum(map(len, again))} calls, {sum(merges)} late on rank 1", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for clock in ("step", "round"):
        for quorum in (1, 2):
            run(folder / f"{clock}-{quorum}", clock, quorum, 2, 7)
    run(folder / "half", "step", 2, 4, 7)
    run(folder / "never", "step", 1, 3, None)
    run(folder / "alone", "round", 1, 1, 5)
