"""The protocol's invariants: all interleavings of small cases, random ones of larger, and what each rule is for."""

import functools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protocol.simulation import Cluster, Violation, explore, walk

from wagma_jax.protocol import messages
from wagma_jax.protocol.lifecycle import Lifecycle
from wagma_jax.protocol.messages import Rest
from wagma_jax.protocol.rounds import Rounds
from wagma_jax.protocol.rules import Inbox
from wagma_jax.schedule import GroupSchedule

SMALL = [  # workers, group size, sync period, each trainer's plan (of "acm", see simulation.py; then close), quorum
    (2, 2, None, ("aa", "aa"), 1),
    (2, 2, 2, ("aaa", "aa"), 1),
    (2, 2, 3, ("aac", "ca"), 2),
    (2, 1, 2, ("aa", "aaa"), 1),
    (3, 2, 2, ("aa", "aa", "a"), 1),
    pytest.param(3, 2, 2, ("aa", "aa", "aa"), 2, marks=pytest.mark.long),
    (3, 2, 3, ("ac", "aca", "ca"), 1),
    (3, 2, 3, ("aaa", "aa", "a"), 2),
    (3, 2, None, ("aa", "a", "a"), 1),
    (3, 3, 2, ("aa", "a", "a"), 2),
    pytest.param(3, 3, 2, ("aa", "a", "aa"), 2, marks=pytest.mark.long),
    (4, 2, 2, ("a", "", "a", ""), 1),
    pytest.param(4, 2, 2, ("a", "a", "a", ""), 1, marks=pytest.mark.long),
    pytest.param(4, 2, None, ("am", "ma", "ma", "m"), 1, marks=pytest.mark.long),
    (4, 2, 2, ("a", "a", "a", ""), 2),
    (4, 2, 3, ("a", "", "a", ""), 1),
    (2, 2, 4, ("aca", "aca"), 2),
    (4, 2, 3, ("ac", "ac", "c", "ca"), 2),
    pytest.param(4, 2, 3, ("aac", "ac", "c", "ca"), 2, marks=pytest.mark.long),
    (2, 2, None, ("ama", "ma"), 1),
    (2, 2, 2, ("aama", "ma"), 1),
    (2, 1, 1, ("amam", "maam"), 1),
    (2, 2, 3, ("aamca", "mac"), 2),
    (3, 2, None, ("am", "ma", "m"), 1),
    (3, 2, 2, ("am", "ma", "ma"), 1),
    (3, 2, 2, ("aam", "am", "m"), 2),
    (4, 2, None, ("am", "m", "am", "m"), 2),
    (4, 2, None, ("am", "am", "m", "m"), 1),  # the group of two who have not arrived catches up
]


@pytest.mark.parametrize("clock", ["step", "round"])
@pytest.mark.parametrize(("num_workers", "group_size", "sync_period", "plans", "quorum"), SMALL)
def test_every_interleaving_keeps_the_invariants(num_workers, group_size, sync_period, plans, quorum, clock):
    schedule = GroupSchedule(num_workers, group_size, sync_period)
    assert explore(Cluster(schedule, plans, quorum, clock)) > 20


PATIENT = [  # as SMALL; whoever waits for its quorum may have enough of it at any time
    (2, 2, None, ("aa", "aa"), 2),
    (2, 2, 3, ("aaa", "a"), 2),
    (2, 2, 2, ("aac", "aca"), 2),
    (2, 2, None, ("ama", "ma"), 2),
    (3, 2, None, ("a", "a", ""), 2),
    (4, 2, None, ("a", "a", "", ""), 2),
    pytest.param(3, 2, 2, ("aa", "a", "a"), 2, marks=pytest.mark.long),
    pytest.param(3, 3, None, ("a", "", ""), 3, marks=pytest.mark.long),
    pytest.param(3, 2, 3, ("aa", "aa", "a"), 2, marks=pytest.mark.long),
    pytest.param(3, 3, 2, ("a", "a", ""), 2, marks=pytest.mark.long),
    pytest.param(4, 2, None, ("a", "a", "a", ""), 2, marks=pytest.mark.long),
]


@pytest.mark.parametrize("clock", ["step", "round"])
@pytest.mark.parametrize(("num_workers", "group_size", "sync_period", "plans", "quorum"), PATIENT)
def test_every_interleaving_with_patience_keeps_the_invariants(
    num_workers, group_size, sync_period, plans, quorum, clock
):
    schedule = GroupSchedule(num_workers, group_size, sync_period)
    assert explore(Cluster(schedule, plans, quorum, clock, patience=True)) > 20


