"""Numbers as text: Markdown tables and their cells."""

from collections.abc import Sequence
from typing import Any

from benchmarks.samples import Summary, summarize


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table with aligned columns."""
    cells = [tuple(map(str, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(text.rjust(w) for text, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|", *lines[1:]])


def spread(values: Sequence[float] | Summary, scale: float = 1.0, digits: int = 2) -> str:
    """``median (q1 - q3; p95)`` of the values times ``scale``; a dash if there are none."""
    if not isinstance(values, Summary) and not len(values):
        return "-"
    one = values if isinstance(values, Summary) else summarize(values)
    median, q1, q3, p95 = (f"{scale * value:.{digits}f}" for value in (one.median, one.q1, one.q3, one.p95))
    return f"{median} ({q1} - {q3}; {p95})"
