"""The events of an engine: what its trainer posts and what other engines send; the thread sleeps in between.

MPI has no wait that sleeps, so messages are polled for: often while something happens, and every three milliseconds
while nothing does.
"""

import collections
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from wagma_jax.exchange.mailbox import Mailbox
from wagma_jax.protocol.messages import Receive

SHORTEST_POLL = 20e-6  # seconds; doubles while nothing comes
LONGEST_POLL = 3e-3
LONGEST_POLL_EAGER = 1e-4


class Events:
    """The events of one engine.

    Args:
        mailbox: Where messages come from.
        is_eager: Whether a message is expected soon.
        idle: Called while there is nothing to do.
        poll: The next event from elsewhere, or None.
    """

    def __init__(
        self, mailbox: Mailbox, is_eager: Callable[[], bool], idle: Callable[[], None], poll: Callable[[], Any]
    ):
        self._mailbox = mailbox
        self._is_eager = is_eager
        self._idle = idle
        self._poll = poll
        self._posted: collections.deque[Any] = collections.deque()
        self._wake = threading.Lock()  # released by the trainer: wakes the thread

    def post(self, event: Any) -> None:
        """Adds an event of the trainer, from its thread."""
        self._posted.append(event)
        with contextlib.suppress(RuntimeError):  # the thread has not slept since the last event
            self._wake.release()

    def next(self, deadline: float | None = None) -> Any:
        """The next event, in the engine's thread; None after ``deadline`` (of ``time.perf_counter``)."""
        delay = SHORTEST_POLL
        while True:
            if self._posted:
                return self._posted.popleft()
            received = self._mailbox.receive()
            if received is not None:
                return Receive(*received)
            polled = self._poll()
            if polled is not None:
                return polled
            self._idle()
            woken = self._wake.acquire(timeout=delay)
            longest = LONGEST_POLL_EAGER if self._is_eager() else LONGEST_POLL
            delay = SHORTEST_POLL if woken else min(2 * delay, longest)
            if deadline is not None and time.perf_counter() > deadline:
                return None
