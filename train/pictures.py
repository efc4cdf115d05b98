"""Pictures of runs: how one or several went, and what several algorithms made of the same time."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from train.results import number, waited_seconds
from train.task import Score

Row = Mapping[str, Any]

_COLORS = ("#d62728", "#555555", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf")
_STYLES = ("-", "--", "-.", ":")

#: How numbers stand at the ticks of an axis: whole where they are whole, never rounded.
TICK = "{x:,.10g}"

# The least height of an axis of scores, as a share of the largest score, so that noise does not fill it.
_LEAST_HEIGHT = 0.05
# Curves with at most this many points have markers.
_FEW = 12


def plot_runs(path: Path, runs: Mapping[str, Sequence[Row]], title: str, score: Score, unit: str) -> None:
    """Loss, score, consensus distance and rate of one or several runs, over what all workers have seen.

    Args:
        path: The PNG to write.
        runs: Maps a label to the rows of the run's metrics file. Values may be None: a loss that was not finite is a
            gap, and a consensus distance that was not measured is left out.
        title: Above the picture.
        score: What is shown of ``row["eval"]``.
        unit: What is counted, in the plural.
    """
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    axes = figure.subplots(2, 2)
    losses, scores, distances, rates = axes.flat
    sound = []  # the runs that have not diverged
    for index, (label, rows) in enumerate(runs.items()):
        logs = [row for row in rows if "loss" in row]
        evals = [row for row in rows if "eval" in row]
        measured = [row for row in logs if row.get("consensus_distance") is not None]
        look = {"color": _color(index), "linestyle": _STYLES[index % len(_STYLES)]}
        if np.isfinite(_numbers(logs, "loss")).all():
            sound.append(index)
        reached = [row["eval"].get(score.name) for row in evals]
        last = _text(reached[-1], score) if reached else "not evaluated"
        _curve(losses, _numbers(logs, "examples"), _numbers(logs, "loss"), label=label, **look)
        _curve(scores, _numbers(evals, "examples"), _scaled(reached, score), label=f"{label}: {last}", **look)
        _curve(distances, _numbers(measured, "examples"), _numbers(measured, "consensus_distance"), **look)
        _curve(rates, _numbers(logs, "examples"), _numbers(logs, "examples_per_second"), **look)
    losses.set(ylabel="loss", title="training loss, mean of the workers")
    values = _shown(losses)
    if len(values) and values.min() > 0 and values.max() > 10 * values.min():
        losses.set_yscale("log")
    _cut_top(losses, sound)
    losses.legend()
    scores.set(ylabel=_label(score), title=f"{_words(score)} of the consensus model")
    if len(values := _shown(scores)):
        scores.set_ylim(*_limits(values.min(), values.max(), score))
    scores.legend()
    distances.set(ylabel="root mean square over workers", title="distance to the consensus, before averaging")
    _cut_top(distances, sound)
    distances.set_ylim(bottom=0)
    rates.set(ylabel=f"{unit} per second", title="training rate of all workers together")
    rates.set_ylim(bottom=0)
    rates.yaxis.set_major_formatter(TICK)
    end = max((row["examples"] for rows in runs.values() for row in rows), default=1)
    for axis in axes.flat:
        _say_if_empty(axis)
        axis.set_xlabel(f"{unit} seen by all workers")
        axis.xaxis.set_major_formatter(TICK if end < 1e6 else EngFormatter())
        axis.set_xlim(0, 1.03 * end)
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)


def plot_comparison(path: Path, runs: Sequence[tuple[Row, Sequence[Row]]], title: str, score: Score) -> None:
    """How several algorithms used their time: the score over seconds, throughput, and seconds waited.

    The axis of the score shows the last two thirds of every run. Where earlier values lie outside, it says so.

    Args:
        path: The PNG to write.
        runs: Summary and metrics rows of each; the first is the one that the others are compared with.
        title: Above the picture.
        score: What is shown of ``row["eval"]``, or of ``summary["eval"]`` for a run without such rows.
    """
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    curves, rates, waits = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    late = []
    for index, (summary, rows) in enumerate(runs):
        evals = [row for row in rows if "eval" in row]
        evals = evals or [{"seconds": summary["wall_seconds"], "eval": summary["eval"]}]
        reached = [row["eval"].get(score.name) for row in evals]
        seconds, values = _numbers(evals, "seconds"), _scaled(reached, score)
        label = f"{summary['algorithm']}: {_text(reached[-1], score)} after {summary['wall_seconds']:.0f} s"
        look = {"color": _color(index), "zorder": 3 - index / len(runs)}  # the first is on top
        _curve(curves, seconds, values, label=label, **look)
        curves.plot(seconds[-1:], values[-1:], marker="o", markersize=5, **look)
        late.append(values[seconds >= seconds[-1] / 3])
    _view(curves, np.concatenate(late), score)
    curves.set(xlabel="seconds of training", title=f"{_words(score)} of the consensus model")
    curves.set_xlim(0, 1.03 * max(curves.dataLim.x1, 1e-9))
    curves.grid(alpha=0.3)
    curves.legend()
    names = [summary["algorithm"] for summary, _ in runs]
    _bars(rates, names, [summary["examples_per_second"] for summary, _ in runs])
    rates.set(title="throughput", ylabel=f"{runs[0][0]['unit']} per second")
    _bars(waits, names, [waited_seconds(summary) for summary, _ in runs])
    waits.set(title="waiting for others", ylabel="seconds per worker")
    figure.suptitle(title)
    figure.savefig(path, dpi=130)


def _curve(axis: Axes, x: np.ndarray, y: np.ndarray, **look: Any) -> None:
    """A line with a gap at every NaN, and with markers where its points are few."""
    few = np.isfinite(y).sum() <= _FEW
    axis.plot(x, y, marker="o" if few else "", markersize=4, linewidth=1.6, **look)


def _bars(axis: Axes, names: Sequence[str], values: Sequence[float | None]) -> None:
    """One bar per run, from zero; none for what is not known."""
    places = range(len(names))
    bars = axis.bar(places, [value or 0.0 for value in values], color=[_color(index) for index in places])
    size = "medium" if len(names) < 5 else "x-small"
    texts = ["?" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in values]
    if all(value is None for value in values):
        _say_if_empty(axis)
    else:
        axis.bar_label(bars, texts, fontsize=size)
    axis.set_xticks(places, names, rotation=0 if len(names) < 5 else 60, fontsize=size)
    axis.set_ylim(0, 1.12 * max((value or 0.0 for value in values), default=0.0) or 1.0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.yaxis.set_major_formatter(TICK)


def _cut_top(axis: Axes, sound: Sequence[int]) -> None:
    """Cuts off values of diverging runs far above those of all others, and says so in the picture."""
    lines = axis.get_lines()
    values, calm = _shown(axis), _shown(axis, [lines[index] for index in sound])
    if len(calm) and 0 < 10 * calm.max() < values.max():
        if axis.get_yscale() == "log":
            axis.set_ylim(values.min() / 2, 5 * calm.max())
        else:
            axis.set_ylim(top=2 * calm.max())
        _write(axis, 0.98, 0.95, f"values up to {values.max():.0e} lie above")


def _say_if_empty(axis: Axes) -> None:
    if not len(_shown(axis)):
        _write(axis, 0.5, 0.5, "not measured")
        axis.set_yticks([])


def _write(axis: Axes, x: float, y: float, text: str) -> None:
    """Writes into a picture, at a share of its width and height."""
    align = "center" if x == 0.5 else "right"
    axis.text(x, y, text, transform=axis.transAxes, ha=align, va="center", color="gray", fontsize="small")


def _view(axis: Axes, late: np.ndarray, score: Score) -> None:
    """Lets the later values fill the axis, and says if earlier ones are worse than what it shows."""
    values, late, label = _shown(axis), late[np.isfinite(late)], _label(score)
    if len(values):
        low, high = values.min(), values.max()
        near = (late.min(initial=high), high) if score.higher else (low, late.max(initial=low))
        bottom, top = _limits(*(near if near[1] - near[0] < 0.6 * (high - low) else (low, high)), score)
        if low < bottom or high > top:
            label += f"; earlier values lie {'below' if score.higher else 'above'}"
        axis.set_ylim(bottom, top)
    axis.set_ylabel(label)


def _limits(low: float, high: float, score: Score) -> tuple[float, float]:
    """Limits of an axis of scores around these two: a little wider, and never so tight that noise fills the axis."""
    largest = 100.0 if score.unit == "%" else max(abs(low), abs(high))
    height = max(high - low, _LEAST_HEIGHT * largest) or 1.0
    margin = (height - (high - low)) / 2 + 0.05 * height
    if score.unit == "%":  # no more than a little room beyond 0 and 100
        return max(low - margin, -0.03 * height), min(high + margin, 100 + 0.03 * height)
    return low - margin, high + margin


def _shown(axis: Axes, lines: Iterable[Any] | None = None) -> np.ndarray:
    """The finite values of some lines of an axis, of all if none are given."""
    lines = axis.get_lines() if lines is None else lines
    values = np.concatenate([np.empty(0), *(np.asarray(line.get_ydata(), float) for line in lines)])
    return values[np.isfinite(values)]


def _numbers(rows: Iterable[Row], key: str) -> np.ndarray:
    """A column as floats, with NaN for what is missing, None or not finite."""
    return _floats(row.get(key) for row in rows)


def _scaled(values: Iterable[float | None], score: Score) -> np.ndarray:
    return _floats(values) * (100 if score.unit == "%" else 1)


def _floats(values: Iterable[float | None]) -> np.ndarray:
    array = np.array([math.nan if value is None else value for value in values], float)
    return np.where(np.isfinite(array), array, math.nan)


def _text(value: float | None, score: Score) -> str:
    """The score at the end of a run, with its unit."""
    if value is None or not math.isfinite(value):
        return "no number"
    if score.unit == "%":
        return f"{100 * value:.1f} %"
    return f"{number(value, score.name)} {score.unit}".strip()


def _label(score: Score) -> str:
    return f"{_words(score)} ({score.unit})" if score.unit else _words(score)


def _words(score: Score) -> str:
    return score.name.replace("_", " ")


def _color(index: int) -> str:
    return _COLORS[index % len(_COLORS)]
