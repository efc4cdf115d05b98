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
INNER = Lifecycle(2, 8, peers=(5,))  # its child is 3, its parent 0, its neighbours these and 6


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


def test_rests_are_told_once_all_below_rest_and_waking_is_passed_on():
    actions = []
    life = INNER.gather(INNER.retire(Life(), Retire(Rest.MEET, (2, 1))), 7, actions)
    assert (INNER.missing(life), actions) == ((3, 0), [])
    assert INNER.missing(Life()) == (2, 3, 0), "a trainer that does not rest is missing as well"
    life = INNER.receive(life, 3, Message(Kind.REST, 8, Rest.MEET, (1,)), actions)
    life = INNER.gather(life, 7, actions)
    assert actions == [Send(0, Message(Kind.REST, 8, Rest.MEET, (3, 1)))]
    assert INNER.missing(life) == (0,)
    assert INNER.gather(life, 7, actions) == life, "it is told once"
    wake = Message(Kind.WAKE, 9, Rest.MEET, (30, 1))
    life = INNER.receive(life, 0, wake, actions)
    assert actions[1:] == [Send(3, wake)]
    assert (life.woken, INNER.missing(life)) == (Woken(Rest.MEET, 9, (30, 1)), ())


def test_a_failure_is_told_once_to_neighbours_and_peers():
    actions = []
    abort = Message(Kind.ABORT, 0, text="no data", final=True)
    life = INNER.receive(Life(), 6, abort._replace(final=False), actions)
    assert actions == [Fail("no data"), *(Send(worker, abort) for worker in (0, 3, 5, 6))]
    assert life.aborted == {2, 6}
    assert INNER.receive(life, 0, abort, actions).aborted == {0, 2, 6}
    assert INNER.abort(life, "interrupted", actions) == life
    INNER.end(life, actions)
    assert actions[5:] == [Shutdown()]
    Lifecycle(0, 5).abort(Life(), "no data", told := [])
    assert [action.dest for action in told] == [1, 2, 3, 4], "whoever does not know its peers tells all"


def resting(lifecycle, below=()):
    life = lifecycle.retire(Life(), Retire(Rest.MEET))
    for child in below:
        life = lifecycle.receive(life, child, Message(Kind.REST, 0, Rest.MEET), [])
    return lifecycle.gather(life, 0, [])


def test_who_has_promised_and_fails_waits_for_its_parent():
    promised = resting(INNER, (3,))
    failed = INNER.abort(promised, "impatient", actions := [])
    assert {action.message.final for action in actions} == {False}
    assert INNER.waits_to_wake(failed)
    assert INNER.waits_to_wake(INNER.receive(failed, 0, Message(Kind.ABORT, 0), []))
    woken = INNER.receive(failed, 0, Message(Kind.WAKE, 0, Rest.MEET), actions := [])
    assert not INNER.waits_to_wake(woken)
    assert actions == [Send(3, Message(Kind.WAKE, 0, Rest.MEET))]
    assert INNER.awake(woken) == Life(aborted=frozenset({2}))


@pytest.mark.parametrize("promised", [resting(INNER, (3,)), Life(pledged=True)], ids=["REST", "READY"])
def test_who_has_promised_gives_up_when_somebody_has_not_and_says_so_once(promised):
    failed = INNER.abort(promised, "impatient", [])
    life = INNER.receive(failed, 6, Message(Kind.ABORT, 0, text="no data", final=True), actions := [])
    final = Message(Kind.ABORT, 0, text="no data", final=True)
    assert actions == [Send(worker, final) for worker in (3, 0, 6)]
    assert life.final
    assert not INNER.waits_to_wake(life)
    assert INNER.end(life, []).over
    assert INNER.receive(life, 0, final, actions)._replace(aborted=life.aborted) == life
    assert len(actions) == 3


def test_who_has_promised_nothing_says_so_with_its_failure():
    for life in (Life(), resting(INNER), INNER.awake(resting(INNER, (3,)))):
        failed = INNER.abort(life, "no data", actions := [])
        assert {action.message.final for action in actions} == {True}
        assert not INNER.waits_to_wake(failed)


def test_who_ends_after_its_promise_was_kept_promises_nothing_more():
    failed = INNER.abort(Life(pledged=True), "no data", [])
    INNER.end(failed._replace(pledged=False), actions := [])
    assert [action.message.final for action in actions[:-1]] == [True] * 3
    # but who ends since all have closed has kept it: others may not have been woken yet
    closed = failed._replace(pledged=False, woken=Woken(Rest.CLOSE, 0, ()))
    INNER.end(closed, actions := [])
    assert actions == [Shutdown()]


def test_unlike_rests_fail_everywhere():
    actions = []
    life = FIRST.gather(FIRST.retire(Life(), Retire(Rest.CONSENSUS)), 0, actions)
    life = FIRST.receive(life, 1, Message(Kind.REST, 0, Rest.MEET), actions)
    life = FIRST.gather(life, 0, actions)
    failure, abort = actions
    assert "rank 0 called consensus(); rank 1 called meet()" in failure.text
    assert abort == Send(1, Message(Kind.ABORT, 0, text=failure.text, final=True))
    assert life.aborted == {0}
    assert not FIRST.waits_to_wake(life)


def test_a_trainer_rests_once_at_a_time():
    life = FIRST.retire(Life(), Retire(Rest.MEET))
    with pytest.raises(AssertionError, match="once at a time"):
        FIRST.retire(life, Retire(Rest.CLOSE))
    assert Resting(0, Rest.MEET, -1, ()) in FIRST.gather(life, -1, []).rested
