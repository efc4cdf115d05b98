"""What one worker has to do as their number grows, without a cluster: all state machines in one process.

``python -m benchmarks.scale``: local SGD's sync round and its end, for 64, 256 and 1,024 workers.

- *Control*: all workers' machines exchange their messages through a queue. CPU time is that of worker 0's machine, the
  busiest, for the same events once more; messages, sent and received, are those of the worker with the most.
- *Data*: the exchange of the sync round is compiled for worker 0 of so many, with a model of four megabytes. It is not
  executed. Steps are the messages that it sends or receives one after the other, where the parts of a large message
  count once. Connections are all ranks that worker 0 exchanges messages with, of control or of data.
"""

import argparse
import collections
import statistics
import time
from unittest import mock

import jax
import jax.numpy as jnp
import mpi4jax
from mpi4py import MPI

from benchmarks.tables import markdown
from wagma_jax.exchange.farewell import Farewell
from wagma_jax.exchange.wire import Wire
from wagma_jax.protocol import messages
from wagma_jax.protocol.plan import GroupPlan
from wagma_jax.protocol.rounds import Rounds, State
from wagma_jax.schedule import GroupSchedule

WORKERS = (64, 256, 1024)
ELEMENTS = 1_000_000
REPEATS = 100


class Traffic:
    """Messages, and whom each worker has exchanged some with."""

    def __init__(self, num_workers: int):
        self.messages = [0] * num_workers
        self.partners: list[set[int]] = [set() for _ in range(num_workers)]

    def add(self, source: int, dest: int) -> None:
        """A message."""
        for one, other in ((source, dest), (dest, source)):
            self.messages[one] += 1
            self.partners[one].add(other)


class Machines:
    """The machines of all workers, and a queue of what happens to them."""

    def __init__(self, num_workers: int):
        plan = GroupPlan(GroupSchedule(num_workers, 1, 1))
        self.machines = [Rounds(plan, worker) for worker in range(num_workers)]
        self.states = [State() for _ in self.machines]
        self.events: list = []  # worker 0's
        self.traffic = Traffic(num_workers)
        self._queue: collections.deque = collections.deque()

    def everyone(self, event) -> None:
        """The same event happens to all workers, and what follows from it."""
        for worker in range(len(self.machines)):
            self._queue.append((worker, event))
            self._run()

    def _run(self) -> None:
        while self._queue:
            worker, event = self._queue.popleft()
            self.states[worker], actions = self.machines[worker].step(self.states[worker], event)
            if worker == 0:
                self.events.append(event)
            for action in actions:
                if isinstance(action, messages.Send):
                    self.traffic.add(worker, action.dest)
                    self._queue.append((action.dest, messages.Receive(worker, action.message)))


def sync_round(num_workers: int) -> tuple[float, Traffic]:
    """CPU milliseconds of worker 0 for the control of one sync round, and all workers' traffic."""
    machines = Machines(num_workers)
    machines.everyone(messages.Arrive(0, (1,)))
    assert all(state.exchanging for state in machines.states)
    machines.everyone(messages.Completed())
    assert all(state.round == 1 for state in machines.states)
    times = [_replayed(machines.machines[0], machines.events) for _ in range(REPEATS)]
    return 1e3 * statistics.median(times), machines.traffic


def _replayed(machine: Rounds, events: list) -> float:
    """CPU seconds of one machine for what has happened to it."""
    begin, state = time.process_time(), State()
    for event in events:
        state, _ = machine.step(state, event)
    return time.process_time() - begin


def end(num_workers: int) -> Traffic:
    """The traffic of an end: all rest, are woken, and take leave."""
    machines = Machines(num_workers)
    machines.everyone(messages.Retire(messages.Rest.CLOSE))
    assert all(state.life.over for state in machines.states)
    _take_leave(machines.traffic, num_workers)
    return machines.traffic


def _take_leave(traffic: Traffic, num_workers: int) -> None:
    boxes = [_Mailbox(rank, traffic) for rank in range(num_workers)]
    farewells = [Farewell(box, rank, num_workers) for rank, box in enumerate(boxes)]  # type: ignore[arg-type]
    for farewell in farewells:
        farewell.begin()
    while messages_ := [(rank, *sent) for rank, box in enumerate(boxes) for sent in box.emptied()]:
        for source, dest, message in messages_:
            boxes[dest].received += 1
            farewells[dest].receive(source, message)
    assert all(farewell.over for farewell in farewells)


class _Mailbox:
    """What a farewell needs of a rank's mailbox."""

    def __init__(self, rank: int, traffic: Traffic):
        self._rank, self._traffic = rank, traffic
        self._outgoing: list = []
        self.sent = self.received = 0

    def send(self, dest: int, message) -> None:
        """Sends a message."""
        self.sent += 1
        self._traffic.add(self._rank, dest)
        self._outgoing.append((dest, message))

    def emptied(self) -> list:
        """What was sent since the last call."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing


def data(num_workers: int) -> tuple[float, int, set[int]]:
    """CPU seconds to compile the sync exchange of worker 0, its steps, and whom it exchanges messages with."""
    partners: list[int] = []
    steps: list[str] = []
    real = {name: getattr(mpi4jax, name) for name in ("send", "recv", "sendrecv")}

    def noting(name, *where):
        def call(*args, **kwargs):
            found = [kwargs.get(key) for key in where]
            found += [arg for arg in args if isinstance(arg, int)]
            partners.extend(rank for rank in found if rank is not None and rank >= 0)
            steps.append(name)
            return real[name](*args, **kwargs)

        return call

    wire = Wire(MPI.COMM_WORLD, jax.local_devices(backend="cpu")[0])
    buffers = (jnp.zeros(ELEMENTS, jnp.float32),)
    wire.memory(buffers)
    begin = time.process_time()
    with mock.patch.multiple(
        mpi4jax, send=noting("send", "dest"), recv=noting("recv", "source"), sendrecv=noting("sendrecv")
    ):
        wire.prepare(tuple(range(num_workers)), buffers)
    return time.process_time() - begin, len(steps), set(partners)


def main(workers: tuple[int, ...]) -> None:
    """Prints the table."""
    rows = []
    data(2)  # what is compiled once, whatever the group
    for num_workers in workers:
        milliseconds, at_sync = sync_round(num_workers)
        at_end = end(num_workers)
        compiling, steps, partners = data(num_workers)
        connections = at_sync.partners[0] | at_end.partners[0] | partners
        rows.append(
            (
                f"{num_workers:,}",
                f"{milliseconds:.2f}",
                max(at_sync.messages),
                max(at_end.messages),
                steps,
                len(connections),
                f"{compiling:.2f}",
            )
        )
    header = (
        "workers",
        "CPU ms of worker 0, a sync round",
        "control messages, a sync round",
        "control messages, the end",
        "steps of the data",
        "connections",
        "CPU s to compile the sync exchange",
    )
    print(markdown(header, rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workers", nargs="*", type=int, default=WORKERS, help="numbers of workers")
    main(tuple(parser.parse_args().workers))
