"""The machine of pairs: by hand, all interleavings of small cases, random ones of larger, and what each rule is for."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protocol.pairs import EXACT, Cluster
from protocol.simulation import Violation, explore, walk

from wagma_jax.bipartite import PairSchedule
from wagma_jax.protocol import messages
from wagma_jax.protocol.live import Live
from wagma_jax.protocol.messages import Kind, Message, Rest
from wagma_jax.protocol.pairwise import Accept, Answer, Ask, Came, Gone, Merge, Pairwise, State


def asked(number):
    return Message(Kind.ASK, number)


# by hand


def test_a_swap_of_two():
    schedule = PairSchedule(2)
    active, passive = Pairwise(schedule, 0), Pairwise(schedule, 1)
    asking, actions = active.step(State(), messages.Arrive(0))
    assert actions == [Ask(1, 0, 0), messages.Send(1, asked(0))]
    assert active.step(asking, messages.Arrive(1))[1] == [], "no second swap is begun"

    serving, actions = passive.step(State(), messages.Receive(0, asked(0)))
    assert actions == [Accept(0, 0)]
    serving, actions = passive.step(serving, Came(0, 0))
    assert actions == [Answer(0, 0, 0)]
    asking, actions = active.step(asking, Came(0, 0))
    assert actions == [Merge(1, 0)]
    assert asking.swap is None
    assert passive.step(serving, Gone())[0].swap is None
    assert active.step(asking, messages.Arrive(1))[1] == [Ask(1, 1, 1), messages.Send(1, asked(1))]


def test_a_passive_worker_begins_nothing_and_serves_in_turn():
    passive = Pairwise(PairSchedule(4), 1)
    state, actions = passive.step(State(), messages.Arrive(0))
    assert actions == []
    state, _ = passive.step(state, messages.Receive(2, asked(5)))
    state, actions = passive.step(state, messages.Receive(0, asked(3)))
    assert actions == []
    state, _ = passive.step(state, Came(5, 7))
    state, actions = passive.step(state, Gone())
    assert actions == [Accept(0, 3)]
    assert passive.step(state, Came(3, 1))[1] == [Answer(0, 3, 7)], "it passes on what it knows of the rounds"


def test_an_active_worker_rests_when_its_answer_has_come():
    active = Pairwise(PairSchedule(3), 2)
    state, (ask, _) = active.step(State(), messages.Arrive(0))
    state, actions = active.step(state, messages.Retire(Rest.MEET))
    assert actions == []
    assert active.waits_for(state) == (ask.partner,)
    state, actions = active.step(state, Came(0, 4))
    assert actions == [Merge(ask.partner, 0), messages.Send(0, Message(Kind.REST, 0, Rest.MEET))]
    assert active.waits_for(state) == (0,)
    state, actions = active.step(state, messages.Receive(0, Message(Kind.WAKE, 9, Rest.MEET, (1,))))
    assert (state.round, actions) == (10, [messages.Barrier((1,))])
    assert active.waits_for(state) == ()
    assert active.waits_for(active.step(state, messages.Completed())[0]) == (2,), "its own trainer has to come"


def test_targets_of_the_two_clocks():
    step, rounds = Pairwise(PairSchedule(2), 1), Pairwise(PairSchedule(2), 1, "round")
    assert step.target(State(round=3, heard=9), 2) == 3
    assert rounds.target(State(round=3, heard=9), 2) == 9, "to the newest, not past it"
    assert rounds.target(State(round=10, heard=9), 9) == 10


def test_one_worker_does_nothing():
    state, actions = Pairwise(PairSchedule(1), 0).step(State(), messages.Arrive(0))
    assert (state.round, actions) == (1, [])


def test_what_a_trainer_adds_meanwhile_stays():
    active, passive = Live(8, 8), Live(4, 4)
    asking = active.ask().step(9, EXACT)  # a step of 1
    answered = passive.step(6, EXACT).answer(asking.sent, EXACT)  # a step of 2 before it
    merged = asking.merge(6, EXACT)
    assert (answered.model, merged.model) == (7, 8)
    assert merged.step(10, EXACT).model == 9, "a step of 1 from the 9 that was taken"
    assert (merged.version, merged.taken_version, answered.version) == (2, 1, 2)
    assert merged.skip() == merged._replace(taken=8, taken_version=2)


# interleavings

SMALL = [  # each trainer's plan (of "acm", see pairs.py; then close), clock, whether sends may be over early
    (("aa", "aa"), "step", True),
    (("aa", "a"), "round", True),
    (("aca", "caa"), "round", True),
    (("ama", "maa"), "step", False),
    (("a", "a", "a"), "step", False),
    (("am", "m", "ma"), "step", True),
    (("ac", "c", "c"), "step", True),
    (("", "a", ""), "step", True),
    (("aaa",), "round", True),
    pytest.param(("aaa", "a"), "round", True, marks=pytest.mark.long),
    pytest.param(("aa", "", "a"), "round", True, marks=pytest.mark.long),
    pytest.param(("a", "", "a", ""), "step", True, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("plans", "clock", "eager"), SMALL)
def test_every_interleaving_keeps_the_invariants(plans, clock, eager):
    assert explore(Cluster(PairSchedule(len(plans)), plans, clock, eager)) > 5


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize(
    ("plans", "dies"),
    [
        (("aa", "a"), (0, 1, False)),
        (("a", "aa"), (1, 1, False)),
        (("am", "m"), (0, 2, True)),
        (("am", "m"), (1, 1, True)),
        (("a", ""), (0, 2, True)),
        pytest.param(("am", "", "a"), (1, 0, False), marks=pytest.mark.long),
    ],
)
def test_every_interleaving_of_a_failure_ends_everywhere(plans, dies, eager):
    assert explore(Cluster(PairSchedule(len(plans)), plans, eager=eager, dies=dies)) > 20


@st.composite
def clusters(draw):
    num_workers = draw(st.integers(1, 9))
    schedule = PairSchedule(num_workers, draw(st.sampled_from(["exponential", "ring"])), draw(st.integers(0, 99)))
    rests = draw(st.lists(st.sampled_from("cm"), max_size=2))  # called equally often
    arrivals = lambda: "a" * draw(st.integers(0, 7))
    plans = tuple("".join(arrivals() + rest for rest in [*rests, ""]) for _ in range(num_workers))
    return schedule, plans, draw(st.sampled_from(["step", "round"])), draw(st.booleans())


def choose(seed):
    """Picks moves at random; some seeds prefer some of them: a slow worker is one that is rarely picked."""
    source = random.Random(seed)
    favour = source.choice([1.0, 1.0, 3.0, 8.0])
    return lambda count: min(int(count * source.random() ** favour), count - 1)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(clusters(), st.integers(0, 2**32))
def test_random_interleavings_keep_the_invariants(case, seed):
    walk(Cluster(*case), choose(seed))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(clusters(), st.integers(0, 2**32), st.data())
def test_a_failure_ends_every_run(case, seed, data):
    schedule, plans, clock, eager = case
    worker = data.draw(st.integers(0, schedule.num_workers - 1))
    dies = worker, data.draw(st.integers(0, len(plans[worker]))), False
    walk(Cluster(schedule, plans, clock, eager, dies=dies), choose(seed))


# each rule is there for an invariant


class RestsAtOnce(Pairwise):
    """An active worker says REST although its answer has not come."""

    def _settle(self, state, actions):
        if state.swap is not None and not state.life.aborted:
            return state._replace(life=self.lifecycle.gather(state.life, state.round - 1, actions))
        return super()._settle(state, actions)


class AsksAgain(Pairwise):
    def _asks(self, state):
        return super()._asks(state._replace(swap=None))


class AcceptsAll(Pairwise):
    def _settle(self, state, actions):
        state = super()._settle(state, actions)
        return self._accept(state, actions) if state.asks else state


class ServesItsStepsOnly(Pairwise):
    """A passive worker whose trainer rests accepts nothing."""

    def _accept(self, state, actions):
        return state if state.life.resting != Rest.NONE else super()._accept(state, actions)


class HoldsOn(Pairwise):
    """Who hears of a failure waits for its swap all the same."""

    def _wind_up(self, state, actions):
        return state if state.swap is not None else super()._wind_up(state, actions)


class BreaksPromises(Pairwise):
    def _wind_up(self, state, actions):
        return state._replace(life=self.lifecycle.end(state.life, actions), swap=None)


class WindsUpWoken(Pairwise):
    """Who fails does not go through with what it has been woken to."""

    def _settle(self, state, actions):
        ends = state.life.aborted and not state.life.over and not state.exchanging
        return self._wind_up(state, actions) if ends else super()._settle(state, actions)


class RunsAhead(Pairwise):
    def target(self, state, counter):
        return max(counter, state.heard) + 1


class StaysBehind(Pairwise):
    """At a rest a worker's round stays what it was."""

    def _settle(self, state, actions):
        return super()._settle(state, actions)._replace(round=state.round)


