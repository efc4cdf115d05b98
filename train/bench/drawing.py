"""Pictures of a bench: throughput, and the score against time and against examples; of what ``collecting`` returned."""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.bench.cases import slug
from train.pictures import TICK
from train.task import Score

Found = Mapping[str, Any]

_COLORS = (
    "#d62728", "#555555", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#bcbd22", "#e377c2",
    "#393b79", "#98df8a", "#ffbb78", "#aec7e8",
)  # fmt: skip
_STYLES = ("-", "--", "-.", ":")
_COLUMNS = 3  # panels beside each other
_POINTS = 200  # at which the curves of several seeds are compared
_LETTERS = 11  # of a title or a legend in an inch
_NARROWEST = 8.0  # inches
_LEGEND_LINES, _LEGEND_LINE = 4, 0.19  # lines of a legend for which there is room, inches of each
_SHOWN = 0.75  # of the examples: what a panel's axis of scores is chosen by


def draw(found: Found, folder: Path) -> list[Path]:
    """Writes the pictures of every workload, as PNG; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for label in found["workloads"]:
        name = found["name"] if len(found["workloads"]) == 1 else f"{found['name']}-{slug(label)}"
        for what, make in (
            ("throughput", throughput),
            ("score-time", against_time),
            ("score-examples", against_examples),
        ):
            path = folder / f"{name}-{what}.png"
            make(found, label).savefig(path, dpi=120)
            paths.append(path)
    return paths


def throughput(found: Found, workload: str) -> Figure:
    """Bars of examples per second, grouped by scenario, with the range of the seeds and the ideal."""
    rows = [row for row in found["rows"] if row["workload"] == workload]
    arms, scenarios = _labels(rows, "arm"), _labels(rows, "scenario")
    figure = Figure(figsize=(max(_NARROWEST, 1.2 + 0.28 * len(scenarios) * (len(arms) + 1)), 4.6), layout="constrained")
    axis = figure.subplots()
    width = 0.84 / len(arms)
    for row in rows:
        value, arm, group = row["throughput"], arms.index(row["arm"]), scenarios.index(row["scenario"])
        if value is None:
            continue
        x = group + (arm - (len(arms) - 1) / 2) * width
        ends = [[value["median"] - value["low"]], [value["high"] - value["median"]]]
        axis.bar(x, value["median"], 0.92 * width, color=_color(arm), yerr=ends, ecolor="black", capsize=2)
    for group, scenario in enumerate(scenarios):
        ideals = [run["ideal"] for run in _runs(found, workload, scenario) if run["ideal"] is not None]
        if ideals:
            axis.hlines(np.median(ideals), group - 0.46, group + 0.46, color="black", linestyle=":", linewidth=1.2)
    for index, arm in enumerate(arms):  # of the legend
        axis.bar(0, 0, color=_color(index), label=arm)
    axis.plot([], [], color="black", linestyle=":", label="nobody waits or communicates")
    unit = found["workloads"][workload]["unit"]
    axis.set_xticks(range(len(scenarios)), scenarios)
    _title(figure, found, "throughput, median and range of the seeds")
    axis.set_axisbelow(True)
    axis.set(ylabel=f"{unit} per second, all workers")
    axis.set_ylim(bottom=0)
    axis.set_xlim(-0.55, len(scenarios) - 0.45)
    axis.yaxis.set_major_formatter(TICK)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    _legend(figure, *axis.get_legend_handles_labels())
    return figure


def against_time(found: Found, workload: str) -> Figure:
    """The score over seconds of training, a panel for each scenario."""
    return _curves(found, workload, 0, "seconds of training")


def against_examples(found: Found, workload: str) -> Figure:
    """The score over what all workers have seen, a panel for each scenario."""
    unit = found["workloads"][workload]["unit"]
    return _curves(found, workload, 1, f"{unit} seen by all workers")


def _curves(found: Found, workload: str, axis: int, xlabel: str) -> Figure:
    """A panel for each scenario; ``axis`` is 0 for seconds and 1 for examples."""
    about = found["workloads"][workload]
    score = Score(**about["score"])
    rows = [row for row in found["rows"] if row["workload"] == workload]
    arms, scenarios = _labels(rows, "arm"), _labels(rows, "scenario")
    columns = min(_COLUMNS, len(scenarios))
    lines = -(-len(scenarios) // columns)
    figure = Figure(figsize=(max(_NARROWEST, 5.2 * columns), 3.6 * lines + 0.9), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False)
    scale = 100 if score.unit == "%" else 1
    for panel, scenario in itertools.zip_longest(panels.flat, scenarios):
        if scenario is None:
            panel.set_axis_off()
            continue
        late = []
        for index, arm in enumerate(arms):
            runs = [run for run in _runs(found, workload, scenario) if run["arm"] == arm]
            curves = [
                [(*point[:2], scale * point[2]) for point in run["curve"] if point[2] is not None] for run in runs
            ]
            curves = [curve for curve in curves if curve]
            late += [y for curve in curves for _, at, y in curve if at >= (1 - _SHOWN) * curve[-1][1]]
            _curve(panel, curves, index, axis)
        if about["target"] is not None:
            panel.axhline(scale * about["target"], color="grey", linewidth=1, linestyle=":")
        _frame(panel, late, score)
        panel.set(title=scenario, xlabel=xlabel, ylabel=_label(score))
        panel.set_xlim(left=0)
        panel.xaxis.set_major_formatter(TICK)
        panel.grid(alpha=0.3)
    for index, arm in enumerate(arms):
        panels.flat[0].plot([], [], color=_color(index), linestyle=_style(index), label=arm)
    _legend(figure, *panels.flat[0].get_legend_handles_labels())
    _title(figure, found, "median and range of the seeds; dotted: the target")
    return figure


def _legend(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Below the picture, in as many columns as fit beside each other."""
    fitting = int(_LETTERS * figure.get_figwidth() / (max(map(len, names)) + 8))
    columns = min(max(fitting, 1), len(names), 5)
    more = max(-(-len(names) // columns) - _LEGEND_LINES, 0)  # which the panels would lack
    figure.set_figheight(figure.get_figheight() + more * _LEGEND_LINE)
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize="small")


def _title(figure: Figure, found: Found, about: str) -> None:
    """Above the picture, in as many lines as it takes."""
    figure.suptitle(textwrap.fill(f"{found['title']}: {about}", round(_LETTERS * figure.get_figwidth())), fontsize=11)


def _curve(panel: Axes, curves: Sequence[Sequence[tuple[float, float, float]]], index: int, axis: int) -> None:
    """The median of the seeds and their range after as many examples; ``axis`` as in :func:`_curves`."""
    if not curves:
        return
    seen = np.linspace(max(curve[0][1] for curve in curves), min(curve[-1][1] for curve in curves), _POINTS)
    if len(curves) == 1:
        seen = np.array([examples for _, examples, _ in curves[0]])
    at = lambda curve, which: np.interp(seen, [point[1] for point in curve], [point[which] for point in curve])
    xs = np.median([at(curve, axis) for curve in curves], 0)
    ys = np.array([at(curve, 2) for curve in curves])
    panel.plot(xs, np.median(ys, 0), color=_color(index), linestyle=_style(index), linewidth=1.6)
    panel.plot(xs[-1], np.median(ys, 0)[-1], "o", color=_color(index), markersize=4)
    if len(curves) > 1:
        panel.fill_between(xs, ys.min(0), ys.max(0), color=_color(index), alpha=0.12, linewidth=0)


def _frame(panel: Axes, late: Sequence[float], score: Score) -> None:
    """Lets the axis show the later values."""
    finite = [value for value in late if np.isfinite(value)]
    if not finite:
        return
    low, high = min(finite), max(finite)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    bottom, top = low - margin, high + margin
    panel.set_ylim(bottom, min(top, 100.5) if score.unit == "%" else top)


def _runs(found: Found, workload: str, scenario: str) -> list[Found]:
    return [run for run in found["runs"] if (run["workload"], run["scenario"]) == (workload, scenario)]


def _labels(rows: Sequence[Found], what: str) -> list[str]:
    return list(dict.fromkeys(row[what] for row in rows))


def _label(score: Score) -> str:
    words = score.name.replace("_", " ")
    return f"{words} of the consensus model" + (f" ({score.unit})" if score.unit else "")


def _color(index: int) -> str:
    return _COLORS[index % len(_COLORS)]


def _style(index: int) -> str:
    return _STYLES[index // len(_COLORS) % len(_STYLES)] if index >= len(_COLORS) else "-"