@pytest.mark.parametrize("clock", ["step", "round"])
@pytest.mark.parametrize(("plans", "abort_at"), [(("aa", "aa"), (1, 1)), (("a", "a", "a"), (0, 0))])
def test_every_interleaving_of_a_failure_with_patience_ends_everywhere(plans, abort_at, clock):
    schedule = GroupSchedule(len(plans), 2, None)
    assert explore(Cluster(schedule, plans, 2, clock, abort_at=abort_at, patience=True)) > 20


@pytest.mark.parametrize("clock", ["step", "round"])
@pytest.mark.parametrize(
    ("plans", "abort_at"), [(("aa", "aa"), (1, 1)), (("ac", "a", "aa"), (2, 1)), (("a", "a", "a"), (0, 1))]
)
def test_every_interleaving_of_a_failure_ends_everywhere(plans, abort_at, clock):
    schedule = GroupSchedule(len(plans), 2, 2)
    assert explore(Cluster(schedule, plans, 1, clock, abort_at=abort_at)) > 20


@pytest.mark.parametrize("clock", ["step", "round"])
@pytest.mark.parametrize(
    ("sync_period", "plans", "dies_resting"),
    [
        (2, ("am", "ma"), (0, 1)),
        (2, ("m", "am"), (1, 1)),
        (None, ("am", "m", "m"), (1, 1)),
        (None, ("am", "m", "m"), (0, 1)),
        (2, ("ac", "c", "c"), (1, 1)),
        (2, ("a", "a"), (1, 1)),
    ],
)
def test_every_interleaving_of_a_failure_at_rest_ends_everywhere(sync_period, plans, dies_resting, clock):
    schedule = GroupSchedule(len(plans), 2, sync_period)
    assert explore(Cluster(schedule, plans, 1, clock, dies_resting=dies_resting)) > 20


@pytest.mark.parametrize("clock", ["step", "round"])
@pytest.mark.parametrize(
    ("sync_period", "plans", "dies_waiting"),
    [
        (None, ("aa", "aa"), (0, 2)),
        (2, ("aa", "aa"), (1, 1)),
        (2, ("aa", "aa"), (0, 2)),
        (None, ("am", "am", "m"), (1, 1)),
        (2, ("aa", "a", "a"), (2, 1)),
        pytest.param(2, ("aa", "a", "aa"), (2, 1), marks=pytest.mark.long),
    ],
)
def test_every_interleaving_of_a_failure_inside_a_call_ends_everywhere(sync_period, plans, dies_waiting, clock):
    schedule = GroupSchedule(len(plans), 2, sync_period)
    assert explore(Cluster(schedule, plans, 1, clock, dies_waiting=dies_waiting)) > 20


LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("group_size", "sync_period", "plan", "fails"),
    [
        (2, None, "m", {"abort_at": (2, 0)}),
        pytest.param(2, None, "", {"dies_resting": (2, 1)}, marks=LONG),
        pytest.param(1, None, "m", {"dies_resting": (0, 1)}, marks=LONG),
        pytest.param(2, None, "m", {"dies_resting": (2, 1)}, marks=LONG),
        pytest.param(2, None, "m", {"dies_resting": (3, 1)}, marks=LONG),
        pytest.param(1, 1, "a", {"abort_at": (2, 0)}, marks=LONG),
    ],
)
def test_every_interleaving_of_a_failure_inside_the_tree_ends_everywhere(group_size, sync_period, plan, fails):
    schedule = GroupSchedule(4, group_size, sync_period)
    assert explore(Cluster(schedule, (plan,) * 4, **fails), limit=10_000_000) > 10_000


@st.composite
def clusters(draw, most=9):
    num_workers = draw(st.integers(1, most))
    schedule = GroupSchedule(
        num_workers, draw(st.integers(1, num_workers)), draw(st.sampled_from([None, 1, 2, 3, 5])), draw(st.booleans())
    )
    rests = draw(st.lists(st.sampled_from("cm"), max_size=2))  # called equally often
    arrivals = lambda: "a" * draw(st.integers(0, 7))
    plans = tuple("".join(arrivals() + rest for rest in [*rests, ""]) for _ in range(num_workers))
    return schedule, plans, draw(st.integers(1, 4)), draw(st.sampled_from(["step", "round"]))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(clusters(), st.integers(0, 2**32))
