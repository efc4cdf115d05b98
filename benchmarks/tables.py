"""Numbers as text: Markdown tables and their cells."""

from collections.abc import Sequence

from benchmarks.samples import Summary, summarize
from train.markdown import table as markdown

__all__ = ["markdown", "spread"]


def spread(values: Sequence[float] | Summary, scale: float = 1.0, digits: int = 2) -> str:
    """``median (q1 - q3; p95)`` of the values times ``scale``; a dash if there are none."""
    if not isinstance(values, Summary) and not len(values):
        return "-"
    one = values if isinstance(values, Summary) else summarize(values)
    median, q1, q3, p95 = (f"{scale * value:.{digits}f}" for value in (one.median, one.q1, one.q3, one.p95))
    return f"{median} ({q1} - {q3}; {p95})"
