"""The protocol's invariants: every interleaving of small cases, random ones of larger, and what each rule is for."""

import random

import pytest
from exchange.simulation import Cluster, Violation, explore, walk
from hypothesis import given, settings
from hypothesis import strategies as st

from wagma_jax.exchange import protocol
from wagma_jax.exchange.buffers import GroupSum, Inbox, Merge, Outbox, global_mean
from wagma_jax.exchange.protocol import Kind, Message, Rest, Rounds, State
from wagma_jax.schedule import GroupSchedule

SMALL = [  # workers, group size, sync period, each trainer's plan (of "acm", see simulation.py; then close), quorum
    (2, 2, None, ("aa", "aa"), 1),
    (2, 2, 2, ("aaa", "aa"), 1),
    (2, 2, 3, ("aac", "ca"), 2),
    (2, 1, 2, ("aa", "aaa"), 1),
    (3, 2, 2, ("aa", "aa", "a"), 1),
    (3, 2, 2, ("aa", "aa", "aa"), 2),
    (3, 2, 3, ("ac", "aca", "ca"), 1),
    (3, 2, 3, ("aaa", "aa", "a"), 2),
    (3, 2, None, ("aa", "a", "a"), 1),
    (3, 3, 2, ("aa", "a", "aa"), 2),
    (4, 2, 2, ("a", "", "a", ""), 1),  # with three, by the round clock, two minutes
    (4, 2, 2, ("a", "a", "a", ""), 2),
    (4, 2, 3, ("a", "", "a", ""), 1),
    (2, 2, 4, ("aca", "aca"), 2),
    (4, 2, 3, ("aac", "ac", "c", "ca"), 2),
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


@st.composite
def clusters(draw):
    num_workers = draw(st.integers(1, 9))
    schedule = GroupSchedule(
        num_workers, draw(st.integers(1, num_workers)), draw(st.sampled_from([None, 1, 2, 3, 5])), draw(st.booleans())
    )
    rests = draw(st.lists(st.sampled_from("cm"), max_size=2))  # called equally often
    arrivals = lambda: "a" * draw(st.integers(0, 7))
    plans = tuple("".join(arrivals() + rest for rest in [*rests, ""]) for _ in range(num_workers))
    return schedule, plans, draw(st.integers(1, 4)), draw(st.sampled_from(["step", "round"]))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(clusters(), st.integers(0, 2**32))
def test_random_interleavings_keep_the_invariants(case, seed):
    schedule, plans, quorum, clock = case
    walk(Cluster(schedule, plans, quorum, clock), choose(seed, schedule.num_workers))


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


class EndsAtOnce(Rounds):
    def _wind_up(self, state, actions):
        actions.append(protocol.Shutdown())
        return state._replace(over=True)


class NoCall(Rounds):
    def _call(self, state, k, source, actions):
        return state


class JumpsAnywhere(Rounds):
    def target(self, state, counter):
        return max(counter + 2, state.round)


class WindsUpAtOnce(Rounds):
    """Who fails does not go through with what it has been woken to."""

    def _settle(self, state, actions):
        ends = state.aborted and not state.over and not state.exchanging
        return self._wind_up(state, actions) if ends else super()._settle(state, actions)


class NoCatchingUp(Rounds):
    def _woken(self, state, woken):
        return super()._woken(state, woken._replace(newest=state.round - 1))


class RestsWithATally(Rounds):
    """A trainer that rests adds a tally to a sync round, too."""

    def _sync_round(self, state, actions):
        if self._served(state, state.round) and state.arrived < state.round:
            state = self._add_tally(state, state.round, self.worker, (9,))
        return super()._sync_round(state, actions)


class KeepsTallies(Rounds):
    """The tallies of a call at an ordinary round count at the next sync round."""

    def _arrived(self, state, event):
        k = next(k for k in range(event.round, event.round + 9) if self.schedule.is_sync(k))
        return super()._arrived(self._add_tally(state, k, self.worker, event.tally), event)


class TakenAgain(Inbox):
    def collect(self, version):
        inbox, merge, taken = super().collect(version)
        return (self, merge, taken) if taken is not None else (inbox, merge, taken)

    def put(self, result):
        return TakenAgain(result)


def mean_not_published(outbox, inbox, version, mean):
    return outbox, type(inbox)()


MUTANTS = {
    "readiness": ((3, 2, 3), ("aa", "aa", "aa"), 1, "step", {"machine": NoReadiness}),
    "resting": ((3, 2, 3), ("aa", "aa", "a"), 2, "step", {"machine": NoResting}),
    "force": ((3, 2, None), ("aa", "aa", ""), 1, "step", {"machine": NoForce}),
    "call": ((3, 2, 2), ("aa", "aa", ""), 1, "step", {"machine": NoCall}),
    "order of a jump": ((3, 2, 2), ("aa", "aa", "a"), 1, "round", {"machine": JumpsAnywhere}),
    "taken once": ((3, 2, None), ("aa", "aaa", "aa"), 1, "step", {"inbox": TakenAgain}),
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
    "catching up": ((4, 2, None), ("am", "am", "m", "m"), 1, "step", {"machine": NoCatchingUp}),
    "promises kept": ((3, 2, 2), ("ac", "a", "aa"), 1, "step", {"machine": EndsAtOnce, "abort_at": (2, 1)}),
}


@pytest.mark.parametrize("rule", MUTANTS)
def test_without_a_rule_an_invariant_breaks(rule):
    shape, plans, quorum, clock, mutation = MUTANTS[rule]
    with pytest.raises((Violation, AssertionError)):
        explore(Cluster(GroupSchedule(*shape), plans, quorum, clock, **mutation))
    intact = Cluster(GroupSchedule(*shape), plans, quorum, clock, abort_at=mutation.get("abort_at"))
    walk(intact, choose(0, shape[0]))


# single rules, by hand


def machine(worker=0, num_workers=4, group_size=2, sync_period=3, **options):
    return Rounds(GroupSchedule(num_workers, group_size, sync_period), worker, **options)


def sends(actions):
    return [(action.dest, action.message.kind.name, action.message.round) for action in actions]


def test_an_arrival_tells_the_group_and_the_first_answer_starts_the_exchange():
    m = machine()
    state, actions = m.step(State(), protocol.Arrive(0))
    assert sends(actions) == [(1, "ARRIVED", 0)]
    state, actions = m.step(state, protocol.Receive(1, Message(Kind.READY, 0)))
    assert actions == [protocol.Exchange(0, (0, 1))]
    state, actions = m.step(state, protocol.Completed())
    assert (state.round, state.facts, actions) == (1, frozenset(), [])


def test_a_peers_arrival_is_answered_without_the_trainer():
    _, actions = machine(worker=1).step(State(), protocol.Receive(0, Message(Kind.ARRIVED, 0)))
    assert sends(actions[:-1]) == [(0, "READY", 0)]
    assert actions[-1] == protocol.Exchange(0, (0, 1))


def test_a_quorum_waits_for_the_second():
    state, actions = machine(worker=1, quorum=2).step(State(), protocol.Receive(0, Message(Kind.ARRIVED, 0)))
    assert actions == []
    state, actions = machine(worker=1, quorum=2).step(state, protocol.Arrive(0))
    assert sends(actions[:-1]) == [(0, "ARRIVED", 0)]
    assert actions[-1] == protocol.Exchange(0, (0, 1))


def test_a_quorum_larger_than_the_group_is_all_of_it():
    lonely = Rounds(GroupSchedule(3, 2, None), 2, quorum=2)
    assert lonely.schedule.group_of(2, 0) == (2,)
    assert lonely.step(State(), protocol.Arrive(0))[1] == [protocol.Exchange(0, (2,))]


def test_a_later_round_forces_the_current_one():
    state, actions = machine(worker=1).step(State(), protocol.Receive(3, Message(Kind.ARRIVED, 1)))
    assert sends(actions) == [(0, "FORCE", 0)]
    state, actions = machine(worker=1).step(state, protocol.Receive(0, Message(Kind.READY, 0)))
    assert actions == [protocol.Exchange(0, (0, 1))]


def test_a_sync_round_goes_by_worker_0():
    m = machine(worker=3)
    state, actions = m.step(State(round=2), protocol.Arrive(2))
    assert sends(actions) == [(2, "SYNC", 2), (1, "SYNC", 2), (0, "READY", 2)]
    state, actions = m.step(state, protocol.Receive(0, Message(Kind.GO, 2)))
    assert actions == [protocol.Exchange(2, (0, 1, 2, 3))]


def test_targets_of_the_two_clocks():
    step, rounds = machine(), machine(clock="round")
    ahead = State(round=7)  # rounds up to 6 are complete
    assert step.target(ahead, 2) == 3
    assert rounds.target(ahead, 2) == 6
    assert rounds.target(ahead, 6) == 7
    assert rounds.target(State(round=8), 3) == 8, "to the sync round that is next, called or not"
    assert rounds.target(State(round=7, called=8), 3) == 6


def test_who_is_waited_for():
    m = machine()
    assert m.waits_for(m.step(State(), protocol.Arrive(0))[0]) == (1,)
    ready = m.step(State(round=2), protocol.Receive(2, Message(Kind.READY, 2)))[0]
    assert m.waits_for(ready) == (0,)
    assert m.waits_for(m.step(ready, protocol.Arrive(2))[0]) == (1, 3)
    assert machine(worker=1).waits_for(machine(worker=1).step(State(round=2), protocol.Arrive(2))[0]) == (0,)
    resting = m.step(State(), protocol.Retire(Rest.MEET))[0]
    assert m.waits_for(resting) == (1, 2, 3)


def test_unlike_rests_fail_everywhere():
    m = machine(num_workers=2)
    state, _ = m.step(State(), protocol.Retire(Rest.CONSENSUS))
    state, actions = m.step(state, protocol.Receive(1, Message(Kind.REST, -1, Rest.CLOSE)))
    failure, abort, end = actions
    assert "rank 0 called consensus(); rank 1 called close()" in failure.text
    assert abort == protocol.Send(1, Message(Kind.ABORT, 0, text=failure.text))
    assert end == protocol.Shutdown()


def test_the_newest_sum_is_taken_once_and_tells_whether_it_holds_the_own_model():
    inbox = Inbox().put(GroupSum(3, own=2, size=2, total="sum of round 3"))
    after, merge, taken = inbox.collect(version=3)
    assert (merge, taken.total) == (Merge.LATE, "sum of round 3")
    assert after.collect(version=4) == (after, Merge.OWN, None)
    assert inbox.collect(version=2)[1] == Merge.SUM
    newer = inbox.put(GroupSum(4, own=3, size=2, total="sum of round 4"))
    assert newer.collect(version=3)[1:] == (Merge.SUM, newer.newest)


def test_versions_never_decrease():
    outbox = Outbox(-1, "W_0").publish(3, "W'")
    with pytest.raises(AssertionError):
        outbox.publish(2, "older")
    assert global_mean(outbox, Inbox(), 4, "mean") == (Outbox(4, "mean"), Inbox())
