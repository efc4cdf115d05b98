"""A body for MPI ranks: contributions that count for steps, against a reference, and a run that goes on exactly."""

from pathlib import Path

import jax
import numpy as np
import replay_rounds
from exchange_common import wait_for
from exchange_small import expect
from mpi4py import MPI
from replay_rounds import bits, policy, start

import wagma_jax as wagma
from wagma_jax.exchange.barrier import barrier
from wagma_jax.exchange.replay import replay

BEFORE = [0, 0, 0, 0, 1, 1, 0, 0, 1, 0, None, 0, 0, 1]
AFTER = [0, 1, 0, 0, 1, 1, 0, 0, None]
"""Whose turn it is to call ``average``; None: both, at a sync round."""

WEIGHTS = {  # of the rounds, worked by hand from the turns
    **dict.fromkeys(range(4), (1, 0)), 4: (0, 2), 5: (2, 0), 6: (1, 1), 7: (2, 1),
    8: (1, 0), 9: (1, 0), 10: (1, 1), 11: (1, 1), 12: (1, 0), 13: (0, 2), 14: (2, 0), 15: (8, 5),
}  # fmt: skip


class Reference:
    """Two workers in NumPy, one leaf of each: publications, their steps, and the newest sums that are not taken."""

    def __init__(self, first):
        self.published, self.fresh, self.since_mean = [first, first], [0, 0], [0, 0]
        self.sums, self.newest = [None, None], -1

    def call(self, rank, t, model):
        """The result of a call of ``average`` with this W' at round t."""
        self.published[rank] = model
        self.fresh[rank] += 1
        self.since_mean[rank] += 1
        late = t <= self.newest
        if not late:
            weights, self.newest = self.fresh, t
            total = sum(n * model for n, model in zip(weights, self.published, strict=True))
            self.fresh, self.sums = [0, 0], [(total, sum(weights))] * 2
        total, weight = self.sums[rank]
        self.sums[rank] = None
        n = self.fresh[rank] if late else 0
        return (total + n * model) / (weight + n)

    def sync(self, t, models):
        """The global mean."""
        counts = [count + 1 for count in self.since_mean]
        mean = sum(n * model for n, model in zip(counts, models, strict=True)) / sum(counts)
        self.__init__(mean)
        self.newest = t
        return mean


OPTIONS = {"group_size": 2, "sync_period": 8, "clock": "round", "policy": policy, "timeout_seconds": 60}


def turns(comm, exchange, script, params, first, seen, weights=WEIGHTS):
    """Takes turns, of which the first is this rank's call of that number; the parameters afterwards."""
    for turn in script:
        newest = comm.allreduce(exchange._engine.state.round, MPI.MAX) - 1
        wait_for(lambda newest=newest: exchange._engine.state.round > newest)
        if turn in (comm.rank, None):
            moved = replay_rounds.local_step(comm.rank, first + len(seen), params)
            params, info = exchange.average(moved)
            assert info.late == (info.round <= newest), info
            assert info.weights == weights.get(info.round, ()), info
            seen.append((info.round, moved, params))
        barrier(comm)
    return params


def by_steps(comm, folder):
    """A worker that takes few steps, by construction: its results, the same after a resumption, and in a replay."""
    replay_rounds.SKIPS = False
    options = OPTIONS | {"weighting": "steps"}
    seen = []
    with wagma.GroupExchange(comm, start(), ledger=folder, **options) as exchange:
        params = turns(comm, exchange, BEFORE, exchange.params, 0, seen)
        exchange.meet()
        middle, state = len(seen), jax.tree.map(np.asarray, exchange.state())
        assert [int(state[name]) for name in ("fresh", "since_mean")] == ([0, 2] if comm.rank == 0 else [1, 1])
        at = params
        params = turns(comm, exchange, AFTER, params, 0, seen)
        last = exchange.consensus(params)
    equal = {name: state[name] for name in state if name not in ("fresh", "since_mean", "unpublished")}
    with expect(ValueError, "state must hold fresh, since_mean, unpublished with weighting='steps'"):
        wagma.GroupExchange(comm, at, state=equal, **options)
    with expect(ValueError, "state must be what state() of such an exchange returned"):
        wagma.GroupExchange(comm, at, state=state, **(options | {"weighting": "equal"}))
    goes_on(comm, at, state, options, seen, middle)
    everyone = comm.gather((seen, bits(last)))
    if everyone is None:
        return
    follow(everyone)
    replays(folder, [([bits(tree) for _, _, tree in calls], last) for calls, last in everyone])


