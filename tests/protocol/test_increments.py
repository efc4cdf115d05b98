"""Increments are neither lost nor counted twice: by hand, and in every interleaving of small runs of the machine."""

import collections
import random

import pytest
from protocol.increments import Increments
from protocol.simulation import Violation, explore, walk

from wagma_jax.protocol.increments import Pending, Untaken
from wagma_jax.protocol.messages import Kind
from wagma_jax.protocol.plan import PartialPlan
from wagma_jax.protocol.rounds import Rounds


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


SMALL = [  # workers, sync period, each trainer's plan (of "acm", see simulation.py; then close), seed of initiators
    (2, 3, ("aaa", "aaa"), None),
    (2, None, ("aaa", "a"), None),
    (2, 2, ("aac", "aac"), None),
    (2, 2, ("aaa", "a"), 0),
    (2, None, ("ama", "aam"), 1),
    (3, 1, ("a", "a", "a"), None),
    (3, None, ("a", "a", ""), 3),
    (3, 2, ("a", "a", ""), 0),
    pytest.param(3, 2, ("aa", "a", ""), 0, marks=pytest.mark.long),
    pytest.param(3, 2, ("a", "aa", "a"), None, marks=pytest.mark.long),
    pytest.param(3, None, ("a", "a", "a"), 3, marks=pytest.mark.long),
    pytest.param(3, 2, ("aa", "aa", ""), 0, marks=pytest.mark.long),
]


@pytest.mark.parametrize("clock", ["step", "round"])
@pytest.mark.parametrize(("num_workers", "sync_period", "plans", "seed"), SMALL)
def test_every_interleaving_applies_each_increment_once(num_workers, sync_period, plans, seed, clock):
    assert explore(Increments(num_workers, sync_period, plans, clock, seed)) > 20


@pytest.mark.parametrize("clock", ["step", "round"])
@pytest.mark.parametrize(
    ("plans", "seed", "abort_at"),
    [(("aa", "aa"), 0, (1, 1)), (("a", "a", ""), 3, (0, 0)), (("aa", "a"), None, (0, 1))],
)
def test_every_interleaving_of_a_failure_ends_everywhere(plans, seed, abort_at, clock):
    assert explore(Increments(len(plans), 2, plans, clock, seed, abort_at=abort_at)) > 20


@pytest.mark.parametrize("clock", ["step", "round"])
@pytest.mark.parametrize("seed", range(12))
def test_random_interleavings_apply_each_increment_once(seed, clock):
    source = random.Random(seed)
    plans = tuple("a" * source.randrange(7) for _ in range(source.randint(1, 7)))
    plans = tuple(plan + "m" + "a" * source.randrange(4) for plan in plans)
    initiators = source.choice([None, seed])
    quorum = 1 if initiators is not None else source.randint(1, len(plans))
    cluster = Increments(len(plans), source.choice([None, 1, 3]), plans, clock, initiators, quorum)
    walk(cluster, lambda count: source.randrange(count))


class Overwrites(Pending):
    """What the authors' public code does: a gradient that came too late makes room for the next."""

    def hand_in(self, version, increment, add):
        return Overwrites(version, increment)

    def contribute(self):
        return Overwrites(self.version), self.total


class Keeps(Pending):
    def hand_in(self, version, increment, add):
        return Keeps(version, increment if self.total is None else self.total | increment)

    def contribute(self):
        return self, self.total


class NewestOnly(Untaken):
    """What the paper does: only the newest result can be taken."""

    def put(self, r, result, add):
        return NewestOnly(r, result)

    def collect(self):
        return NewestOnly(self.newest), self.total


class TakenAgain(Untaken):
    def put(self, r, result, add):
        return TakenAgain(r, result if self.total is None else self.total | result)

    def collect(self):
        return self, self.total


class AnyoneStarts(Rounds):
    def _activated(self, state, r):
        return bool(state.facts.who(r, *Kind))


MUTANTS = {
    "late increments are kept": ((2, None, ("aaa", "aaa")), {"pending": Overwrites}),
    "a contribution is cleared": ((2, None, ("aa", "aa")), {"pending": Keeps}),
    "results add up": ((2, None, ("aa", "a")), {"untaken": NewestOnly}),
    "results are taken once": ((2, None, ("aa", "aa")), {"untaken": TakenAgain}),
    "the initiator starts": ((2, None, ("aa", "aa"), "step", 1), {"machine": AnyoneStarts}),
}


@pytest.mark.parametrize("rule", MUTANTS)
def test_without_a_rule_an_invariant_breaks(rule):
    arguments, mutation = MUTANTS[rule]
    with pytest.raises(Violation):
        explore(Increments(*arguments, **mutation))
    walk(Increments(*arguments), lambda count: 0)


def test_initiators_are_drawn_evenly_and_alike_on_all_workers():
    plan = PartialPlan(5, 10, seed=7)
    steps = [plan.step(2, r) for r in range(5000)]
    assert steps == [PartialPlan(5, 10, seed=7).step(4, r) for r in range(5000)]
    assert [step.is_sync for step in steps[:20]] == ([False] * 9 + [True]) * 2
    counts = collections.Counter(step.initiator for step in steps)
    assert counts[None] == 500
    assert all(800 < counts[worker] < 1000 for worker in range(5))
    assert all(step.members == (0, 1, 2, 3, 4) for step in steps)
