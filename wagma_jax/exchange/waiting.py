"""For whom a worker waits: how long, for the ledger, and what is known about them, for the message of a timeout."""

import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from wagma_jax.exchange.mailbox import Mailbox
from wagma_jax.protocol.machine import Machine


class Waits:
    """Seconds of the trainer's current call, by the rank that it waited for; several ranks share them evenly."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}
        self._missing: tuple[int, ...] = ()
        self._since = time.perf_counter()

    def begin(self) -> None:
        """A new call begins."""
        self.seconds, self._missing = {}, ()

    def watch(self, missing: tuple[int, ...]) -> None:
        """Counts the time until now for those who were missing; from now on ``missing`` are."""
        now = time.perf_counter()
        for rank in self._missing:
            self.seconds[rank] = self.seconds.get(rank, 0.0) + (now - self._since) / len(self._missing)
        self._missing, self._since = missing, now


class Status(NamedTuple):
    """Where a worker stands.

    Attributes:
        round: Its current round.
        waits_for: The workers that its engine waits for; itself if its trainer has not arrived.
        busy: Seconds since its trainer was last inside a call, 0 while it is.
    """

    round: int
    waits_for: tuple[int, ...]
    busy: float


class Inside(NamedTuple):
    """What an engine's thread is in, where it hears nothing: since when, and of which round, if it is one's."""

    what: str
    group: tuple[int, ...]
    since: float
    round: int | None = None

    def diagnosis(self, own: int) -> str:
        """What is known about those who do not come into it, for the message of this rank's timeout."""
        others = [rank for rank in self.group if rank != own]
        seconds = time.perf_counter() - self.since
        return f"inside {self.what} with the ranks {others} for {seconds:.1f} s; the network is stuck"


class Ask(NamedTuple):
    """Asks another engine for its Status.

    Attributes:
        rests: Whether it is about who does not rest, rather than about a round.
    """

    rests: bool = False


def status(machine: Machine, state: Any, ask: Ask, busy: float) -> Status:
    """What an engine answers, whose trainer was last inside of a call ``busy`` seconds ago."""
    waits_for = machine.waits_for(state)
    if ask.rests:
        waits_for += machine.lifecycle.missing(state.life)
    return Status(state.round, waits_for, busy)


class Inquiry:
    """Finds out for whom a worker waits in the end: asks those it waits for, and those that they wait for.

    Args:
        mailbox: The engine's.
        rank: This one.
    """

    def __init__(self, mailbox: Mailbox, rank: int):
        self._mailbox = mailbox
        self._rank = rank
        self._answers: dict[int, Status | None] = {}  # of those who were asked
        self._ask = Ask()

    def begin(self, ranks: Iterable[int], rests: bool) -> None:
        """Asks those whom this worker waits for, because its trainer rests or in a round."""
        self._ask = Ask(rests)
        self.ask(ranks)

    def ask(self, ranks: Iterable[int]) -> None:
        """Asks each rank once."""
        for rank in ranks:
            if rank not in self._answers and rank != self._rank:
                self._answers[rank] = None
                self._mailbox.send(rank, self._ask)

    def answered(self, rank: int, status: Status) -> None:
        """A rank has answered."""
        self._answers[rank] = status
        self.ask(status.waits_for)

    def diagnosis(self) -> str:
        """What is known about those who do not come. Called by the trainer's thread."""
        lines = []
        for rank, status in sorted(self._answers.copy().items()):
            if status is None:
                lines.append(f"rank {rank} does not answer: it is gone, or stuck in code that holds Python's GIL")
            elif rank in status.waits_for and status.busy:
                lines.append(
                    f"rank {rank} has not arrived at round {status.round}: it has computed for {status.busy:.1f} s"
                )
        return "; ".join(lines) or "the engine does not answer"
