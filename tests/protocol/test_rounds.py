"""Single rules of the machine of rounds, by hand."""

import copy
import pickle

import pytest

from wagma_jax.protocol import messages
from wagma_jax.protocol.facts import Facts
from wagma_jax.protocol.messages import Kind, Message, Rest
from wagma_jax.protocol.plan import GroupPlan
from wagma_jax.protocol.rounds import Rounds, State
from wagma_jax.schedule import GroupSchedule


def rounds(schedule, worker, quorum=1, clock="step"):
    return Rounds(GroupPlan(schedule, quorum), worker, clock)


def machine(worker=0, num_workers=4, group_size=2, sync_period=3, **options):
    return rounds(GroupSchedule(num_workers, group_size, sync_period), worker, **options)


def sends(actions):
    return [(action.dest, action.message.kind.name, action.message.round) for action in actions]


def test_an_arrival_tells_the_group_and_the_first_answer_starts_the_exchange():
    m = machine()
    state, actions = m.step(State(), messages.Arrive(0))
    assert sends(actions) == [(1, "ARRIVED", 0)]
    state, actions = m.step(state, messages.Receive(1, Message(Kind.READY, 0)))
    assert actions == [messages.Exchange(0, (0, 1))]
    state, actions = m.step(state, messages.Completed())
    assert (state.round, state.facts, actions) == (1, Facts(), [])


def test_a_peers_arrival_is_answered_without_the_trainer():
    _, actions = machine(worker=1).step(State(), messages.Receive(0, Message(Kind.ARRIVED, 0)))
    assert sends(actions[:-1]) == [(0, "READY", 0)]
    assert actions[-1] == messages.Exchange(0, (0, 1))


def test_a_quorum_waits_for_the_second():
    state, actions = machine(worker=1, quorum=2).step(State(), messages.Receive(0, Message(Kind.ARRIVED, 0)))
    assert actions == []
    state, actions = machine(worker=1, quorum=2).step(state, messages.Arrive(0))
    assert sends(actions[:-1]) == [(0, "ARRIVED", 0)]
    assert actions[-1] == messages.Exchange(0, (0, 1))


def test_who_has_waited_for_long_enough_starts_without_the_quorum():
    m = machine(quorum=2)
    assert not m.is_patient(State())  # nobody has arrived
    state, _ = m.step(State(), messages.Arrive(0))
    assert m.is_patient(state)
    state, actions = m.step(state, messages.Expire(0))
    assert sends(actions) == [(1, "FORCE", 0)]
    assert not m.is_patient(state)
    state, actions = m.step(state, messages.Receive(1, Message(Kind.READY, 0)))
    assert actions == [messages.Exchange(0, (0, 1))]
    state, _ = m.step(state, messages.Completed())
    # the next round waits again; and what is over is no news
    state, actions = m.step(state, messages.Arrive(1))
    assert sends(actions) == [(2, "ARRIVED", 1)]
    assert m.step(state, messages.Expire(0))[1] == []
    assert not m.is_patient(state._replace(round=2, arrived=2)), "a sync round waits for all"


def test_a_quorum_larger_than_the_group_is_all_of_it():
    of_two = rounds(GroupSchedule(5, 3, None), 4, quorum=3)
    assert of_two.plan.schedule.group_of(4, 0) == (3, 4)
    state, _ = of_two.step(State(), messages.Arrive(0))
    assert of_two.step(state, messages.Receive(3, Message(Kind.ARRIVED, 0)))[1] == [messages.Exchange(0, (3, 4))]


def test_a_round_of_one_is_passed_without_a_message():
    lonely = rounds(GroupSchedule(3, 2, None), 2)
    assert [lonely.plan.schedule.group_of(2, t) for t in range(3)] == [(2,), (0, 2), (2,)]
    state, actions = lonely.step(State(), messages.Arrive(0))
    assert (state.round, actions) == (1, [])
    state, actions = lonely.step(state, messages.Arrive(1))
    assert sends(actions) == [(0, "ARRIVED", 1)]
    # others call for a later round before the trainer comes
    state, actions = lonely.step(State(), messages.Receive(0, Message(Kind.ARRIVED, 1)))
    assert (state.round, sends(actions[:-1]), actions[-1]) == (1, [(0, "READY", 1)], messages.Exchange(1, (0, 2)))


def test_without_groups_only_sync_rounds_are_more_than_a_count():
    local = rounds(GroupSchedule(4, 1, 3), 1)
    state = State()
    for t in range(2):
        passed = local.passed_alone(state, t)
        state, actions = local.step(state, messages.Arrive(t))
        assert (state.round, actions) == (t + 1, [])
        assert passed == state
    assert local.passed_alone(state, 2) is None, "all have to arrive"
    state, actions = local.step(state, messages.Arrive(2))
    assert sends(actions) == [(0, "SYNC", 2), (3, "SYNC", 2), (0, "READY", 2)]


