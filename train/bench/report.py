"""The table of a bench, and how to read it, in Markdown; made of what ``collecting`` returned."""

from collections.abc import Mapping, Sequence
from typing import Any

from train.markdown import table
from train.results import number
from train.task import Score

Found = Mapping[str, Any]

READING = """\
Each value is the median over the seeds (least to most). *UNIT/s* is the rate of all workers together, without
compilation and evaluations."""
MEANINGS = {
    "faster": "*Faster*: that rate over the rate of `BASELINE` with the same seed.",
    "of ideal": "*Of ideal*: over what the same workers do with the same delays if nobody ever waits or communicates. "
    "Their computation was measured in a run of its own.",
    "of its rule": "*Of its rule*: over what this algorithm would do if it waited as it does, and communication took "
    "no time. Workers wait at the meetings for evaluations, too.",
    "waited, s": "*Waited*: seconds that a worker spent in exchanges and meetings, on average.",
    "goodput": "*Goodput*: UNIT seen over those that the same workers could have seen meanwhile, at the pace at which "
    "they worked in this very run.",
    "difference": "*Difference*: of the final score from `BASELINE`, paired by seed, with the 95 % interval of "
    "Student's t distribution. It is *noise* if that contains 0, or if its mean is below half a point.",
    "target": "*Time to* and *UNIT to*: to the first evaluation of the consensus model that reaches TARGET, "
    "interpolated between evaluations, whose own time does not count.",
}
"""What the columns mean, by their heading."""


def markdown(found: Found) -> str:
    """The whole report."""
    parts = [f"# {found['title']}"]
    machine = found["machine"]
    if found["extra"]:
        parts.append(f"With other options than the plan's: `{' '.join(found['extra'])}`.")
    more = [f"{arm} also with {', '.join(map(str, seeds))}" for arm, seeds in found.get("more_seeds", {}).items()]
    parts.append(
        f"{_count(len(found['seeds']), 'seed')} ({'; '.join([', '.join(map(str, found['seeds'])), *more])}), "
        f"{machine['cpu_count']} CPU cores, JAX {machine['jax']}, {machine['date']}. "
        + " ".join(f"*{label}*: {about}." for label, about in found["scenarios"].items())
    )
    for label, workload in found["workloads"].items():
        score = Score(**workload["score"])
        target = number(workload["target"], score.name, score)
        parts.append(f"## {label}: {workload['name']}")
        header, lines = cells_of(found, label)
        parts.append(table(header, lines, labels=2))
        shown = [text for name, text in MEANINGS.items() if name in header or (name == "target" and target)]
        reading = "\n".join([READING, "", *(f"- {text}" for text in shown)])
        reading = reading.replace("UNIT", workload["unit"]).replace("BASELINE", found["baseline"])
        parts.append(reading.replace("TARGET", f"{score.name.replace('_', ' ')} {target}"))
        parts += [rates_line(found, label)] if rates_line(found, label) else []
    if found["stopped"]:
        parts.append("## Without a result")
        words = {True: "failed", False: "left out"}
        lines = [f"- {one['run']}: {words[one['failed']]}, {one['reason'].splitlines()[0]}" for one in found["stopped"]]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def cells_of(found: Found, workload: str) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of the table of one workload; columns that would be empty are left out."""
    about = found["workloads"][workload]
    score, unit = Score(**about["score"]), about["unit"]
    target = number(about["target"], score.name, score)
    name = score.name.replace("_", " ")
    header = ["scenario", "arm", f"{unit}/s", "faster", "of ideal", "of its rule", "waited, s", "goodput", name]
    header += ["difference", *([f"time to {target}, s", f"{unit} to {target}"] if target else [])]
    rows = [row for row in found["rows"] if row["workload"] == workload]
    planned = [len(found["seeds"]) + len(found.get("more_seeds", {}).get(row["arm"], ())) for row in rows]
    cells = [_cells(row, score, runs) for row, runs in zip(rows, planned, strict=True)]
    cells = [line[: len(header)] for line in cells]
    kept = [i for i in range(len(header)) if i < 2 or any(line[i] for line in cells)]
    return [header[i] for i in kept], [[line[i] for i in kept] for line in cells]


def _cells(row: Found, score: Score, planned: int) -> list[str]:
    share = lambda value: f"{value:.2f}"
    missing = "" if len(row["seeds"]) == planned else f" ({len(row['seeds'])} of {planned} runs)"
    remark = ", other number of examples" if row["unequal"] else ""
    shown = lambda value: number(value, score.name, score)
    return [
        row["scenario"],
        row["arm"] + missing + remark,
        _spread(row["throughput"], lambda value: f"{value:,.0f}"),
        _spread(row.get("faster"), share),
        _spread(row["of_ideal"], share),
        _spread(row["of_rule"], share),
        _spread(row["waited"], lambda value: f"{value:.1f}"),
        _spread(row["goodput"], share),
        _spread(row["score"], shown) or ("no number" if row["seeds"] else ""),
        _difference(row.get("difference"), score),
        _to_target(row, lambda value: f"{value:.1f}", "seconds_to_target"),
        _to_target(row, lambda value: f"{value:,.0f}", "examples_to_target"),
    ]


def _to_target(row: Found, form: Any, name: str) -> str:
    runs = len(row["seeds"])
    if not runs or row["reached"] == runs:
        return _spread(row[name], form)
    if not row["reached"]:
        return "never"
    return f"{_spread(row[name], form)}, {row['reached']} of {runs}"


def _spread(value: Found | None, form: Any) -> str:
    if value is None:
        return ""
    if value["n"] == 1:
        return form(value["median"])
    return f"{form(value['median'])} ({form(value['low'])} to {form(value['high'])})"


def _difference(value: Found | None, score: Score) -> str:
    if value is None:
        return ""
    scale, form = (100, "+.2f") if score.unit == "%" else (1, "+.3g")
    mean, low, high = (
        None if value[end] is None else format(scale * value[end], form) for end in ("mean", "low", "high")
    )
    if low is None:
        return str(mean)
    return f"{mean} ({low} to {high}){', noise' if value['noise'] else ''}"


def rates_line(found: Found, workload: str) -> str:
    """The learning rates in words; empty where there are none."""
    rates: dict[str, set[float]] = {}
    for row in found["rows"]:
        if row["workload"] == workload:
            rates.setdefault(row["arm"], set()).update(row["learning_rate"])
    shown = [f"{arm} {', '.join(f'{rate:g}' for rate in sorted(mine))}" for arm, mine in rates.items() if mine]
    return f"Learning rates: {'; '.join(shown)}." if shown else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def tuning_table(rates: Mapping[str, Mapping[str, Any]], tried: Sequence[float]) -> str:
    """What tuning found: the score with every rate, by workload and arm."""
    lines = []
    for workload, arms in rates.items():
        for label, entry in arms.items():
            scores = {float(rate): value for rate, value in entry["scores"].items()}
            cells = ["none" if scores.get(rate) is None else f"{scores[rate]:.4g}" for rate in tried]
            lines.append([workload, label, *cells, f"{entry['rate']:g}{' (at the edge)' if entry['edge'] else ''}"])
    return table(["workload", "arm", *(f"{rate:g}" for rate in tried), "best"], lines, labels=2)
