"""A body for MPI ranks: a run with random stragglers, and its replay on the first rank."""

import time
from pathlib import Path

import jax
import numpy as np

import wagma_jax as wagma
from wagma_jax.exchange.replay import replay

SKIPS = False


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
    if SKIPS and (call + rank) % 5 == 2:
        kick = np.inf
    return shrunk(params, np.float32(kick)) | {"kept": params["kept"] + 1}


def bits(tree):
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))


def run(
    comm, folder, clock, quorum, group_size, sync_period, rounds, skips=False, weighting="equal", late_merge="average"
):
    """Some rounds, a meeting, a consensus in their midst, and some more; unequal numbers of them.

    With ``skips`` models are not finite now and then.

    Returns:
        On the first rank, how many calls were replayed, how many were late, and how many brought no finite model.
    """
    options = {"group_size": group_size, "sync_period": sync_period, "quorum": quorum, "clock": clock}
    options |= {"weighting": weighting, "late_merge": late_merge}
    return _compared(
        comm, folder, lambda **common: wagma.GroupExchange(comm, start(), **common, **options), rounds, skips
    )


def run_pairs(comm, folder, clock, rounds, skips):
    """The same with averaging in pairs."""
    return _compared(
        comm, folder, lambda **common: wagma.PairwiseExchange(comm, start(), clock=clock, **common), rounds, skips
    )


def _compared(comm, folder, opened, rounds, skips):
    global SKIPS
    SKIPS = skips
    folder = Path(folder)
    rng = np.random.default_rng(comm.rank)
    common = {"policy": policy, "ledger": folder, "timeout_seconds": 60, "on_nonfinite": "skip" if skips else "share"}
    results = []
    with opened(**common) as exchange:
        params = exchange.params
        for end in (rounds // 2 - comm.rank % 2, rounds):
            while exchange.round + 1 < end:
                params = local_step(comm.rank, len(results), params)
                if rng.random() < 0.3:
                    time.sleep(rng.exponential(0.02))
                params, _ = exchange.average(params)
                results.append(bits(params))
            exchange.meet()
            infinite = skips and comm.rank == 1
            params = exchange.consensus(params | {"small": np.float32(np.inf)} if infinite else params)
            assert np.isfinite(params["small"])
    everyone = comm.gather((results, bits(params)))
    if everyone is None:
        return None
    again = [[] for _ in everyone]
    final = replay(
        folder, start(), local_step, policy=policy, observe=lambda rank, call, tree: again[rank].append(bits(tree))
    )
    for rank, (results, last) in enumerate(everyone):
        same = [a == b for a, b in zip(results, again[rank], strict=True)]
        assert all(same), f"call {same.index(False)} of rank {rank} differs"
        assert bits(final[rank]) == last, f"rank {rank} differs in the end"
    lines = "".join(path.read_text() for path in folder.glob("ledger-*.jsonl"))
    return sum(map(len, again)), lines.count('"merge": "late"'), lines.count('"nonfinite": true'), lines.count('"swap"')


def run_increments(comm, folder, clock, start_, sync_period, rounds):
    """The same of increments: a step that remembers a model, as an optimizer does.

    Returns:
        On the first rank, how many calls were replayed, and how many were late.
    """
    global SKIPS
    SKIPS = False
    folder, late, results = Path(folder), 0, []
    rng = np.random.default_rng((comm.rank, rounds))
    options = {"start": start_, "seed": 5, "sync_period": sync_period, "clock": clock}
    with wagma.EagerExchange(comm, start(), policy=policy, ledger=folder, timeout_seconds=60, **options) as exchange:
        model = Model(exchange.params)
        for end in (rounds // 2 - comm.rank % 2, rounds):
            while exchange.round + 1 < end:
                if rng.random() < 0.3:
                    time.sleep(rng.exponential(0.01))
                result, info = exchange.average(model.gradients(comm.rank, len(results)))
                model.apply(result)
                results.append(bits(result))
                late += info.late
            exchange.meet()
            model.replace(exchange.consensus(model.params))
    everyone = comm.gather((results, bits(model.params), late))
    if everyone is None:
        return None
    again = [[] for _ in everyone]
    models = [Model(start()) for _ in everyone]

    def again_step(rank, call, result):
        models[rank].settle(result)
        return models[rank].gradients(rank, call)

    def observe(rank, call, result):
        again[rank].append(bits(result))
        models[rank].apply(result)

    final = replay(
        folder, start(), again_step, policy=policy, observe=observe, hand_in=lambda rank, call, _: models[rank].rest()
    )
    for rank, (results, last, _) in enumerate(everyone):
        same = [a == b for a, b in zip(results, again[rank], strict=True)]
        assert all(same), f"{clock}, {start_}: call {same.index(False)} of rank {rank} differs"
        assert bits(final[rank]) == last, f"{clock}, {start_}: rank {rank} differs in the end"
    return sum(map(len, again)), sum(late for _, _, late in everyone)


class Model:
    """What an optimizer makes of increments."""

    def __init__(self, params):
        self.params, self.waits = params, False

    def gradients(self, rank, call):
        return local_step(rank, call, self.params)

    def apply(self, result):
        self.params = {name: (self.params[name] + result[name]).astype(self.params[name].dtype) for name in result}

    def replace(self, params):
        self.params, self.waits = params, False

    def rest(self):
        """What goes into a consensus, in a replay: the next step gets the result."""
        self.waits = True
        return self.params

    def settle(self, result):
        if self.waits:
            self.replace(result)
