"""What a run says of itself at its end: ``summary.json``, and a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from train import results
from train.loop import Outcome
from train.options import RunOptions
from train.task import Task

SUMMARY = "summary.json"
"""A run that has it is complete."""


def finish(
    options: RunOptions, task: Task, out: Path, outcome: Outcome, rows: list[dict[str, Any]], devices: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes the summary of a run and, if asked to, its picture; on the first process.

    Args:
        options: Those of the run.
        task: What was trained.
        out: The folder of the results.
        outcome: What the loop has left.
        rows: Of the metrics file.
        devices: What the transport says of them.

    Returns:
        The summary, with the folder beside what is written.
    """
    position, schedule = outcome.position, options.averaging_schedule()
    notes = {name: frozenset(numbers) for name, numbers in position.notes.items()}
    extra = task.finish(out, notes, outcome.parts)
    evaluated = [row["eval"] for row in rows if "eval" in row and row["step"] == position.step]
    # workers of one program wait inside its collectives, where their waits cannot be told apart
    waited = list(position.wait_seconds) or [None] * options.workers
    worked = list(position.work_seconds) or [None] * options.workers
    seconds = position.seconds or float("nan")
    summary = {
        "algorithm": options.algorithm,
        "transport": options.transport,
        "workers": options.workers,
        "group_size": schedule.group_size,
        "group_sizes": schedule.group_sizes,
        "sync_period": schedule.sync_period,
        "clock": options.clock,
        "quorum": options.quorum,
        "straggler": options.straggler,
        "straggler_kind": options.straggler_kind,
        "seed": options.seed,
        "steps": position.step,
        "unit": task.unit,
        "examples": position.examples,
        "examples_per_second": position.examples / seconds,
        "wall_seconds": position.seconds,
        "data_wait_fraction": position.data_wait_seconds / seconds,
        "wait_seconds": waited,
        "work_seconds": worked,
        "local_steps": position.local_steps,
        "late_fraction": position.late / max(position.contributions, 1),
        "max_staleness": position.max_staleness,
        "eval": evaluated[-1],
        "consensus_distance": position.distance,
        **devices,
        "jax_version": jax.__version__,
        "options": options.to_json(),
    }
    summary |= {name: value for name, value in extra.items() if name not in summary}
    if options.picture:
        from train import pictures  # matplotlib takes long to import, and other processes do not need it

        title = f"{task.name}, {options.workers} workers, seed {options.seed}"
        pictures.plot_runs(out / "training.png", {options.algorithm: rows}, title, task.score, task.unit)
    results.write_summary(out / SUMMARY, summary)  # last, since it says that all else is there
    return summary | {"out": str(out)}
