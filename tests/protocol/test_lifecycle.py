"""Rest, failure and the end, by hand."""

import pytest

from wagma_jax.protocol.lifecycle import Life, Lifecycle, Resting, Woken
from wagma_jax.protocol.messages import (
    Barrier,
    Fail,
    GlobalMean,
    Kind,
    Message,
    Rest,
    Retire,
    Send,
    Shutdown,
    added,
)

FIRST, SECOND = Lifecycle(0, 2), Lifecycle(1, 2)


def test_tallies_are_added_by_position():
    assert added([]) == added([(), ()]) == ()
    assert added([(1, 2), (), (10,), (100, 0, 5)]) == (111, 2, 5)
    assert added([(2**63 - 1,)] * 3) == (3 * (2**63 - 1),)


@pytest.mark.parametrize(
    ("rest", "called_to"), [(Rest.CONSENSUS, GlobalMean()), (Rest.MEET, Barrier((5, 1))), (Rest.CLOSE, None)]
)
def test_worker_0_wakes_all_when_all_rest(rest, called_to):
    actions = []
    life = SECOND.gather(SECOND.retire(Life(), Retire(rest, (2, 1))), 7, actions)
    assert actions == [Send(0, Message(Kind.REST, 7, rest, (2, 1)))]
    assert SECOND.missing(life) == (0,)
    told = actions.pop().message

    first = FIRST.gather(FIRST.retire(Life(), Retire(rest, (3,))), 9, actions)
    assert (first.woken, actions) == (None, [])
    assert FIRST.missing(first) == (1,)
    first = FIRST.gather(FIRST.receive(first, 1, told, actions), 9, actions)
    wake = Message(Kind.WAKE, 9, rest, (5, 1))
    assert first.woken == Woken(rest, 9, (5, 1))
    assert FIRST.missing(first) == ()
    life = SECOND.gather(SECOND.receive(life, 0, wake, []), 7, ended := [])
    if called_to is None:
        assert actions == [Send(1, wake), Shutdown()]
        assert ended == [Shutdown()]
        assert first.over
        assert life.over
    else:
        assert (actions, ended) == ([Send(1, wake)], [])
        assert FIRST.called_to(first) == SECOND.called_to(life) == called_to
        assert FIRST.awake(first) == SECOND.awake(life) == Life()


def test_a_failure_is_told_once_and_by_everyone():
    lifecycle, actions = Lifecycle(1, 3), []
    life = lifecycle.receive(Life(), 2, Message(Kind.ABORT, 0, text="no data"), actions)
    abort = Message(Kind.ABORT, 0, text="no data")
    assert actions == [Fail("no data"), Send(0, abort), Send(2, abort)]
    assert life.aborted == {1, 2}
    assert lifecycle.receive(life, 0, abort, actions).aborted == {0, 1, 2}
    assert len(actions) == 3


def test_who_rests_and_fails_waits_for_worker_0():
    resting = SECOND.gather(SECOND.retire(Life(), Retire(Rest.MEET)), 0, [])
    failed = SECOND.abort(resting, "impatient", [])
    assert SECOND.waits_to_wake(failed)
    assert not SECOND.waits_to_wake(SECOND.receive(failed, 0, Message(Kind.ABORT, 0), []))
    assert not SECOND.waits_to_wake(SECOND.receive(failed, 0, Message(Kind.WAKE, 0, Rest.MEET), []))
    assert not SECOND.waits_to_wake(SECOND.abort(Life(), "no data", []))


def test_unlike_rests_fail_everywhere():
    actions = []
    life = FIRST.gather(FIRST.retire(Life(), Retire(Rest.CONSENSUS)), 0, actions)
    life = FIRST.receive(life, 1, Message(Kind.REST, 0, Rest.MEET), actions)
    life = FIRST.gather(life, 0, actions)
    failure, abort = actions
    assert "rank 0 called consensus(); rank 1 called meet()" in failure.text
    assert abort == Send(1, Message(Kind.ABORT, 0, text=failure.text))
    assert life.aborted == {0}
    assert not FIRST.waits_to_wake(life)


def test_a_trainer_rests_once_at_a_time():
    life = FIRST.retire(Life(), Retire(Rest.MEET))
    with pytest.raises(AssertionError, match="once at a time"):
        FIRST.retire(life, Retire(Rest.CLOSE))
    assert Resting(0, Rest.MEET, -1, ()) in FIRST.gather(life, -1, []).rested
