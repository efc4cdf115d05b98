"""How all ranks begin an exchange together, and end it: every wait has a limit, and hears of those that fail.

MPI's own waits do neither, and spin. So all steps are non-blocking collectives, and a rank that waits looks for
messages meanwhile: from those that have failed, and from those that want to know who has come.
"""

import pickle
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from mpi4py import MPI

from wagma_jax.exchange import ending, tags
from wagma_jax.exchange.errors import ExchangeError
from wagma_jax.exchange.isolation import isolated
from wagma_jax.exchange.mailbox import Mailbox
from wagma_jax.exchange.survey import MOST_ASKED, Come, Survey
from wagma_jax.protocol import tree
from wagma_jax.protocol.messages import Kind, Message

LEAST_SECONDS = 120.0  # how long those who have come wait for each other at least: some compile longer than others
NOTICE_SECONDS = 30.0  # after which a rank that waits for others says so
ANSWER_SECONDS = 1.0
FLUSH_SECONDS = 1.0
_SHORTEST_SLEEP = 2e-5  # seconds
_LONGEST_SLEEP = 5e-3

_abandoned: list[MPI.Request] = []  # of waits that have failed: MPI may still write to their buffers

_Result = TypeVar("_Result")


class _Failed(NamedTuple):
    """A rank has failed.

    Attributes:
        text: Why.
        origin: Which one, on the user's communicator. There each rank is told once, along a tree from this rank on:
            what is left over would be heard at the next start.
    """

    text: str
    origin: int | None = None


