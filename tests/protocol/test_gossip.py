"""Gossip's invariants: all interleavings of small cases, random ones of larger, and what each rule is for."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protocol.gossip_simulation import Cluster
from protocol.simulation import Violation, explore, walk
from protocol.test_interleavings import choose

from wagma_jax.gossip import GossipSchedule, exponential, ring
from wagma_jax.protocol import messages
from wagma_jax.protocol.gossip import Begin, Gossip, Heard, Lingering, Mix, Pull, Pulled, Push
from wagma_jax.protocol.lifecycle import Life
from wagma_jax.protocol.messages import Rest
from wagma_jax.protocol.mixing import Dpsgd, PushSum

KINDS = {"dpsgd": (Dpsgd(), ring), "sgp": (PushSum(), exponential), "sgp with overlap": (PushSum(1), exponential)}


def pairs(num_workers):
    return GossipSchedule(num_workers, ((0, num_workers // 2),))


def cluster(kind, plans, **mutation):
    mixing, graph = (KINDS | {"sgp in pairs": (PushSum(), pairs)})[kind]
    return Cluster(graph(len(plans)), plans, **({"mixing": mixing} | mutation))


PLANS = [  # of each trainer: of "acm", see simulation.py; then close
    ("aca",),
    ("aa", "aa"),
    ("aaaa", ""),
    ("aac", "ca"),
    ("amaa", "ma"),
    ("aacam", "cm"),
    ("ccma", "ccm"),
]
WIDE_PLANS = [("a", "a", "a"), ("aa", "", "a"), ("ac", "c", "ca"), ("am", "ma", "m"), ("aa", "aaa", "a")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plans", PLANS)
def test_every_interleaving_keeps_the_invariants(kind, plans):
    assert explore(cluster(kind, plans)) >= 15


@pytest.mark.parametrize(
    ("kind", "plans"),
    [*(("sgp", plans) for plans in WIDE_PLANS), *(("sgp with overlap", plans) for plans in WIDE_PLANS[:4]),
     ("dpsgd", ("a", "", "a")), pytest.param("sgp", ("aac", "ac", "c", "aca"), marks=pytest.mark.long),
     *(pytest.param("dpsgd", plans, marks=pytest.mark.long) for plans in WIDE_PLANS)],
)  # fmt: skip
def test_every_interleaving_of_three_workers_keeps_the_invariants(kind, plans):
    assert explore(cluster(kind, plans)) > 200


FAILURES = [
    (("aa", "aa"), {"abort_at": (1, 1)}),
    (("ac", "ca"), {"abort_at": (0, 1)}),
    (("am", "ma"), {"dies_resting": (1, 1)}),
    (("aac", "c"), {"dies_resting": (0, 1)}),
    (("a", "a"), {"dies_resting": (1, 1)}),
    (("aa", "aa"), {"dies_waiting": (0, 2)}),
    (("ama", "am"), {"dies_waiting": (1, 1)}),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("plans", "failure"), FAILURES)
def test_every_interleaving_of_a_failure_ends_everywhere(kind, plans, failure):
    assert explore(cluster(kind, plans, **failure)) > 20


@pytest.mark.parametrize(
    ("kind", "plans", "failure"),
    [
        ("sgp", ("am", "m", "m"), {"dies_resting": (1, 1)}),
        pytest.param("sgp with overlap", ("am", "m", "m"), {"dies_resting": (0, 1)}, marks=pytest.mark.long),
        pytest.param("dpsgd", ("am", "m", "m"), {"dies_resting": (1, 1)}, marks=pytest.mark.long),
    ],
)
def test_every_interleaving_of_a_failure_of_three_ends_everywhere(kind, plans, failure):
    assert explore(cluster(kind, plans, **failure)) > 200


@st.composite
def cases(draw, graphs=(ring, exponential)):
    num_workers = draw(st.integers(1, 9))
    rests = draw(st.lists(st.sampled_from("cm"), max_size=3))  # called equally often
    arrivals = lambda: "a" * draw(st.integers(0, 6))
    plans = tuple("".join(arrivals() + rest for rest in [*rests, ""]) for _ in range(num_workers))
    return draw(st.sampled_from(graphs))(num_workers), plans, draw(st.sampled_from([Dpsgd(), PushSum(), PushSum(1)]))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(cases(), st.integers(0, 2**32))
def test_random_interleavings_keep_the_invariants(case, seed):
    walk(Cluster(*case), choose(seed, len(case[1])), limit=50_000)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cases(), st.integers(0, 2**32), st.sampled_from(["abort_at", "dies_resting", "dies_waiting"]), st.data())
def test_a_failure_ends_every_run(case, seed, how, data):
    _, plans, _ = case
    worker = data.draw(st.integers(0, len(plans) - 1))
    when = data.draw(st.integers(0 if how == "abort_at" else 1, max(1, len(plans[worker]))))
    walk(Cluster(*case, **{how: (worker, when)}), choose(seed, len(plans)), limit=50_000)


def test_a_fast_worker_is_a_few_rounds_ahead_at_most():
    """Whoever runs ahead holds what it has pushed."""
    for mixing, graph, most in ((Dpsgd(), ring, 2), (PushSum(), exponential, 2), (PushSum(1), exponential, 3)):
        for seed in range(5):
            fast = Cluster(graph(5), ("a" * 20,) * 4 + ("a",), mixing)
            walk(fast, choose(seed, 5), limit=50_000)
            assert fast.most_on_way <= most


# each rule is there for an invariant


class NoResting(Gossip):
    def _is_served(self, state):
        return state.arrived >= state.round


class HearsEarly(Gossip):
    """An early push says that a trainer has arrived."""

    def _hear(self, state, pushed):
        return state._replace(heard=max(state.heard, pushed))


class Undrained(Gossip):
    def _is_drained(self, state):
        return True


class Impatient(Gossip):
    """Mixes without those who have not come."""

    def _is_complete(self, state):
        return self._is_served(state)


class KeepsPushes(Gossip):
    """What was pushed before a global mean counts after it."""

    def _completed(self, state):
        return super()._completed(state)._replace(since=state.since, pushed=state.pushed, pulling=state.pulling)


class NoCatchingUp(Gossip):
    def _is_gathered(self, state):
        return state.life.woken is not None


class AsksAhead(Gossip):
    """Posts receives of rounds that have not begun."""

    def _post(self, state, actions):
        state = super()._post(state, actions)
        later = state._replace(round=state.round + 1, pulling=False, pushed=state.round + 1)
        super()._post(later, actions)
        return state


class WindsUpAtOnce(Gossip):
    """Who fails does not go through with what it has been woken to."""

    def _settle(self, state, actions):
        ends = state.life.aborted and not state.life.over and not state.exchanging
        return self._wind_up(state, actions) if ends else super()._settle(state, actions)


class BreaksItsPromise(Gossip):
    def _wind_up(self, state, actions):
        return state._replace(life=self.lifecycle.leave(state.life, actions))


@dataclasses.dataclass(frozen=True)
class ForgetsWhatIsOnItsWay(PushSum):
    def contribute(self, held, brought, came, compute):
        return super().contribute(held, brought, [], compute)


@dataclasses.dataclass(frozen=True)
class Biased(PushSum):
    """The trainer's step counts w times."""

    def push(self, held, stepped, parts, compute):
        model = compute(lambda p, w, x: x * w / p, parts, held.weight, held.model if stepped is None else stepped)
        kept = dataclasses.replace(self) and super().push(held, stepped, parts, compute)[1]._replace(model=model)
        return held._replace(kept=kept), kept