class EverybodyAsks(PairSchedule):
    def is_active(self, worker):
        return True

    def neighbours(self, worker):
        return ((worker + 1) % self.num_workers,)


class MeanHandedOut(Live):
    """Steps that were taken while the answer was on its way are lost."""

    def merge(self, received, compute):
        return super().merge(received, compute)._replace(model=compute.mean(self.sent, received))


class StepsReplace(Live):
    """The trainer's model replaces the live one, whatever has been averaged meanwhile."""

    def step(self, own, compute):
        return super().step(own, compute)._replace(model=own, taken=own)


class TakenForgotten(Live):
    """A step counts from the live model, not from what the trainer was given."""

    def answer(self, received, compute):
        return super().answer(received, compute)._replace(taken=compute.mean(self.model, received))


class AnswersTheMean(Cluster):
    """A passive worker averages first, and answers with the result."""

    def answered(self, before, after):
        return after.model


MUTANTS = {
    "rests without a swap": (("am", "m"), {"machine": RestsAtOnce}),
    "one swap of an active worker": (("aa", ""), {"machine": AsksAgain}),
    "one swap of a passive worker": (("a", "", "a"), {"machine": AcceptsAll}),
    "serving at rest": (("a", ""), {"machine": ServesItsStepsOnly}),
    "swaps are abandoned": (("aa", "", "a"), {"machine": HoldsOn, "dies": (1, 0, False)}),
    "promises to wake": (("m", "m", "m"), {"machine": BreaksPromises, "dies": (1, 1, True)}),
    "who is woken goes": (("m", "m", "m"), {"machine": WindsUpWoken, "dies": (1, 1, True)}),
    "not past the newest": (("aa", "a"), {"machine": RunsAhead, "clock": "round"}),
    "the same round": (("aam", "m"), {"machine": StaysBehind}),
    "who asks": ((EverybodyAsks(3), "a", "a", "a"), {}),
    "steps during a swap": (("aa", "a"), {"live": MeanHandedOut}),
    "averages between steps": (("aa", ""), {"live": StepsReplace}),
    "what was taken": (("a", "a"), {"live": TakenForgotten}),
    "the answer is a snapshot": (("a", ""), {"cluster": AnswersTheMean}),
}


@pytest.mark.parametrize("rule", MUTANTS)
def test_without_a_rule_an_invariant_breaks(rule):
    plans, mutation = MUTANTS[rule]
    schedule, plans = (plans[0], plans[1:]) if isinstance(plans[0], PairSchedule) else (PairSchedule(len(plans)), plans)
    cluster = mutation.pop("cluster", Cluster)
    with pytest.raises((Violation, AssertionError)):
        explore(cluster(schedule, plans, **mutation))
    kept = {name: value for name, value in mutation.items() if name in ("clock", "dies")}
    walk(Cluster(PairSchedule(len(plans)), plans, **kept), choose(0))