class Gathering:
    """The steps that all ranks take together.

    Args:
        comm: The user's communicator, on which nothing is sent before a wait has failed.
        seconds: How long a rank waits until all others have come.
        what: The constructor in which they wait.

    Attributes:
        comm: The communicator in use; one of our own after ``enter``.
        rank: Of this process.
    """

    def __init__(self, comm: MPI.Intracomm, seconds: float, what: str = "GroupExchange()"):
        self.comm = comm
        self.rank = comm.rank
        self._seconds = seconds
        self._what = what
        self._neighbours = tree.neighbours(comm.rank, comm.size)
        self._mailbox = Mailbox(comm, tags.START)
        self._survey = Survey(self._mailbox, comm.rank, comm.size)
        self._first: Mailbox | None = None  # that of the user's communicator, once there is another
        self._entered = False
        self._step = 0
        self._told = False  # whether all ranks know that this is over
        self._deadline: float | None = None

    def enter(self) -> None:
        """Waits until all ranks have come. From here on messages have a communicator of their own.

        Raises:
            TimeoutError: Some have not come within the limit; names them. So do all other waits.
            ExchangeError: A rank has failed. So do all other waits.
        """
        self._complete(self.comm.Ibarrier())
        self._listen()  # some may have given up before this rank has come: none begins the next step then
        self._seconds = max(self._seconds, LEAST_SECONDS)
        self.comm, self._entered = self.duplicate(), True
        self._first, self._mailbox = self._mailbox, Mailbox(self.comm, tags.START)
        self._survey = Survey(self._mailbox, self.rank, self.comm.size)

    def end(self, seconds: float) -> None:
        """From here on ranks wait for each other at their ends, and no longer than ``seconds`` for all of it."""
        self._what = "close()"
        self._first = None  # the user may have freed the communicator
        self._deadline = time.perf_counter() + seconds

    def duplicate(self) -> MPI.Intracomm:
        """A new communicator of all ranks."""
        comm, request = self.comm.Idup()
        self._complete(request)
        return comm

    def barrier(self) -> None:
        """Waits until all ranks have called it."""
        self._complete(self.comm.Ibarrier())

    def first(self, applies: bool) -> int | None:
        """The first rank for which something applies; None if it does for none."""
        first = np.empty(1, np.int64)
        own = np.array([self.rank if applies else self.comm.size], np.int64)
        self._complete(self.comm.Iallreduce(own, first, MPI.MIN))
        return int(first[0]) if first[0] < self.comm.size else None

    def broadcast(self, values: np.ndarray, root: int) -> None:
        """Replaces ``values`` by those of the rank ``root``; they have the same shape and dtype."""
        self._complete(self.comm.Ibcast(values, root))

    def broadcast_object(self, value: Any, root: int) -> Any:
        """The object that the rank ``root`` has passed; of the others nothing is used."""
        text = np.frombuffer(pickle.dumps(value), np.uint8).copy() if self.rank == root else np.empty(0, np.uint8)
        size = np.array([text.size], np.int64)
        self.broadcast(size, root)
        text = text if self.rank == root else np.empty(int(size[0]), np.uint8)
        self.broadcast(text, root)
        return pickle.loads(text.tobytes())

    def receive(self, source: int, tag: int) -> Any:
        """The next message of a rank, waited for without long sleeps."""
        message: list[MPI.Message] = []

        def arrived() -> bool:
            found = self.comm.improbe(source, tag)
            return found is not None and not message.append(found)

        self._wait(arrived, longest_sleep=_SHORTEST_SLEEP)
        return message[0].recv()

    def run(self, work: Callable[[], _Result]) -> _Result:
        """What ``work`` returns. A thread does it, since it waits inside of MPI, where it cannot be interrupted."""
        results: list[_Result] = []
        errors: list[BaseException] = []

        def target() -> None:
            try:
                results.append(work())
            except BaseException as error:
                errors.append(error)

        thread = ending.thread(isolated(target), f"wagma start {self.rank}")
        thread.start()
        self._wait(lambda: not thread.is_alive())
        if errors:
            raise errors[0]
        return results[0]

    def agreed_to_fail(self) -> None:
        """All ranks raise: nobody need be told."""
        self._told = True

    def fail(self, text: str, final: bool) -> None:
        """Tells the other ranks that this one has failed, once.

        Args:
            text: Why.
            final: Whether this rank has promised nothing by an engine of its own.
        """
        if not self._told and not MPI.Is_finalized():
            self._tell(_Failed(text, None if self._entered else self.rank), final)

    def _tell(self, failed: _Failed, final: bool) -> None:
        """Tells those who pass it on."""
        self._told = True
        if failed.origin is not None:
            ways = tree.children((self.rank - failed.origin) % self.comm.size, self.comm.size)
            mailbox = self._first or self._mailbox
            mailbox.send_to([(way + failed.origin) % self.comm.size for way in ways], failed)
            mailbox.flush(FLUSH_SECONDS)
        if self._entered:
            self._mailbox.send_to(self._neighbours, _Failed(failed.text))
            self._mailbox.flush(FLUSH_SECONDS)
            engines = Mailbox(self.comm)  # those that have gone on have engines by now
            engines.send_to(self._neighbours, Message(Kind.ABORT, 0, text=failed.text, final=final))
            engines.flush(FLUSH_SECONDS)

    def _complete(self, request: MPI.Request) -> None:
        try:
            self._wait(request.Test)
        except BaseException:
            _abandoned.append(request)
            raise

    def _wait(self, done: Callable[[], bool], longest_sleep: float = _LONGEST_SLEEP) -> None:
        """Waits for the next step."""
        self._step += 1
        begin = time.perf_counter()
        deadline = self._deadline or begin + self._seconds
        noticed, delay = False, _SHORTEST_SLEEP
        while not done():
            self._listen()
            now = time.perf_counter()
            if now > deadline:
                if self._completes(done):
                    break
                raise TimeoutError(f"{self._what} has waited for {now - begin:.1f} s: {self._diagnosis()}")
            if now > begin + NOTICE_SECONDS and not noticed:
                noticed = True
                warnings.warn(
                    f"{self._what} has waited for {now - begin:.0f} s for others of the {self.comm.size} ranks: "
                    f"it is called by all of them at the same time, and gives up after {deadline - begin:.0f} s",
                    RuntimeWarning,
                    stacklevel=_level_of_the_user(),
                )
            time.sleep(delay)
            delay = min(2 * delay, longest_sleep)

    def _listen(self) -> None:
        while (received := self._mailbox.receive() or self._from_the_first()) is not None:
            source, content = received
            if isinstance(content, Come):
                self._survey.receive(source, content, self._step)
            else:
                if not self._told:
                    self._tell(content, final=self._deadline is None)
                raise ExchangeError(content.text)
        self._survey.tell(self._step)

    def _from_the_first(self) -> tuple[int, Any] | None:
        """A message of a rank that failed before it had our communicator."""
        return None if self._first is None else self._first.receive()

    def _completes(self, done: Callable[[], bool]) -> bool:
        """Finds out who has come; whether the step is over before that is known."""
        self._survey.begin(self._step)
        begin, asked = time.perf_counter(), False
        while self._survey.missing(self._step) and (waited := time.perf_counter() - begin) < ANSWER_SECONDS:
            if waited > ANSWER_SECONDS / 2 and not asked:
                self._survey.ask(self._step)
                asked = True
            self._listen()
            time.sleep(_LONGEST_SLEEP)
        return done()

    def _diagnosis(self) -> str:
        missing = self._survey.missing(self._step)
        if not missing:
            return f"all {self.comm.size} ranks have come, but the network is stuck"
        named = ", ".join(map(str, missing[:MOST_ASKED]))
        more = f" and {len(missing) - MOST_ASKED} more" if len(missing) > MOST_ASKED else ""
        return (
            f"of {self.comm.size} ranks these have not come as far: {named}{more}; they are gone, "
            "stuck, or have not called it"
        )


def _level_of_the_user() -> int:
    """How far above the caller the first frame is that is not of this library."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("wagma_jax."):
        frame, level = frame.f_back, level + 1
    return level