@dataclasses.dataclass(frozen=True)
class StepsTwice(Dpsgd):
    """Mixes the models after the steps, and adds the steps."""

    def mix(self, held, stepped, came, parts, compute):
        own = held.model if stepped is None else stepped
        return super().mix(held._replace(model=own), stepped, came, parts, compute)


MUTANTS = {
    "rest": ("dpsgd", ("aaa", ""), {"machine": NoResting}),
    "rest without early pushes": ("sgp", ("aa", ""), {"machine": NoResting}),
    "an early push is no arrival": ("dpsgd", ("am", "m"), {"machine": HearsEarly}),
    "drained": ("sgp with overlap", ("ac", "ac"), {"machine": Undrained}),
    "drained before the end": ("dpsgd", ("a", "a"), {"machine": Undrained}),
    "all that counts": ("sgp", ("a", "a"), {"machine": Impatient}),
    "a mean outdates": ("dpsgd", ("aca", "aca"), {"machine": KeepsPushes}),
    "a mean outdates what lags": ("sgp with overlap", ("aca", "aca"), {"machine": KeepsPushes}),
    "catching up": ("sgp in pairs", ("am", "m", "am", "m"), {"machine": NoCatchingUp}),
    "order of receives": ("dpsgd", ("aa", "aa"), {"machine": AsksAhead}),
    "who is woken goes": ("dpsgd", ("am", "m"), {"machine": WindsUpAtOnce, "dies_resting": (1, 1)}),
    "a promise to wake": ("sgp", ("m", "m"), {"machine": BreaksItsPromise, "dies_resting": (1, 1)}),
    "steps from what was taken": ("dpsgd", ("aama", "ma"), {"forgets": True}),
    "late steps": ("sgp with overlap", ("aama", "ma"), {"forgets": True}),
    "a mean of all mass": ("sgp with overlap", ("ac", "ac"), {"mixing": ForgetsWhatIsOnItsWay(1)}),
    "bias": ("sgp with overlap", ("aaa", "aaa"), {"mixing": Biased(1)}),
    "models before the steps": ("dpsgd", ("a", "a"), {"mixing": StepsTwice()}),
}


