"""Step times of real jobs: the two that come with the project, and the reader of files like them.

A file has comma-separated numbers: a row per step, and a column per replica of the model, in any unit of time. The
first row may name the columns, also behind a ``#``. A first column that counts the steps is left out if it is named
``step``, ``iteration``, ``index``, or not at all as pandas does. Empty lines, and those that begin with ``#``, are
left out, too.
"""

import csv
import functools
import math
from pathlib import Path

import numpy as np

_COUNTING = ("", "step", "steps", "iteration", "index", "unnamed: 0")
FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.csv")))
"""The traces that come with the project; their origin is in the folder's README."""


def find(name: str) -> Path:
    """The file of that path or, if there is none, the trace of that name that comes with the project.

    Raises:
        ValueError: There is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    if name in NAMES:
        return FOLDER / f"{name}.csv"
    raise ValueError(
        f"there is no file {name}: give a CSV file of steps x replicas, or one of those that come with the project, "
        f"{' and '.join(NAMES)}"
    )


def read(name: str) -> np.ndarray:
    """The times in a file; float64 [steps, replicas], in its own unit.

    Args:
        name: As :func:`find` takes it.

    Raises:
        ValueError: There is no such file, it cannot be read, has no numbers, rows of unequal length, or numbers that
            are no times.
    """
    path = find(name).absolute()
    return _read(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _read(path: Path, changed: int) -> np.ndarray:
    del changed  # a file that has changed is read again
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [(number, [cell.strip() for cell in row]) for number, row in enumerate(csv.reader(file), 1)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a CSV file ({error}): give one of steps x replicas") from None
    lines = [(number, row) for number, row in lines if any(row)]
    comments = [row for _, row in lines if row[0].startswith("#")]
    lines = [(number, row) for number, row in lines if not row[0].startswith("#")]
    names: list[str] = []
    if lines and all(_number(cell) is None for cell in lines[0][1]):
        names = lines.pop(0)[1]
    elif lines and comments and len(comments[-1]) == len(lines[0][1]):  # as NumPy writes names
        names = [comments[-1][0].lstrip("# "), *comments[-1][1:]]
    rows = [_row(path, number, row, names or lines[0][1]) for number, row in lines]
    times = np.array(rows, float)
    if names and times.size and names[0].lower() in _COUNTING and (names[0] or (np.diff(times[:, 0]) > 0).all()):
        times = np.delete(times, 0, axis=1)
    if not times.size:
        raise ValueError(
            f"{path} has no times: give a CSV file with a row for every step and a column for every replica"
        )
    times.setflags(write=False)
    return times


def _row(path: Path, number: int, row: list[str], first: list[str]) -> list[float]:
    if len(row) != len(first):
        raise ValueError(
            f"{path}, line {number} has {len(row)} columns, and the first has {len(first)}: give every step a time of "
            "every replica"
        )
    found = []
    for cell in row:
        value = _number(cell)
        if value is None or not 0 <= value < math.inf:
            raise ValueError(
                f"{path}, line {number}: {cell!r} is no time of a step: give numbers that are not negative"
            )
        found.append(value)
    return found


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
