"""Fills the tables of the pages that show results of benches, so that their numbers are those of the JSON files.

``python -m benchmarks.readme`` rewrites the pages. A table is asked for by a line

    <!-- bench: NAME; workload=LABEL; scenarios=LABEL, LABEL; columns=HEADING | HEADING -->

and follows it. All but the name of the plan may be left out: the first workload, all scenarios, all columns. With
``medians=HEADING`` in place of columns there is a row for each arm and a column for each scenario, with the medians of
that heading.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from train.bench.report import cells_of
from train.markdown import table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_TABLE = re.compile(r"^<!-- bench: (?P<what>.+) -->\n(?P<table>(?:\|.*\n)*)", re.MULTILINE)
_SPREAD = re.compile(r" \([^)]* to [^)]*\)")
_LABELS = 2  # columns in front that every table has


def filled(text: str, results: Path = RESULTS) -> str:
    """A page with the tables that it asks for.

    Raises:
        ValueError: There is no such workload, scenario or column.
        OSError: There are no results of that name.
    """
    return _TABLE.sub(lambda found: f"<!-- bench: {found['what']} -->\n{made(found['what'], results)}\n", text)


def made(what: str, results: Path = RESULTS) -> str:
    """The table that a line asks for."""
    name, *settings = (part.strip() for part in what.split(";"))
    pairs = [setting.partition("=") for setting in settings]
    wanted: dict[str, str] = {key: value for key, _, value in pairs}
    if unknown := wanted.keys() - {"workload", "scenarios", "columns", "medians"}:
        raise ValueError(f"a table has a workload, scenarios, and columns or medians, got {', '.join(unknown)}")
    found = json.loads((results / f"{name}.json").read_text())
    workload = wanted.get("workload") or str(next(iter(found["workloads"])))
    header, rows = cells_of(found, workload)
    scenarios = _chosen(wanted.get("scenarios"), ",", list(dict.fromkeys(row[0] for row in rows)))
    if "medians" in wanted:
        (heading,) = _chosen(wanted["medians"], "|", header[_LABELS:])
        arms = [row["arm"] for row in found["rows"] if row["workload"] == workload]  # without remarks
        return _medians(
            [[row[0], arm, *row[_LABELS:]] for row, arm in zip(rows, arms, strict=True)],
            header.index(heading),
            scenarios,
        )
    columns = _chosen(wanted.get("columns"), "|", header[_LABELS:])
    kept = [*range(_LABELS), *(header.index(column) for column in columns)]
    lines = [[row[i] for i in kept] for row in rows if row[0] in scenarios]
    return table([header[i] for i in kept], lines, labels=_LABELS)


def _medians(rows: list[list[str]], column: int, scenarios: list[str]) -> str:
    """A table of one column's medians, by arm and scenario."""
    cells = {(row[1], row[0]): _SPREAD.sub("", row[column]) for row in rows}
    arms = dict.fromkeys(arm for arm, _ in cells)
    lines = [[arm, *(cells.get((arm, scenario), "") for scenario in scenarios)] for arm in arms]
    return table(["arm", *scenarios], lines, labels=1)


def _chosen(words: str | None, separator: str, possible: list[str]) -> list[str]:
    if words is None:
        return possible
    chosen = [word.strip() for word in words.split(separator)]
    for word in chosen:
        if word not in possible:
            raise ValueError(f"there is no {word!r}: there are {', '.join(map(repr, possible))}")
    return chosen


def asked_for(pages: tuple[Path, ...] = PAGES) -> Iterator[tuple[Path, str]]:
    """The pages that show tables, and how they would look if filled now."""
    for path in pages:
        text = path.read_text()
        if _TABLE.search(text):
            yield path, filled(text)


if __name__ == "__main__":
    for changed, fresh in asked_for():
        changed.write_text(fresh)
        print(f"filled: {changed.relative_to(ROOT)}")
