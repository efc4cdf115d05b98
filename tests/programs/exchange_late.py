"""A body for MPI ranks: late workers add their steps, against a reference, after a resumption, and in a replay."""

import jax
import numpy as np
import replay_rounds
from exchange_small import expect
from exchange_weights import AFTER, BEFORE, OPTIONS, follow, goes_on, replays, turns
from replay_rounds import bits, start

import wagma_jax as wagma


class Added:
    """Two workers in NumPy, one leaf of each: publications, what they begin with, and sums that are not taken."""

    def __init__(self, first):
        self.published, self.before = [first, first], [first, first]
        self.means, self.newest = [None, None], -1

    def call(self, rank, t, model):
        """The result of a call of ``average`` with this W' at round t."""
        self.published[rank] = model
        step = 0.0
        if t <= self.newest:
            step = model - self.before[rank]
        else:
            self.newest, self.means = t, [sum(self.published) / 2] * 2
        mean, self.means[rank] = self.means[rank], None
        self.before[rank] = mean + step
        return self.before[rank]

    def sync(self, t, models):
        """The global mean."""
        self.__init__(sum(models) / 2)
        self.newest = t
        return self.before[0]


def by_adding(comm, folder):
    """A worker that is often late, by construction: its results, the same after a resumption, and in a replay."""
    replay_rounds.SKIPS = False
    options = OPTIONS | {"late_merge": "add"}
    with expect(ValueError, "late_merge='add' needs weighting='equal', got 'steps'"):
        wagma.GroupExchange(comm, start(), weighting="steps", **options)
    seen = []
    with wagma.GroupExchange(comm, start(), ledger=folder, **options) as exchange:
        params = turns(comm, exchange, BEFORE, exchange.params, 0, seen, {})
        exchange.meet()
        middle, state, at = len(seen), jax.tree.map(np.asarray, exchange.state()), params
        params = turns(comm, exchange, AFTER, params, 0, seen, {})
        # nothing is left of what was before a consensus
        last = exchange.consensus(params)
        moved = replay_rounds.local_step(comm.rank, len(seen), last)
        later, info = exchange.average(moved)
    goes_on(comm, at, state, options, seen, middle, {})
    everyone = comm.gather((seen, bits(last), bits(later), later["large"], last["large"], moved["large"], info.late))
    if everyone is None:
        return
    follow([(seen, last) for seen, last, *_ in everyone], Added)
    for _, _, _, later, last, moved, late in everyone:
        if late:  # the other one's step is halved, and its own is whole
            other = next(each[5] for each in everyone if each[5] is not moved)
            np.testing.assert_allclose(later, (other + last) / 2 + (moved - last), rtol=1e-5, atol=1e-6)
    replays(folder, [([*(bits(tree) for _, _, tree in calls), later], later) for calls, _, later, *_ in everyone])