@pytest.mark.parametrize("rule", MUTANTS)
def test_without_a_rule_an_invariant_breaks(rule):
    kind, plans, mutation = MUTANTS[rule]
    with pytest.raises((Violation, AssertionError)):
        explore(cluster(kind, plans, **mutation))
    failure = {name: value for name, value in mutation.items() if name == "dies_resting"}
    explore(cluster(kind, plans, **failure))


# by hand


def test_a_round_of_dpsgd():
    machine = Gossip(ring(3), 1, early=True)
    state, actions = machine.step(machine.start(4), Begin())
    assert actions == [Pull(4, (0, 2)), Push(4, (2, 0))]
    state, actions = machine.step(state, Pulled(2))
    assert (actions, machine.waits_for(state)) == ([], (1,))
    state, actions = machine.step(state, messages.Arrive(4))
    assert (actions, machine.waits_for(state)) == ([], (0,))
    state, actions = machine.step(state, Pulled(0))
    assert actions == [Mix(4, (0, 2), True), Pull(5, (0, 2)), Push(5, (2, 0))]
    assert (state.round, machine.listens_to(state)) == (5, ())


def test_who_rests_takes_part_in_what_it_hears_of():
    machine = Gossip(ring(2), 1, early=True)
    state, _ = machine.step(machine.start(0), Begin())
    state, _ = machine.step(state, messages.Retire(Rest.MEET))
    state, actions = machine.step(state, Pulled(0))
    assert (actions, state.heard, machine.listens_to(state)) == ([], -1, (0,))
    state, actions = machine.step(state, Heard(0))
    assert actions == [Mix(0, (0,), False), Pull(1, (0,)), Push(1, (0,))]


def test_what_has_come_counts_in_a_run_that_goes_on():
    machine = Gossip(exponential(4), 0, lag=1)
    state, actions = machine.step(machine.start(7, have_come=True), Begin())
    assert (actions, machine.counting(state)) == ([], (3,))  # of round 6, in which all send one ahead
    _, actions = machine.step(state, messages.Arrive(7))
    assert actions == [Push(7, (2,)), Mix(7, (3,), True), Pull(8, (2,))]
    state, _ = machine.step(machine.start(7), Begin())
    assert machine.counting(state) == ()
    with pytest.raises(AssertionError, match="nothing that was pushed before"):
        Gossip(ring(4), 0, early=True).start(7, have_come=True)


def test_an_end_waits_for_what_is_on_its_way():
    lingering = Lingering(0, 1)
    life = lingering.gather(lingering.retire(Life(), messages.Retire(Rest.CLOSE)), 0, actions := [])
    assert (life.over, actions) == (False, [])
    assert lingering.leave(life, actions).over
    assert isinstance(actions[0], messages.Shutdown)