def goes_on(comm, at, state, options, seen, middle, weights=WEIGHTS):
    """The last turns again, in an exchange that goes on from a state, give the same bits."""
    again = []
    with wagma.GroupExchange(comm, at, state=state, **options) as exchange:
        turns(comm, exchange, AFTER, at, middle, again, weights)
    assert [bits(tree) for _, _, tree in again] == [bits(tree) for _, _, tree in seen[middle:]]


def replays(folder, expected):
    """A replay gives the bits of all calls of each rank, and of its last parameters."""
    results = [[], []]
    final = replay(
        Path(folder), start(), replay_rounds.local_step, policy=policy,
        observe=lambda rank, call, tree: results[rank].append(bits(tree)),
    )  # fmt: skip
    for rank, (calls, last) in enumerate(expected):
        assert results[rank] == calls, f"the replay of rank {rank}"
        assert bits(final[rank]) == last


def steps_that_are_lost(comm):
    """Rounds of one, and a model that is not finite in the end: the mean takes the place of all of its steps."""
    options = {"group_size": 1, "sync_period": 4, "weighting": "steps", "on_nonfinite": "skip", "timeout_seconds": 60}
    with wagma.GroupExchange(comm, {"w": np.zeros(3, np.float32)}, **options) as exchange:
        for turn in range(3):
            for t in range(4):
                lost = comm.rank == 0 and turn == 0 and t == 3
                model = {"w": np.full(3, np.nan if lost else 12 * comm.rank, np.float32)}
                params, info = exchange.average(model)
            assert info.is_sync
            # rank 0's first four steps are nobody's; from then on both count for four
            np.testing.assert_array_equal(params["w"], 12 if turn == 0 else 6)


def steps_that_are_lost_between_means(comm):
    """The same where the model is not finite in an ordinary round."""
    options = {"group_size": 1, "sync_period": 4, "weighting": "steps", "on_nonfinite": "skip", "timeout_seconds": 60}
    with wagma.GroupExchange(comm, {"w": np.zeros(3, np.float32)}, **options) as exchange:
        engine = exchange._engine
        for t in range(4):
            passes = engine.pass_alone
            if t == 2:  # as where others are to be told
                engine.pass_alone = lambda counter: None
            lost = comm.rank == 0 and t == 2
            params, info = exchange.average({"w": np.full(3, np.nan if lost else 12 * comm.rank, np.float32)})
            engine.pass_alone = passes
        assert info.is_sync
        # of rank 0's four steps only the last is contributed: its three others are gone
        np.testing.assert_allclose(params["w"], 12 * 4 / 5)


def numpy_models_that_change(comm):
    """Rounds of one keep what they were given, whatever becomes of the arrays."""
    with wagma.GroupExchange(comm, {"w": np.zeros(3, np.float32)}, group_size=1, sync_period=2) as exchange:
        model = {"w": np.full(3, comm.rank, np.float32)}
        exchange.average(model)
        model["w"][:] = np.nan
        if comm.rank == 0:
            exchange.meet()
            return
        params, info = exchange.average({"w": np.full(3, 6, np.float32)})
        assert info.is_sync
        np.testing.assert_array_equal(params["w"], 3)
        exchange.meet()


def follow(everyone, of=Reference):
    """Compares the results of all calls with those of a reference."""
    for name, tolerance in (("large", 1e-5), ("small", 1e-5), ("half", 2e-2)):
        calls = [iter(seen) for seen, _ in everyone]
        value = lambda tree, name=name: np.asarray(tree[name], np.float64)
        reference = of(value(start()))
        for turn in BEFORE + AFTER:
            if turn is None:
                (t, *models), (_, *others) = (next(each) for each in calls)
                expected = reference.sync(t, [value(models[0]), value(others[0])])
                came = [value(models[1]), value(others[1])]
            else:
                t, moved, result = next(calls[turn])
                expected, came = reference.call(turn, t, value(moved)), [value(result)]
            for one in came:
                np.testing.assert_allclose(one, expected, rtol=tolerance, atol=tolerance, err_msg=f"{name} at {t}")
