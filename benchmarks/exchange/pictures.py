"""Parts of the pictures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.samples import Summary, summarize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = {"allreduce": "#555555", "wire": "#ff7f0e", "wagma": "#d62728", "step": "#9467bd", "bound": "#1f77b4"}


def make_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches. Only the rank that draws imports matplotlib."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def panel_of(figure: "Figure", position: Any, xlabel: str, ylabel: str, title: str) -> Any:
    """Labelled axes at a position as ``Figure.add_subplot`` takes it."""
    panel = figure.add_subplot(position)
    panel.set_xlabel(xlabel)
    panel.set_ylabel(ylabel)
    panel.set_title(title, fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)
    return panel


def whiskers(one: Summary) -> list[list[float]]:
    """The quartiles as distances from the median, for ``yerr``."""
    return [[one.median - one.q1], [one.q3 - one.median]]


def bar(panel: Any, x: float, values: Sequence[float], color: str, label: str | None = None) -> None:
    """A bar from zero to the median, with its number; whiskers are the quartiles."""
    one = summarize(values)
    panel.bar(x, one.median, 0.7, color=color, yerr=whiskers(one), capsize=3, label=label)
    panel.annotate(f"{one.median:.3g}", (x, one.q3), (0, 3), textcoords="offset points", ha="center", fontsize=8)
