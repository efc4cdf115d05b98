"""Tells processes that go on working when enough of them are done: small messages, and nobody waits for them."""

import threading
import time

from mpi4py import MPI

from wagma_jax.exchange.mailbox import LOOKS

_DONE, _ENOUGH = 1, 2  # tags; the communicator is this module's alone
_SLEEP = 5e-4  # seconds between two looks of the thread that counts
_LAST_SECONDS = 1.0  # for what is still on its way when it ends


class Headcount:
    """Counts who is done with a stage of work, over and over again.

    Every process calls :meth:`begin`, asks :meth:`reached` as often as it likes, and calls :meth:`done`. Nobody may
    begin a stage before all are done with the one before: something else, such as a global mean, sees to that.

    Process 0 counts, in a thread of its own, since it may be asleep somewhere else. A stage takes two messages for each
    process, which hold nothing.

    Args:
        comm: A communicator for this alone.
        needed: How many must be done, from 1 to all of them.
    """

    def __init__(self, comm: MPI.Intracomm, needed: int):
        assert 1 <= needed <= comm.size, "a count of processes"
        self._comm, self._needed = comm, needed
        self._enough: list[MPI.Request] = []  # receives of the messages that enough are done; not at process 0
        self._told: list[MPI.Request] = []
        self._begun = 0  # stages
        self._counter = _Counter(comm, needed) if comm.rank == 0 else None

    def begin(self) -> None:
        """A stage of work begins."""
        self._begun += 1
        if self._counter is not None:
            self._counter.begin(self._begun)
            return
        # messages come in the order of the stages, so that each completes the receive of its own
        self._enough = [request for request in self._enough if not request.Test()]
        self._enough.append(self._comm.Irecv([bytearray(0), MPI.BYTE], 0, _ENOUGH))

    def reached(self) -> bool:
        """Whether enough processes are done with the stage, as far as is known here."""
        if self._counter is not None:
            return self._counter.announced >= self._begun
        return any(self._enough[-1].Test() for _ in range(LOOKS))

    def done(self) -> None:
        """This process is done with the stage."""
        if self._counter is not None:
            self._counter.done()
            return
        self._told = [request for request in self._told if not request.Test()]
        self._told.append(self._comm.Isend([bytearray(0), MPI.BYTE], 0, _DONE))

    def close(self) -> None:
        """Takes in what is still on its way, but waits for no process that is not done. The communicator stays."""
        if self._counter is not None:
            self._counter.close()
        for request in self._told:
            _wait(request, _LAST_SECONDS)
        for request in self._enough:
            if not _wait(request, _LAST_SECONDS):
                request.Cancel()
        self._told, self._enough = [], []


class _Counter:
    """The thread of process 0.

    Attributes:
        announced: Stages of which all have been told that enough are done.
    """

    def __init__(self, comm: MPI.Intracomm, needed: int):
        self._comm, self._needed = comm, needed
        self.announced = 0
        self._begun = self._heard = self._own = 0  # stages; messages; stages that this process is done with
        self._sent: list[MPI.Request] = []
        self._wake, self._deadline = threading.Event(), float("inf")
        self._thread = threading.Thread(target=self._count, name="headcount", daemon=True)
        self._thread.start()

    def begin(self, stages: int) -> None:
        """So many have begun."""
        self._begun = stages
        self._wake.set()

    def done(self) -> None:
        """This process is done with a stage."""
        self._own += 1

    def close(self) -> None:
        """Ends the thread."""
        self._deadline = time.monotonic() + _LAST_SECONDS
        self._wake.set()
        self._thread.join()
        for request in self._sent:
            _wait(request, _LAST_SECONDS)

    def _count(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while self.announced < self._begun or self._heard + self._own < self._begun * self._comm.size:
                if time.monotonic() > self._deadline:
                    return
                self._look()
                time.sleep(_SLEEP)
            if self._deadline < float("inf"):
                return

    def _look(self) -> None:
        for _ in range(LOOKS):
            while (message := self._comm.Improbe(MPI.ANY_SOURCE, _DONE)) is not None:
                message.Recv([bytearray(0), MPI.BYTE])
                self._heard += 1
        if self._heard + self._own >= self.announced * self._comm.size + self._needed:
            self._sent = [request for request in self._sent if not request.Test()]
            others = range(1, self._comm.size)
            self._sent += [self._comm.Isend([bytearray(0), MPI.BYTE], other, _ENOUGH) for other in others]
            self.announced += 1


def _wait(request: MPI.Request, seconds: float) -> bool:
    """Waits for a request, asleep, for no longer than that; whether it is complete."""
    end = time.monotonic() + seconds
    while not request.Test():
        if time.monotonic() > end:
            return False
        time.sleep(_SLEEP)
    return True
