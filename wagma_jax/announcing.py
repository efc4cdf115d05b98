"""Says what is waited for, once it takes longer than a moment."""

import contextlib
import sys
import threading
from collections.abc import Iterator

SILENT_SECONDS = 2.0
"""Seconds of waiting after which the user is told."""

_waiting = threading.Event()


@contextlib.contextmanager
def announced(text: str, patience: float = 1.0) -> Iterator[None]:
    """Prints a text to stderr if what follows takes longer than a moment; within another of these, nothing.

    Args:
        text: What is waited for, and how to do without.
        patience: The moment, in multiples of the usual one.
    """
    if _waiting.is_set():
        yield
        return
    timer = threading.Timer(patience * SILENT_SECONDS, lambda: print(text, file=sys.stderr, flush=True))
    timer.daemon = True
    _waiting.set()
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        _waiting.clear()
