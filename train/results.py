"""What a run leaves for programs and tables: metrics.jsonl, summary.json, and what is read from them."""

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from train.files import write_whole
from train.jsonable import finite
from train.task import Score


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
            self._file.write(json.dumps(finite(row)) + "\n")
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

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if folder.exists() else None)

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.close()

    def __call__(self, row: dict[str, Any]) -> None:
        """Writes the numbers of a row under its step: train/NAME, or eval/NAME for the consensus model's.

        What is None was not measured, and is left out.
        """
        values = {f"eval/{name}": value for name, value in row.get("eval", {}).items()}
        values |= {f"train/{name}": value for name, value in row.items() if name not in ("step", "eval")}
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, row["step"])


def checked_scores(scores: Mapping[str, Any], score: Score) -> dict[str, float]:
    """The scores of a task as numbers of Python.

    Raises:
        ValueError: One is no number, or the one that tables show first is missing.
    """
    numbers: dict[str, float] = {}
    for name, value in scores.items():
        if np.ndim(value) or not isinstance(np.asarray(value).item(), (int, float)):
            raise ValueError(f"scores are numbers, got {name} = {value!r}: give each number a name of its own")
        numbers[name] = np.asarray(value).item()
    if score.name not in numbers:
        raise ValueError(
            f"the task's score is {score.name!r}, but scores() returned {', '.join(numbers) or 'none'}: return it, or "
            "name another"
        )
    return numbers


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Writes summary.json."""
    write_whole(path, json.dumps(finite(summary), indent=2) + "\n")


def results(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary of a run that has ended, and the rows of its metrics file."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return json.loads((out / "summary.json").read_text()), rows


def waited_seconds(summary: Mapping[str, Any]) -> float | None:
    """What a worker of a run has waited for others, on average; None where nothing tells."""
    waits = summary["wait_seconds"]
    return None if not waits or None in waits else float(np.mean(waits))


def summary_table(summaries: Sequence[Mapping[str, Any]], title: str, score: Score | None = None) -> Table:
    """One row per run.

    Args:
        summaries: What :func:`write_summary` wrote.
        title: Above the table.
        score: The task's, whose column comes first among those of the evaluation; see :func:`number`.
    """
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    names = list(dict.fromkeys(name for summary in summaries for name in summary["eval"]))
    if score is not None and score.name in names:
        names = [score.name, *(name for name in names if name != score.name)]
    units = list(dict.fromkeys(summary["unit"] for summary in summaries))
    waits = any(waited_seconds(summary) is not None for summary in summaries)
    columns = ["algorithm", "P", "S", "sync", "steps", *(f"{unit}/s" for unit in units), "seconds"]
    columns += [*(["waited"] if waits else []), "late", *(_heading(name, score) for name in names)]
    for column in columns:
        table.add_column(column, justify="left" if column == "algorithm" else "right", no_wrap=True)
    for summary in summaries:
        rate = summary["examples_per_second"]
        table.add_row(
            summary["algorithm"],
            str(summary["workers"]),
            _shown(summary["group_size"], "d"),
            _shown(summary["sync_period"], "d", missing="none"),
            f"{summary['steps']:,}",
            *(_shown(rate if unit == summary["unit"] else None, ",.0f") for unit in units),
            _shown(summary["wall_seconds"], ".1f"),
            *([_shown(waited_seconds(summary), ".1f")] if waits else []),
            _shown(summary["late_fraction"], ".1%"),
            *(number(summary["eval"].get(name), name, score) for name in names),
        )
    return table


def evaluation_table(values: Mapping[str, float | None], score: Score | None = None) -> Table:
    """One row per score, as :func:`number` shows it."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    for name, value in values.items():
        table.add_row(_heading(name, score), number(value, name, score))
    return table


def number(value: float | None, name: str, score: Score | None = None, digits: int = 2) -> str:
    """A value of an evaluation, for people.

    Args:
        value: None is shown as nothing.
        name: Its name.
        score: The task's. If its unit is "%", its values are shares of 1 and shown as percent, as are those of its
            relatives (top5_NAME beside NAME). All other values get four significant digits, or all digits
            before the decimal point.
        digits: Decimal places of a percentage.
    """
    if value is None:
        return ""
    if _is_share(name, score):
        return f"{value:.{digits}%}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.4g}".rstrip(".")


def _is_share(name: str, score: Score | None) -> bool:
    return score is not None and score.unit == "%" and (name == score.name or name.endswith(f"_{score.name}"))


def _heading(name: str, score: Score | None) -> str:
    named = score is not None and name == score.name and score.unit not in ("", "%")
    return f"{name} ({score.unit})" if score is not None and named else name


def _shown(value: float | None, form: str, missing: str = "") -> str:
    return missing if value is None else format(value, form)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:  # the last line of a run that was killed while it wrote
        return None
