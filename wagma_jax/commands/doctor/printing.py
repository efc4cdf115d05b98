"""Prints the doctor's rows: in colour on a terminal if rich is installed, else as plain columns."""

import functools
import shutil
import textwrap
from collections.abc import Callable
from typing import Any, TextIO

from wagma_jax.commands.doctor.rows import Row

_NAME_WIDTH = 13
_STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


def printer(file: TextIO) -> Callable[[Row], None]:
    """The function that prints one row."""
    if file.isatty():
        try:
            from rich.console import Console  # of the extra 'train', so it may be missing
        except ImportError:
            pass
        else:
            return functools.partial(_print_rich, Console(file=file, highlight=False))
    # Programs that read a pipe want whole lines: only a terminal's are folded.
    width = shutil.get_terminal_size().columns if file.isatty() else 0
    return functools.partial(_print_plain, file, width)


def _print_plain(file: TextIO, width: int, row: Row):
    indent = " " * (6 + _NAME_WIDTH)
    for i, text in enumerate((row.text, f"-> {row.remedy}" if row.remedy else "")):
        if text:
            lines = textwrap.wrap(text, max(30, width - len(indent)), break_on_hyphens=False) if width else [text]
            first = f"{row.state:<6}{row.name:<{_NAME_WIDTH}}" if i == 0 else indent
            print(first + f"\n{indent}".join(lines), file=file, flush=True)


def _print_rich(console: Any, row: Row):
    from rich.table import Table
    from rich.text import Text

    table = Table.grid()
    table.add_column(width=6)
    table.add_column(width=_NAME_WIDTH)
    table.add_column()
    table.add_row(Text(row.state, _STYLES[row.state]), row.name, Text(row.text))
    if row.remedy:
        table.add_row("", "", Text(f"-> {row.remedy}", "bold"))
    console.print(table)
