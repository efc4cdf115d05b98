"""The end of all engines, who has not come to a start, and who is waited for, on an invented network.

It delays messages at random.
"""

import collections
import random

import pytest

pytest.importorskip("mpi4py", reason="the extra mpi is not installed", exc_type=ImportError)

from wagma_jax.exchange.farewell import Farewell
from wagma_jax.exchange.survey import MOST_ASKED, Survey
from wagma_jax.exchange.waiting import Ask, Inquiry, status
from wagma_jax.protocol import messages
from wagma_jax.protocol.plan import GroupPlan
from wagma_jax.protocol.rounds import Rounds, State
from wagma_jax.schedule import GroupSchedule


class Network:
    """Delivers messages of one sender to one receiver in order, and otherwise in any."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.ways = collections.defaultdict(collections.deque)

    def mailbox(self, rank):
        return Box(self, rank)

    def next(self):
        """(receiver, sender, message), or None."""
        full = sorted(way for way, queue in self.ways.items() if queue)
        if not full:
            return None
        source, dest = self.random.choice(full)
        return dest, source, self.ways[source, dest].popleft()


class Box:
    """A mailbox as far as sending goes; who receives for it counts."""

    def __init__(self, network, rank):
        self._network, self._rank = network, rank
        self.sent = self.received = 0

    def send(self, dest, message):
        self.sent += 1
        self._network.ways[self._rank, dest].append(message)

    def send_to(self, dests, message):
        for dest in dests:
            self.send(dest, message)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 12])
def test_nobody_leaves_before_everything_is_received(size):
    for seed in range(20):
        network = Network(seed)
        boxes = [network.mailbox(rank) for rank in range(size)]
        farewells = [Farewell(box, rank, size) for rank, box in enumerate(boxes)]
        trains = set(range(size))  # those that have not ended, and may send to anybody
        while not all(farewell.over for farewell in farewells):
            if trains and network.random.random() < 0.3:
                rank = network.random.choice(sorted(trains))
                for dest in {network.random.randrange(size) for _ in range(2)} - {rank}:
                    boxes[rank].send(dest, "round")
                if network.random.random() < 0.5:
                    trains.discard(rank)
                    farewells[rank].begin()
                continue
            came = network.next()
            if came is None:
                assert trains, [farewell.missing() for farewell in farewells]
                continue
            dest, source, message = came
            assert not farewells[dest].over, f"rank {dest} has left, and gets {message} of {source}"
            boxes[dest].received += 1
            if message != "round":
                farewells[dest].receive(source, message)
        assert network.next() is None
        assert all(farewell.missing() == [] for farewell in farewells)


def test_an_end_waits_for_those_that_go_on_below_and_then_for_its_parent():
    network = Network(0)
    farewells = [Farewell(network.mailbox(rank), rank, 8) for rank in range(8)]
    farewells[6].begin()
    assert farewells[6].missing() == [7]
    farewells[7].begin()
    assert farewells[7].missing() == [6]
    farewells[6].receive(7, network.next()[2])
    assert farewells[6].missing() == [4]
    assert farewells[0].missing() == [4, 2, 1]


def surveys(size, away):
    """What the ranks that wait at step 3 find to be missing, and the most messages that one has sent for it."""
    network = Network(size)
    boxes = [network.mailbox(rank) for rank in range(size)]
    all_of_them = [Survey(box, rank, size) for rank, box in enumerate(boxes)]
    here = [2 if rank in away else 3 for rank in range(size)]
    come = sorted(set(range(size)) - away)

    def spread():
        """Each rank reads what is there, and then tells, as in a loop that waits."""
        while messages := list(iter(network.next, None)):
            for dest, source, message in messages:
                all_of_them[dest].receive(source, message, here[dest])
            for rank in range(size):
                all_of_them[rank].tell(here[rank])

    for rank in come:
        all_of_them[rank].begin(3)
    spread()
    for rank in come:
        all_of_them[rank].ask(3)
    spread()
    return [all_of_them[rank].missing(3) for rank in come], max(box.sent for box in boxes)


def test_those_cut_off_are_asked_directly():
    network = Network(0)
    first, other = (Survey(network.mailbox(rank), rank, 4) for rank in (0, 3))
    first.begin(3)  # the ranks 1 and 2, its neighbours, are not there at all
    assert first.missing(3) == [1, 2, 3]
    first.ask(3)
    while (came := network.next()) is not None:
        dest, source, message = came
        if dest in (0, 3):
            (other if dest == 3 else first).receive(source, message, here=3)
    assert first.missing(3) == [1, 2]


@pytest.mark.parametrize(("size", "away"), [(12, {5, 7}), (16, set()), (96, {0, 17}), (96, set(range(40, 96)))])
def test_who_has_not_come_is_known_to_all_who_have_by_few_messages(size, away):
    found, most = surveys(size, away)
    assert found == [sorted(away)] * (size - len(away))
    bits = (size - 1).bit_length()
    assert most <= 2 * bits * bits + MOST_ASKED * (bits + 1)


@pytest.mark.parametrize("asks", [1, 7, 8, 0])
@pytest.mark.parametrize(
    ("event", "busy"),
    [(messages.Retire(messages.Rest.MEET), {3, 4, 5, 6}), (messages.Arrive(0), {2, 5, 6})],
    ids=["meeting", "sync round"],
)
def test_all_who_are_waited_for_are_named(event, busy, asks):
    """Also those who are below others in the tree that have not come themselves."""
    size, network = 9, Network(asks)
    machines = [Rounds(GroupPlan(GroupSchedule(size, 1, 1)), rank) for rank in range(size)]
    states = [State() for _ in machines]
    waiting = [(rank, event) for rank in range(size) if rank not in busy]
    while waiting:
        rank, event = waiting.pop()
        states[rank], actions = machines[rank].step(states[rank], event)
        waiting += [(send.dest, messages.Receive(rank, send.message)) for send in actions]
    inquiry = Inquiry(network.mailbox(asks), asks)
    rests = states[asks].life.resting != messages.Rest.NONE
    inquiry.begin(machines[asks].waits_for(states[asks]), rests)
    while (came := network.next()) is not None:
        dest, source, message = came
        if isinstance(message, Ask):
            answer = status(machines[dest], states[dest], message, busy=5.0 if dest in busy else 0.0)
            network.mailbox(dest).send(source, answer)
        else:
            inquiry.answered(source, message)
    lines = [f"rank {rank} has not arrived at round 0: it has computed for 5.0 s" for rank in sorted(busy)]
    assert inquiry.diagnosis() == "; ".join(lines)