def test_random_interleavings_keep_the_invariants(case, seed):
    schedule, plans, quorum, clock = case
    patience = bool(seed & 1)  # also without a quorum, where it must change nothing
    walk(Cluster(schedule, plans, quorum, clock, patience=patience), choose(seed, schedule.num_workers))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(clusters(), st.integers(0, 2**32), st.data())
def test_a_failure_ends_every_run(case, seed, data):
    schedule, plans, quorum, clock = case
    worker = data.draw(st.integers(0, schedule.num_workers - 1))
    calls = len(plans[worker])
    if schedule.num_workers == 1 or calls == 0:
        return
    abort_at = (worker, data.draw(st.integers(0, calls - 1)))
    walk(Cluster(schedule, plans, quorum, clock, abort_at=abort_at), choose(seed, schedule.num_workers))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(clusters(17), st.integers(0, 2**32), st.data())
def test_several_failures_at_any_time_end_every_run(case, seed, data):
    schedule, plans, quorum, clock = case
    workers = st.integers(0, schedule.num_workers - 1)
    die = data.draw(st.sets(workers, min_size=1, max_size=3))
    walk(Cluster(schedule, plans, quorum, clock, die=die), choose(seed, schedule.num_workers))


def choose(seed, num_workers):
    """Picks moves at random; a random half of the seeds prefers some (a slow worker is one that is rarely picked)."""
    source = random.Random(seed)
    favour = source.choice([1.0, 1.0, 3.0, 8.0])
    return lambda count: min(int(count * source.random() ** favour), count - 1)


# each rule is there for an invariant


class NoReadiness(Rounds):
    def _all_ready(self, state, r):
        return True


class NoResting(Rounds):
    def _served(self, state, r):
        return state.arrived >= r


class NoForce(Rounds):
    def _later_activated(self, state):
        return False


class NeverTired(Rounds):
    """Goes on waiting for a quorum when it has waited for long enough."""

    def step(self, state, event):
        if isinstance(event, messages.Expire):
            return state._replace(expired=event.round), []
        return super().step(state, event)


class EndsAtOnce(Rounds):
    def _wind_up(self, state, actions):
        actions.append(messages.Shutdown())
        return state._replace(life=state.life._replace(over=True))


class NoCall(Rounds):
    def _call(self, state, k, source, actions):
        return state


class JumpsAnywhere(Rounds):
    def target(self, state, counter):
        return max(counter + 2, state.round)


class WindsUpAtOnce(Rounds):
    """Who fails does not go through with what it has been woken to."""

    def _settle(self, state, actions):
        ends = state.life.aborted and not state.life.over and not state.exchanging
        return self._wind_up(state, actions) if ends else super()._settle(state, actions)


class NoCatchingUp(Rounds):
    def _is_gathered(self, state):
        return state.life.woken is not None


class Impatient(Lifecycle):
    """Worker 0 wakes all as soon as its own trainer rests."""

    def gather(self, life, arrived, actions):
        life = super().gather(life, arrived, actions)
        wakes = self.worker == 0 and life.resting != Rest.NONE and life.woken is None
        return self._wake(life, actions) if wakes else life


class WakesEarly(Rounds):
    @property
    def lifecycle(self):
        return Impatient(self.worker, self.num_workers)


class RestsWithATally(Rounds):
    """A trainer that rests adds a tally to a sync round, too."""

    def _sync_round(self, state, actions):
        if self._served(state, state.round) and state.arrived < state.round:
            state = self._add_tally(state, state.round, (9,))
        return super()._sync_round(state, actions)


class KeepsTallies(Rounds):
    """The tallies of a call at an ordinary round count at the next sync round."""

    def _arrived(self, state, event):
        k = next(k for k in range(event.round, event.round + 9) if self.plan.is_sync(k))
        return super()._arrived(self._add_tally(state, k, event.tally), event)


class TakenAgain(Inbox):
    def collect(self, version):
        inbox, merge, taken = super().collect(version)
        return (self, merge, taken) if taken is not None else (inbox, merge, taken)

    def put(self, result):
        return TakenAgain(result)


class ThrownAway(Inbox):
    """A sum that was not taken is gone when the next exchange begins."""

    def reuse(self):
        inbox, memory = super().reuse()
        return inbox._replace(is_replaced=False), memory

    def put(self, result):
        return ThrownAway(result)


def mean_not_published(outbox, inbox, version, mean):
    return outbox, type(inbox)()


