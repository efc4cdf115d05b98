"""The rounds over jax.distributed, checked on each process. Imported by distributed.py."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from reference import LateRuleReference

import wagma_jax as wagma

P = jax.device_count()
assert (P, jax.local_device_count()) == (4, 2)
mesh = jax.make_mesh((P,), ("data",), axis_types=(AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec("data"))


def globally(x):
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def check():
    for check_vma in (True, False):
        for group_size in (2, 3, P):
            schedule = wagma.GroupSchedule(P, group_size, 3)
            averager = wagma.GroupAverager(schedule, simulate_lateness=True)
            rng = np.random.default_rng(0)
            x = rng.normal(size=(P, 1000)).astype(np.float32)
            ref = LateRuleReference(schedule.groups, 3, P, ["mean"])
            ref.init([x])
            got, expected = globally(x), x
            run = jax.jit(wagma.for_workers(averager.average, mesh=mesh, check_vma=check_vma))
            apart = jax.jit(wagma.for_workers(wagma.consensus_distance, mesh=mesh, check_vma=check_vma))
            state = jax.jit(wagma.for_workers(averager.init, mesh=mesh))(got)
            for t in range(7):
                delta, late = rng.normal(size=x.shape).astype(np.float32), rng.random(P) < 0.4
                got, state, info = run(got + globally(delta), state, globally(late))
                (expected,) = ref.round([expected + delta], late)
                for shard in got.addressable_shards:
                    np.testing.assert_allclose(shard.data, expected[shard.index], rtol=1e-5, atol=1e-5)
                for shard in info.round.addressable_shards:
                    assert shard.data.item() == t
            distance = apart(got).addressable_shards[0].data.item()
            np.testing.assert_allclose(distance, np.sqrt(np.square(expected - expected.mean(0)).sum() / P), rtol=1e-4)
