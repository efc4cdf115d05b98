"""Writes the ledger of one rank: who waited for whom, how long, and how stale contributions were.

Both threads add entries, which costs about a microsecond each; the engine's thread converts and writes them.
``wagma_jax.ledger`` reads the files, and ``replay`` executes them again.
"""

import collections
import json
import time
import warnings
from pathlib import Path
from typing import Any

from wagma_jax.ledger.codec import encode
from wagma_jax.ledger.entries import Entry

FLUSH_SECONDS = 1.0
FLUSH_ENTRIES = 64
MOST_ENTRIES = 4096  # that wait to be written; if the disk is stuck, the oldest are lost


class Recorder:
    """Writes the entries of one rank as lines of JSON.

    Args:
        folder: Where the file goes; made if missing. A file that is there is continued.
        rank: Of this worker.

    Raises:
        ValueError: The file cannot be written.
    """

    def __init__(self, folder: Path | str, rank: int):
        self.path = Path(folder) / f"ledger-{rank}.jsonl"
        self._entries: collections.deque[Entry] = collections.deque(maxlen=MOST_ENTRIES)
        self._written = time.perf_counter()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._end_line()
            self._file: Any = self.path.open("a")
        except OSError as error:
            raise ValueError(f"the ledger {self.path} cannot be written ({error}): pass another folder") from None

    def _end_line(self) -> None:
        """Ends the line that a run which was killed may have left unfinished."""
        if self.path.exists() and self.path.stat().st_size:
            with self.path.open("rb+") as file:
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")

    def add(self, entry: Entry) -> None:
        """Adds an entry, which nobody changes afterwards (nor a dict in it); may be called from any thread."""
        self._entries.append(entry)

    def write(self, everything: bool = False) -> None:
        """Writes what has been added, if there is enough of it or it has waited for long; by one thread at a time."""
        now = time.perf_counter()
        due = len(self._entries) >= FLUSH_ENTRIES or now - self._written >= FLUSH_SECONDS
        if self._file is None or not (everything or (due and self._entries)):
            return
        self._written = now
        lines = []
        while self._entries:
            lines.append(json.dumps(encode(self._entries.popleft())) + "\n")
        try:
            self._file.write("".join(lines))
            self._file.flush()
        except (OSError, ValueError) as error:  # ValueError: closed after a failure. Training is worth more than this
            warnings.warn(f"the ledger {self.path} ends here: it cannot be written ({error})", stacklevel=2)
            self._file = None

    def close(self) -> None:
        """Writes everything and closes the file."""
        self.write(everything=True)
        if self._file is not None:
            self._file.close()
            self._file = None