MUTANTS = {
    "patience": ((2, 2, None), ("a", "a"), 2, "step", {"machine": NeverTired, "patience": True}),
    "readiness": ((3, 2, 3), ("aa", "aa", "aa"), 1, "step", {"machine": NoReadiness}),
    "resting": ((3, 2, 3), ("aa", "aa", "a"), 2, "step", {"machine": NoResting}),
    "force": ((3, 2, None), ("aa", "aa", ""), 1, "step", {"machine": NoForce}),
    "call": ((3, 2, 2), ("aa", "aa", ""), 1, "step", {"machine": NoCall}),
    "order of a jump": ((3, 2, 2), ("aa", "aa", "a"), 1, "round", {"machine": JumpsAnywhere}),
    "taken once": ((3, 2, None), ("aa", "aaa", "aa"), 1, "step", {"inbox": TakenAgain}),
    "untaken sums": ((2, 2, None), ("aaa", "aaa"), 1, "step", {"inbox": ThrownAway}),
    "publication of the mean": ((2, 2, 2), ("aaa", "aa"), 1, "step", {"mean": mean_not_published}),
    "no tally at rest": ((2, 2, 2), ("aa", ""), 1, "step", {"machine": RestsWithATally}),
    "tallies of sync rounds only": ((2, 2, 2), ("aa", "aa"), 1, "step", {"machine": KeepsTallies}),
    "who is woken goes": (
        (3, 2, None),
        ("am", "m", "m"),
        1,
        "step",
        {"machine": WindsUpAtOnce, "dies_resting": (1, 1)},
    ),
    "barrier of a meeting": ((2, 2, 2), ("ma", "ma"), 1, "step", {"barrier": False}),
    "all rest": ((2, 2, None), ("am", "m"), 1, "step", {"machine": WakesEarly}),
    "catching up": ((4, 2, None), ("am", "am", "m", "m"), 1, "step", {"machine": NoCatchingUp}),
    "promises kept": ((3, 2, 2), ("ac", "a", "aa"), 1, "step", {"machine": EndsAtOnce, "abort_at": (2, 1)}),
}


@pytest.mark.parametrize("rule", MUTANTS)
def test_without_a_rule_an_invariant_breaks(rule):
    shape, plans, quorum, clock, mutation = MUTANTS[rule]
    with pytest.raises((Violation, AssertionError)):
        explore(Cluster(GroupSchedule(*shape), plans, quorum, clock, **mutation))
    kept = {name: mutation[name] for name in ("abort_at", "patience") if name in mutation}
    intact = Cluster(GroupSchedule(*shape), plans, quorum, clock, **kept)
    walk(intact, choose(0, shape[0]))


class KeepsFinalToItself(Lifecycle):
    """Who learns that nobody will be woken does not pass it on."""

    def _give_up(self, life, text, actions):
        return life._replace(final=True)


class HopesOn(Lifecycle):
    """Who fails before it has promised anything does not say that there will be no waking."""

    def abort(self, life, text, actions):
        told = []
        life = super().abort(life, text, told)
        actions.extend(send._replace(message=send.message._replace(final=False)) for send in told)
        return life


class Speechless(Lifecycle):
    """Who is woken, or told to go, does not tell those below."""

    def _woken(self, life, woken, actions):
        return life._replace(woken=woken)


class NoPeers(Lifecycle):
    def __init__(self, worker, num_workers, peers):
        super().__init__(worker, num_workers, ())


def with_lifecycle(kind):
    class Machine(Rounds):
        @functools.cached_property
        def lifecycle(self):
            return kind(self.worker, self.num_workers, self.plan.peers(self.worker))

    return Machine


@pytest.mark.parametrize(
    ("shape", "plans", "lifecycle", "fails"),
    [
        ((6, 1, None), ("m", "m", "m", "aaam", "m", "m"), KeepsFinalToItself, {"dies_resting": (5, 1)}),
        ((6, 1, None), ("m", "m", "m", "am", "m", "m"), HopesOn, {"abort_at": (3, 1)}),
        ((4, 1, None), ("m", "m", "m", "m"), Speechless, {}),
        ((4, 4, None), ("a", "a", "a", "a"), NoPeers, {"abort_at": (0, 0)}),
    ],
)
def test_without_a_rule_of_the_tree_somebody_waits_for_ever(shape, plans, lifecycle, fails):
    def walks(machine):
        for seed in range(40):
            walk(Cluster(GroupSchedule(*shape), plans, machine=machine, **fails), choose(seed, shape[0]))

    walks(Rounds)
    with pytest.raises(Violation, match="not all are at their end"):
        walks(with_lifecycle(lifecycle))
