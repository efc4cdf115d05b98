"""What a run leaves behind: metrics.jsonl, summary.json, a table and pictures."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

console = Console()


def progress_bar() -> Progress:
    """A bar with a field ``status`` for loss and rate."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=console,
    )


class MetricsFile:
    """Appends one JSON object a line, flushed, so that an interrupted run keeps what it logged."""

    def __init__(self, path: Path):
        self._file = path.open("x")
        self.rows: list[dict[str, Any]] = []

    def write(self, **row: Any) -> None:
        """Writes a row; numbers that are not finite become null, since JSON has no such numbers."""
        self.rows.append(row)
        self._file.write(json.dumps(_plain(row)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file; ``rows`` stay."""
        self._file.close()


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Writes summary.json."""
    path.write_text(json.dumps(_plain(summary), indent=2) + "\n")


def summary_table(summaries: Sequence[dict[str, Any]], title: str) -> Table:
    """One row per run."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    metrics = list(dict.fromkeys(name for summary in summaries for name in summary["eval"]))
    columns = ["algorithm", "P", "S", "sync", "steps", "examples/s", "seconds", "late", *metrics]
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
            f"{summary['late_fraction']:.1%}",
            *(_metric(name, summary["eval"].get(name)) for name in metrics),
        )
    return table


def plot_runs(path: Path, runs: dict[str, list[dict[str, Any]]], title: str) -> None:
    """Loss, test accuracy and consensus distance of one or several runs, over the examples seen by all workers.

    Args:
        path: The PNG to write.
        runs: From a label to the rows of its metrics file.
        title: Above the picture.
    """
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for (label, rows), style in zip(runs.items(), ("-", "--", "-.", ":") * len(runs), strict=False):
        logs = [row for row in rows if "loss" in row]
        evals = [row for row in rows if "eval" in row]
        axes[0].plot(*_curve(logs, "loss"), style, label=label, linewidth=1.6)
        accuracy = [100 * row["eval"]["accuracy"] for row in evals]
        axes[1].plot(
            [row["examples"] for row in evals], accuracy, style, marker="o", label=f"{accuracy[-1]:.1f} % in the end"
        )
        axes[2].plot(*_curve(logs, "consensus_distance"), style, label=label, linewidth=1.6)
    losses = [row["loss"] for rows in runs.values() for row in rows if "loss" in row]
    scale = "log" if min(losses) > 0 and max(losses) > 10 * min(losses) else "linear"
    axes[0].set(ylabel="training loss (cross-entropy, nats)", yscale=scale, title="training loss, mean of the workers")
    axes[1].set(ylabel="test accuracy (%)", title="test accuracy of the consensus model")
    shown = [100 * row["eval"]["accuracy"] for rows in runs.values() for row in rows if "eval" in row]
    low = min(shown)
    axes[1].set_ylim(max(0, math.floor(low / 5) * 5 - 1), 102)
    axes[1].legend(loc="lower right" if low + 20 < max(shown) else "best")
    axes[2].set(ylabel="distance to the consensus (RMS)", title="parameters just before a round")
    axes[2].set_ylim(bottom=0)
    for axis in axes:
        axis.set_xlabel("examples seen by all workers")
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _curve(rows: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    return [row["examples"] for row in rows], [row[key] for row in rows]


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
