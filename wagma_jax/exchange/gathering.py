"""How all ranks begin an exchange together, and end it: every wait has a limit, and hears of those that fail.

MPI's own waits do neither, and spin. So all steps are non-blocking collectives, and a rank that waits looks for
messages meanwhile: from those that have failed, and from those that want to know who has come.
"""

import pickle
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from mpi4py import MPI

from wagma_jax.exchange import tags
from wagma_jax.exchange.errors import ExchangeError
from wagma_jax.exchange.isolation import isolated
from wagma_jax.exchange.mailbox import Mailbox
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
    """The sender has failed."""

    text: str


class _Ask(NamedTuple):
    """Asks a rank for the step at which it is."""


class _Here(NamedTuple):
    """The sender waits at a step."""

    step: int


class Gathering:
    """The steps that all ranks take together.

    Args:
        comm: The user's communicator, on which nothing is sent before a wait has failed.
        seconds: How long a rank waits until all others have come.

    Attributes:
        comm: The communicator in use; one of our own after ``enter``.
        rank: Of this process.
    """

    def __init__(self, comm: MPI.Intracomm, seconds: float):
        self.comm = comm
        self.rank = comm.rank
        self._seconds = seconds
        self._what = "GroupExchange()"
        self._mailbox = Mailbox(comm, tags.START)
        self._first: Mailbox | None = None  # that of the user's communicator, once there is another
        self._entered = False
        self._step = 0
        self._told = False  # whether all ranks know that this is over
        self._here: dict[int, int] = {}
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

    def allgather(self, values: np.ndarray) -> np.ndarray:
        """The values of all ranks, [P, ...]; they have the same shape and dtype."""
        everyone = np.empty((self.comm.size, *values.shape), values.dtype)
        self._complete(self.comm.Iallgather(np.ascontiguousarray(values), everyone))
        return everyone

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

        thread = threading.Thread(target=isolated(target), name=f"wagma start {self.rank}", daemon=True)
        thread.start()
        self._wait(lambda: not thread.is_alive())
        if errors:
            raise errors[0]
        return results[0]

    def agreed_to_fail(self) -> None:
        """All ranks raise: nobody need be told."""
        self._told = True

    def fail(self, text: str) -> None:
        """Tells all other ranks that this one has failed, once."""
        if not self._told and not MPI.Is_finalized():
            self._told = True
            self._mailbox.send_all(_Failed(text))
            self._mailbox.flush(FLUSH_SECONDS)
            if self._entered:  # those that have gone on have engines by now
                engines = Mailbox(self.comm)
                engines.send_all(Message(Kind.ABORT, 0, text=text))
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
            if isinstance(content, _Ask):
                self._mailbox.send(source, _Here(self._step))
            elif isinstance(content, _Here):
                self._here[source] = content.step
            else:
                self._told = True
                raise ExchangeError(content.text)

    def _from_the_first(self) -> tuple[int, Any] | None:
        """A message of a rank that failed before it had our communicator."""
        return None if self._first is None else self._first.receive()

    def _completes(self, done: Callable[[], bool]) -> bool:
        """Asks all others where they are; whether the step is over before they have answered."""
        self._here = {}
        self._mailbox.send_all(_Ask())
        end = time.perf_counter() + ANSWER_SECONDS
        while len(self._here) < len(self._mailbox.others) and time.perf_counter() < end:
            self._listen()
            time.sleep(_LONGEST_SLEEP)
        return done()

    def _diagnosis(self) -> str:
        missing = [rank for rank in self._mailbox.others if self._here.get(rank, 0) < self._step]
        if not missing:
            return f"all {self.comm.size} ranks have come, but the network is stuck"
        return (
            f"of {self.comm.size} ranks these have not come as far: {', '.join(map(str, missing))}; they are gone, "
            "stuck, or have not called it"
        )


def _level_of_the_user() -> int:
    """How far above the caller the first frame is that is not of this library."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("wagma_jax."):
        frame, level = frame.f_back, level + 1
    return level
