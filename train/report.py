"""What a run leaves behind: metrics.jsonl, summary.json, a table and pictures."""

import importlib.util
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from train import distributed
from train.files import write_whole

# without a terminal nobody's window says how wide tables may be
console = Console(width=None if sys.stdout.isatty() else 110)


def say(text: str) -> None:
    """Prints a line for people, on the first process alone."""
    if distributed.is_first():
        console.print(text, highlight=False, markup=False)


def warn(text: str) -> None:
    """As :func:`say`, for what should not be missed; on every process, since it may concern that one alone."""
    console.print(text, style="yellow", highlight=False, markup=False)


def progress_bar() -> Progress:
    """A bar with a field ``status`` for loss and rate; only the first process shows it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=console,
        disable=not distributed.is_first(),
    )


class MetricsFile:
    """Appends one JSON object a line, flushed, so that an interrupted run keeps what it logged; a context manager.

    Args:
        path: The file. Rows that are there up to ``step`` stay; those after it belong to steps that are done again.
        step: Where the run begins.
        write: False keeps the rows in memory alone.

    Attributes:
        rows: All rows, those from before ``step`` included.
        sinks: Called with each new row.
    """

    def __init__(self, path: Path, step: int = 0, write: bool = True):
        self.rows: list[dict[str, Any]] = []
        self.sinks: list[Callable[[dict[str, Any]], None]] = []
        if path.exists():
            self.rows = [row for row in map(_parsed, path.read_text().splitlines()) if row and row["step"] <= step]
        self._file = None
        if write:
            write_whole(path, "".join(json.dumps(row) + "\n" for row in self.rows))
            self._file = path.open("a")

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, **row: Any) -> None:
        """Writes a row; numbers that are not finite become null, since JSON has no such numbers."""
        self.rows.append(row)
        if self._file is not None:
            self._file.write(json.dumps(_plain(row)) + "\n")
            self._file.flush()
        for sink in self.sinks:
            sink(row)


def check_tensorboard() -> None:
    """Raises ValueError, which names the extra, if TensorBoard's files cannot be written."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ValueError(
            "--tensorboard needs tensorboardX, which the extra 'tensorboard' brings: run make setup in the project, or "
            "pip install 'wagma_jax[tensorboard]'"
        )


class TensorBoard:
    """A sink of metrics that writes event files for TensorBoard; a context manager.

    Args:
        folder: Where they go.
        step: Where the run begins; TensorBoard hides what earlier files have after it.
    """

    def __init__(self, folder: Path, step: int = 0):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.close()

    def __call__(self, row: dict[str, Any]) -> None:
        """Writes the numbers of a row under its step: train/NAME, or eval/NAME for the consensus model's."""
        values = {f"eval/{name}": value for name, value in row.get("eval", {}).items()}
        values |= {f"train/{name}": value for name, value in row.items() if name not in ("step", "eval")}
        for name, value in values.items():
            self._writer.add_scalar(name, value, row["step"])


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Writes summary.json."""
    write_whole(path, json.dumps(_plain(summary), indent=2) + "\n")


def results(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary of a run that has ended, and the rows of its metrics file."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return json.loads((out / "summary.json").read_text()), rows


def summary_table(summaries: Sequence[dict[str, Any]], title: str) -> Table:
    """One row per run."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    metrics = list(dict.fromkeys(name for summary in summaries for name in summary["eval"]))
    waits = any(waited_seconds(summary) is not None for summary in summaries)
    columns = ["algorithm", "P", "S", "sync", "steps", "examples/s", "seconds"]
    columns += [*(["waited"] if waits else []), "late", *metrics]
    for column in columns:
        table.add_column(column, justify="left" if column == "algorithm" else "right", no_wrap=True)
    for summary in summaries:
        table.add_row(
            summary["algorithm"],
            str(summary["workers"]),
            str(summary["group_size"]),
            str(summary["sync_period"]),
            f"{summary['steps']:,}",
            f"{summary['examples_per_second']:,.0f}",
            f"{summary['wall_seconds']:.1f}",
            *([_seconds(waited_seconds(summary))] if waits else []),
            f"{summary['late_fraction']:.1%}",
            *(_metric(name, summary["eval"].get(name)) for name in metrics),
        )
    return table


def waited_seconds(summary: dict[str, Any]) -> float | None:
    """What a worker of a run has waited for others, on average; None where nothing tells."""
    waits = summary["wait_seconds"]
    return None if None in waits else float(np.mean(waits))


