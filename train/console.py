"""What people see of a run while it goes on: lines, warnings and a progress bar."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from wagma_jax import descriptors

descriptors.open_standard()  # a closed stdout has no width, and the next file to be opened would take its place
# Without a terminal, no window limits the width of tables.
console = Console(width=None if sys.stdout.isatty() else 110)

_speaks = True


def set_speaker(flag: bool) -> None:
    """Sets whether this process speaks for the run. Of several processes, only the first one should."""
    global _speaks
    _speaks = flag


def say(text: str) -> None:
    """Prints a line for people, if this process speaks for the run."""
    if _speaks:
        console.print(text, highlight=False, markup=False)


def warn(text: str) -> None:
    """Prints a line that should not be missed; on every process, since it may concern only that one."""
    console.print(text, style="yellow", highlight=False, markup=False)


def warn_aside(text: str) -> None:
    """Prints a warning to standard error, where standard output is what others read."""
    print(text, file=sys.stderr)


def progress_bar() -> Progress:
    """A bar with a field ``status`` for loss and rate; hidden on processes that do not speak for the run."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=console,
        disable=not _speaks,
    )
