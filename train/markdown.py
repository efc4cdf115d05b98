"""Tables in Markdown."""

from collections.abc import Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], labels: int = 0) -> str:
    """A table with aligned columns.

    Args:
        header: Names of the columns.
        rows: Cells.
        labels: How many columns in front are aligned to the left.
    """
    cells = [tuple(str(cell).replace("|", "\\|") for cell in row) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [
            text.ljust(w) if i < labels else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(padded)} |")
    rule = ["-" * (w + 2) if i < labels else "-" * (w + 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])