def evaluation_table(metrics: dict[str, float]) -> Table:
    """One row per metric."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    for name, value in metrics.items():
        table.add_row(name, _metric(name, value))
    return table


def plot_runs(path: Path, runs: dict[str, list[dict[str, Any]]], title: str) -> None:
    """Loss, test accuracy, consensus distance and rate of one or several runs, over the examples seen by all workers.

    Args:
        path: The PNG to write.
        runs: From a label to the rows of its metrics file.
        title: Above the picture.
    """
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    axes = figure.subplots(2, 2)
    loss, accuracy, distance, rate = axes.flat
    for (label, rows), style in zip(runs.items(), ("-", "--", "-.", ":") * len(runs), strict=False):
        logs = [row for row in rows if "loss" in row]
        evals = [row for row in rows if "eval" in row]
        line = {"linestyle": style, "marker": "." if len(logs) < 3 else "", "label": label, "linewidth": 1.6}
        loss.plot(*_curve(logs, "loss"), **line)
        reached = [100 * row["eval"]["accuracy"] for row in evals]
        accuracy.plot(
            [row["examples"] for row in evals], reached, style, marker="o", label=f"{reached[-1]:.1f} % in the end"
        )
        distance.plot(*_curve(logs, "consensus_distance"), **line)
        rate.plot(*_curve(logs, "examples_per_second"), **line)
    losses = [row["loss"] for rows in runs.values() for row in rows if row.get("loss") is not None]
    scale = "log" if losses and min(losses) > 0 and max(losses) > 10 * min(losses) else "linear"
    loss.set(ylabel="training loss (cross-entropy, nats)", yscale=scale, title="training loss, mean of the workers")
    accuracy.set(ylabel="test accuracy (%)", title="test accuracy of the consensus model")
    shown = [100 * row["eval"]["accuracy"] for rows in runs.values() for row in rows if "eval" in row]
    low = min(shown)
    accuracy.set_ylim(max(0, math.floor(low / 5) * 5 - 1), 102)
    accuracy.legend(loc="lower right" if low + 20 < max(shown) else "best")
    distance.set(ylabel="distance to the consensus (RMS)", title="parameters just before a round")
    distance.set_ylim(bottom=0)
    rate.set(ylabel="examples per second", title="training rate of all workers together")
    rate.set_ylim(bottom=0)
    rate.yaxis.set_major_formatter("{x:,.0f}")
    for axis in axes.flat:
        axis.set_xlabel("examples seen by all workers")
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
    loss.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=130)


def plot_comparison(path: Path, runs: Sequence[tuple[dict[str, Any], list[dict[str, Any]]]], title: str) -> None:
    """What several algorithms made of the same time: accuracy over seconds, throughput, and seconds waited.

    Args:
        path: The PNG to write.
        runs: Summary and metrics rows of each; the first is the one that the others are compared with.
        title: Above the picture.
    """
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    curves, rates, waits = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    colors = ["#d62728", "#555555", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e"]
    names = [summary["algorithm"] for summary, _ in runs]
    for (summary, rows), color in zip(runs, colors * len(runs), strict=False):
        evals = [row for row in rows if "eval" in row]
        points = [0.0, *(row["seconds"] for row in evals)], [math.nan, *(100 * r["eval"]["accuracy"] for r in evals)]
        last = f"{100 * evals[-1]['eval']['accuracy']:.1f} % after {summary['wall_seconds']:.0f} s"
        curves.plot(*points, color=color, marker="o", markersize=4, label=f"{summary['algorithm']}: {last}")
    curves.set(xlabel="seconds of training", ylabel="test accuracy (%)", title="accuracy of the consensus model")
    curves.set_xlim(left=0)
    curves.grid(alpha=0.3)
    curves.legend(loc="lower right")
    for axis, title_, unit, values in (
        (rates, "throughput", "examples per second", [summary["examples_per_second"] for summary, _ in runs]),
        (waits, "waiting for others", "seconds per worker", [waited_seconds(summary) or 0.0 for summary, _ in runs]),
    ):
        bars = axis.bar(names, values, color=colors[: len(runs)])
        axis.bar_label(bars, [f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in values])
        axis.set(title=title_, ylabel=unit)
        axis.margins(y=0.12)
        axis.spines[["top", "right"]].set_visible(False)
        axis.yaxis.set_major_formatter("{x:,g}")
    figure.suptitle(title)
    figure.savefig(path, dpi=130)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:  # the last line of a run that was killed while it wrote
        return None


def _curve(rows: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    return [row["examples"] for row in rows], [math.nan if row[key] is None else row[key] for row in rows]


def _metric(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2%}" if name.endswith("accuracy") else f"{value:.4f}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic) or hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
