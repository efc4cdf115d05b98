"""Increments are neither lost nor counted twice: by hand, and in every interleaving of small runs, on symbols.

A symbol is a set of (worker, version); a sum is a union of sets without common elements.
"""

from typing import Any, NamedTuple

import pytest

from wagma_jax.protocol.increments import Pending, Untaken


def add(a, b):
    assert not a & b, f"{sorted(a & b)} counts twice"
    return a | b


def test_what_came_too_late_goes_into_the_next_contribution():
    pending = Pending().hand_in(0, frozenset("a"), add).hand_in(2, frozenset("b"), add)
    pending, contributed = pending.contribute()
    assert (contributed, pending) == (frozenset("ab"), Pending(2))
    assert pending.contribute() == (pending, None)
    assert pending.hand_in(3, frozenset("c"), add).contribute() == (Pending(3), frozenset("c"))
    with pytest.raises(AssertionError, match="version 2 after 2"):
        pending.hand_in(2, frozenset("c"), add)


def test_results_add_up_until_they_are_taken():
    untaken = Untaken().put(0, frozenset("a"), add).put(1, frozenset("b"), add)
    untaken, total = untaken.collect()
    assert (total, untaken) == (frozenset("ab"), Untaken(1))
    assert untaken.collect() == (untaken, None)
    with pytest.raises(AssertionError, match="the result of round 1 after that of 1"):
        untaken.put(1, frozenset("c"), add)


class Worker(NamedTuple):
    """A trainer and its engine. contributed: to the round that the engine is in, or None."""

    left: int  # steps
    arrived: int = -1
    waits: bool = False
    applied: frozenset = frozenset()
    pending: Pending = Pending()
    round: int = 0
    contributed: frozenset | None = None
    untaken: Untaken = Untaken()

    @property
    def buffers(self):
        """How many there are of an increment's size: pending, contributed (maybe zeros), its result, untaken."""
        exchanges = 0 if self.contributed is None else 2
        return (self.pending.total is not None) + exchanges + (self.untaken.total is not None)


def moves(world, sync_period, results):
    """What can happen next, each as the worlds (and results by round) after it; every round is solo."""
    for i, worker in enumerate(world):
        after = lambda new, i=i: (*world[:i], new, *world[i + 1 :])
        r = worker.round
        is_sync = (r + 1) % sync_period == 0
        arrivals = [other.arrived >= r for other in world]
        rests = [not other.left and not other.waits for other in world]
        started = any(arrivals)
        if is_sync:
            started = started and all(arrived or at_rest for arrived, at_rest in zip(arrivals, rests, strict=True))
        if worker.left and not worker.waits:
            t = worker.arrived + 1
            pending = worker.pending.hand_in(t, frozenset({(i, t)}), add)
            yield after(worker._replace(left=worker.left - 1, arrived=t, waits=True, pending=pending)), results
        if worker.waits and r > worker.arrived:
            untaken, total = worker.untaken.collect()
            applied = worker.applied if total is None else add(worker.applied, total)
            yield after(worker._replace(waits=False, applied=applied, untaken=untaken)), results
        if started and worker.contributed is None:
            pending, contributed = worker.pending.contribute()
            yield after(worker._replace(pending=pending, contributed=contributed or frozenset())), results
        if worker.contributed is not None and all(
            o.round > r or (o.round == r and o.contributed is not None) for o in world
        ):
            result = results[r] if len(results) > r else frozenset()
            if len(results) == r:
                for other in world:
                    assert other.round == r
                    result = add(result, other.contributed)
            put = worker.untaken.put(r, result, add)
            assert worker.buffers <= 4
            yield (
                after(worker._replace(round=r + 1, contributed=None, untaken=put)),
                results if len(results) > r else (*results, result),
            )


def check(world, sync_period, results, steps):
    """Conservation: what was handed in is pending, on its way, or in one result; results are applied or untaken."""
    for i, worker in enumerate(world):
        handed = {(i, t) for t in range(worker.arrived + 1)}
        found = [worker.pending.total, worker.contributed if worker.round == len(results) else None, *results]
        mine = [entry for part in found if part for entry in part if entry[0] == i]
        assert sorted(mine) == sorted(handed)
        taken = [entry for part in (worker.applied, worker.untaken.total) if part for entry in part]
        assert sorted(taken) == sorted(entry for result in results[: worker.round] for entry in result)
        if worker.round and worker.round % sync_period == 0 and len(results) == worker.round:  # nothing is kept
            flushed = {(j, t) for j in range(len(world)) for t in range(min(worker.round, steps[j]))}
            assert flushed <= frozenset().union(*results)


@pytest.mark.parametrize(
    ("steps", "sync_period"), [((3, 3), 3), ((3, 1), 2), ((2, 4), 2), ((4, 2), 9), ((2, 2, 2), 2), ((2, 1, 2), 9)]
)
def test_every_interleaving_applies_each_increment_once(steps, sync_period):
    start: Any = tuple(map(Worker, steps)), ()
    seen, stack, ends, most = {start}, [start], 0, 0
    while stack:
        world, results = stack.pop()
        check(world, sync_period, results, steps)
        most = max(most, *(worker.buffers for worker in world))
        following = list(moves(world, sync_period, results))
        for entry in following:
            if entry not in seen:
                seen.add(entry)
                stack.append(entry)
        if not following:
            ends += 1
            assert all(not worker.left and not worker.waits for worker in world), "stuck"
            if len(set(steps)) == 1 and steps[0] % sync_period == 0:
                everything = {(i, t) for i, n in enumerate(steps) for t in range(n)}
                assert all(worker.applied == everything for worker in world)
    assert ends > 0
    assert most == 4 or sync_period == 2  # pending, zeros, the result that is coming, and one that is not taken