def test_a_later_round_forces_the_current_one():
    state, actions = machine(worker=1).step(State(), messages.Receive(3, Message(Kind.ARRIVED, 1)))
    assert sends(actions) == [(0, "FORCE", 0)]
    state, actions = machine(worker=1).step(state, messages.Receive(0, Message(Kind.READY, 0)))
    assert actions == [messages.Exchange(0, (0, 1))]


def test_a_sync_round_goes_up_the_tree_and_down_again():
    m = machine(worker=2)  # its child is 3, its parent 0
    state, actions = m.step(State(round=2), messages.Arrive(2))
    assert sends(actions) == [(3, "SYNC", 2), (0, "SYNC", 2)]
    state, actions = m.step(state, messages.Receive(3, Message(Kind.READY, 2)))
    assert sends(actions) == [(0, "READY", 2)]
    state, actions = m.step(state, messages.Receive(0, Message(Kind.GO, 2)))
    assert sends(actions[:-1]) == [(3, "GO", 2)]
    assert actions[-1] == messages.Exchange(2, (0, 1, 2, 3))


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
    assert m.waits_for(m.step(State(), messages.Arrive(0))[0]) == (1,)
    ready = m.step(State(round=2), messages.Receive(2, Message(Kind.READY, 2)))[0]
    assert m.waits_for(ready) == (0, 1)
    assert m.waits_for(m.step(ready, messages.Arrive(2))[0]) == (1,)
    inner = machine(worker=2)
    arrived = inner.step(State(round=2), messages.Arrive(2))[0]
    assert inner.waits_for(arrived) == (3, 0)
    assert inner.waits_for(inner.step(arrived, messages.Receive(3, Message(Kind.READY, 2)))[0]) == (0,)
    resting = m.step(State(), messages.Retire(Rest.MEET))[0]
    assert m.waits_for(resting) == (2, 1)


def test_tallies_are_added_up_on_the_way_and_the_sums_come_back():
    m, first = machine(worker=2), machine()
    state, _ = m.step(State(round=2), messages.Receive(3, Message(Kind.READY, 2, tally=(1, 5))))
    state, actions = m.step(state, messages.Arrive(2, (2,)))
    assert actions[-1] == messages.Send(0, Message(Kind.READY, 2, tally=(3, 5)))
    _, actions = m.step(state, messages.Receive(0, Message(Kind.GO, 2, tally=(7, 5))))
    assert actions == [
        messages.Send(3, Message(Kind.GO, 2, tally=(7, 5))),
        messages.Exchange(2, (0, 1, 2, 3), (7, 5)),
    ]

    state, _ = first.step(State(round=2), messages.Arrive(2, (4,)))
    for source, tally in ((1, ()), (2, (3, 5))):
        state, actions = first.step(state, messages.Receive(source, Message(Kind.READY, 2, tally=tally)))
    assert actions[:-1] == [messages.Send(dest, Message(Kind.GO, 2, tally=(7, 5))) for dest in (2, 1)]
    assert actions[-1] == messages.Exchange(2, (0, 1, 2, 3), (7, 5))
    state, _ = first.step(state, messages.Completed())
    assert state.tallies == ()


def test_tallies_of_ordinary_rounds_are_dropped():
    assert machine().step(State(), messages.Arrive(0, (1,)))[0].tallies == ()


def test_whoever_is_woken_first_executes_what_others_have_arrived_at():
    m = machine(worker=3, sync_period=None)
    state, actions = m.step(State(), messages.Retire(Rest.MEET, (2,)))
    assert actions == [messages.Send(2, Message(Kind.REST, -1, Rest.MEET, (2,)))]
    state, actions = m.step(state, messages.Receive(2, Message(Kind.WAKE, 0, Rest.MEET, (9,))))
    assert sends(actions) == [(2, "ARRIVED", 0)]
    state, actions = m.step(state, messages.Receive(2, Message(Kind.ARRIVED, 0)))
    assert actions == [messages.Exchange(0, (2, 3))]
    state, actions = m.step(state, messages.Completed())
    assert actions == [messages.Barrier((9,))]
    state, actions = m.step(state, messages.Completed())
    assert (state.round, state.life.resting, actions) == (1, Rest.NONE, [])


@pytest.mark.parametrize(
    "message",
    [
        *(Message(kind, 3) for kind in Kind),
        *(Message(Kind.WAKE, -1, rest) for rest in Rest),
        Message(Kind.READY, 2, tally=(1, 1 << 62)),
        Message(Kind.ABORT, 0, text="why", final=True),
    ],
)
def test_messages_arrive_as_they_were_sent(message):
    for came in (pickle.loads(pickle.dumps(message)), copy.deepcopy(message)):
        assert came == message
        assert [type(field) for field in came] == [type(field) for field in message]
