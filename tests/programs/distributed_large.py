"""Sums of large arrays over jax.distributed are exact. Imported by distributed.py.

Before JAX 0.12 a reduce-scatter between processes on CPUs now and then gives a wrong sum of chunks of 16 MiB, so none
may be compiled, and the rounds repeat. All values are small integers, whose means have no rounding error: any
difference is a wrong sum. Each round has other values, since a buffer that an earlier round has left behind would be
right otherwise.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distributed_average import P, globally, mesh

import wagma_jax as wagma

BROKEN = tuple(map(int, jax.__version__.split(".")[:2])) < (0, 12)
S = 2
SIZE = S * (16 << 20) // 4  # float32 elements of a worker's model: each member of a group sums a chunk of 16 MiB
schedule = wagma.GroupSchedule(P, S, sync_period=5)
averager = wagma.GroupAverager(schedule)
groupings = [schedule.groups(t) for t in range(schedule.period)]
members = np.array([[next(g for g in groups if w in g) for w in range(P)] for groups in groupings])  # [period, P, S]


def model(worker, t):
    """[SIZE] small integers that depend on the worker and the round."""
    return ((jnp.arange(SIZE) & 255) * (worker + 3) + 7 * t).astype(jnp.float32)


def count_wrong(average, t):
    """How many elements of this worker's new model are wrong; [1]."""
    worker = jax.lax.axis_index("data")
    got, is_sync = average(model(worker, t[0]), t[0])
    group = jnp.asarray(members)[t[0] % schedule.period, worker]
    mean_worker = jnp.where(is_sync, (P - 1) / 2, group.sum() / S)  # a model is linear in the worker
    return jnp.sum(got != model(mean_worker, t[0]))


def one_round(x, t):
    x, _, info = averager.average(x, averager.init(x)._replace(round=t))
    return x, info.is_sync


def check(average, rounds):
    """The number of wrong results of this process."""
    run = jax.jit(wagma.for_workers(lambda t: count_wrong(average, t), mesh=mesh))
    wrong = 0
    for t in rounds:
        argument = globally(np.full((P, 1), t, np.int32))
        if t == 0:
            text = run.lower(argument).as_text()
            assert "all_reduce" in text or "collective_permute" in text
            assert not BROKEN or "reduce_scatter" not in text
        counts = run(argument)
        wrong += sum(shard.data.item() > 0 for shard in counts.addressable_shards)
    return wrong


def count_all_wrong(rounds):
    """The number of wrong results of this process. Where JAX sums wrongly, the lowering that does is refused."""
    wrong = check(one_round, range(rounds)) + check(lambda x, t: (wagma.consensus(x), True), range(2))
    if BROKEN:
        with pytest.raises(ValueError, match="reduce_scatter' gives wrong sums on CPUs of several processes"):
            check(lambda x, t: (wagma.group_mean(x, "data", groupings[0], lowering="reduce_scatter"), False), range(1))
    return wrong
