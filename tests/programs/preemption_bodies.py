"""Bodies over MPI: late workers that are cut short. What they collect is nothing; what they wait for is real."""

import contextlib
import io
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train import navigation, run
from train.experience import preemption
from train.experience.rollouts import Size
from train.navigation import Options
from train.transports.group import MpiGroup
from train.transports.mpi import MpiPlace
from wagma_jax.exchange.barrier import barrier
from wagma_jax.exchange.headcount import Headcount


class Carry(NamedTuple):
    """What a feed reads of a carry."""

    sums: dict[str, jax.Array]


CARRY = Carry({"steps": jax.device_put(np.float32(15))})  # of the iteration in which a run is resumed


class Parts:
    """Takes as long as the delays are."""

    def __init__(self):
        self.collected = []

    def prepare(self, model, carry):
        pass

    def collect(self, model, carry, cutoff):
        part = 0
        while part < preemption.PARTS and not preemption.ends(cutoff, part):
            part += 1
        self.collected.append(part)
        return carry, part


def counts(comm, needed, stages):
    """Stages of which all learn that enough are done while the last process still works, if it is not needed."""
    own = comm.Dup()
    headcount = Headcount(own, needed)
    late, learned = comm.rank == comm.size - 1, []
    for stage in range(stages):
        headcount.begin()
        assert stage or not headcount.reached()  # in the first one nobody is done before all have begun
        barrier(comm)
        if not late:
            headcount.done()
        end = time.monotonic() + (0.05 if needed == comm.size else 10.0)
        while not headcount.reached() and time.monotonic() < end:
            time.sleep(0.001)
        learned.append(headcount.reached())
        barrier(comm)
        if late:
            headcount.done()
        barrier(comm)
    headcount.close()
    assert not own.iprobe()  # nothing is left
    own.Free()
    return learned


def one_is_late(comm, share, straggler, iterations, abandoned=False):
    """Parts that this worker has collected in each iteration, what they count for, and how long the collecting took.

    An iteration has two steps, and one delay. The run begins with the second one, as a run does that is resumed there.
    """
    options = Options(transport="mpi", workers=comm.size, straggler=straggler, preempt=share)
    group = MpiGroup(comm)
    parts = Parts()
    size = Size(preemption.PARTS, 3, 4)
    feed = preemption.Preempted(MpiPlace(options, group), parts, size, 2, 1, share, lambda: None)
    units, worked = [], []
    for step in range(1, 2 * iterations + 2):
        batch, _ = feed.next(step, None, CARRY)
        assert batch.delayed
        assert batch.arrays["update"] == step % 2
        units.append(int(batch.units.sum()))
        worked.append(batch.worked)
        barrier(comm)  # as a global mean would
    if abandoned and comm.rank == comm.size - 1:  # closes a feed in the middle of an iteration, as after an error
        feed.next(2 * iterations + 2, None, CARRY)
    feed.close()
    if not abandoned:  # else messages may be on their way on its communicators
        group.close()
    return parts.collected, units, worked


def runs(comm, *commands):
    """Runs of the navigation; of each the steps that this worker has taken in each rollout."""
    taken = []

    class Noted(preemption.InParts):
        def collect(self, model, carry, cutoff):
            carry, steps = super().collect(model, carry, cutoff)
            np.testing.assert_array_equal(carry.rollout["valid"].sum(0), steps)
            assert bool(jnp.isfinite(carry.rollout["advantage"]).all())
            if cutoff is not None:
                taken[-1].append(steps)
            return carry, steps

    usual, preemption.InParts = preemption.InParts, Noted
    try:
        for command in commands:
            taken.append([])
            group = MpiGroup(comm)
            with contextlib.redirect_stdout(io.StringIO()):
                options = run.parse(navigation.WORKLOAD, [*map(str, command), "--workers", str(comm.size)])
                run.run(run.prepare(navigation.WORKLOAD, options, group))
            group.close()
    finally:
        preemption.InParts = usual
    return taken
