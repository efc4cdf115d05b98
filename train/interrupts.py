"""Ends a run at the next log point, with a checkpoint, when it is asked to stop."""

import signal
import threading
from typing import Any


class Interrupts:
    """Notices SIGTERM (Slurm and other schedulers send it before they kill) and the first SIGINT.

    A context manager; the signals' former handlers are back after it. A second SIGINT raises KeyboardInterrupt as
    usual. Outside of the main thread, where Python has no signals, it notices nothing.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._former[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _notice(self, number: int, frame: Any) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
