"""Ends a run at its next meeting, with a checkpoint, when it is asked to stop."""

import signal
import threading
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""What asks a run to stop. Schedulers send SIGTERM, or the signal that a job asked for, before they kill it."""


class Interrupts:
    """Notices SIGTERM, SIGUSR1, SIGHUP and the first SIGINT.

    A context manager, which restores the former handlers on exit. A second SIGINT raises KeyboardInterrupt as usual.
    Outside the main thread, where Python handles no signals, it notices nothing.

    Attributes:
        received: The signal that asked to stop, or None.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) == signal.SIG_IGN:  # by nohup, say
                    continue
                self._former[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _notice(self, number: int, frame: Any) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def tally(self) -> tuple[int, ...]:
        """For each of ``SIGNALS``, 1 if it has been received and 0 otherwise, to be added up over workers."""
        return tuple(int(self.received == number) for number in SIGNALS)


def asked(tally: tuple[int, ...]) -> signal.Signals | None:
    """The signal that some worker has received, from the sums of all tallies; None if nobody has."""
    return next((number for number, count in zip(SIGNALS, tally, strict=True) if count), None)
