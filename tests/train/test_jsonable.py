"""What options and positions are kept as: JSON, from which the same values come back."""

import dataclasses
import enum
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.train.toy import WORKLOAD, Options
from train import run
from train.checkpoints import Position, look
from train.fields import declared, option
from train.jsonable import finite, from_json, to_json


class Kind(enum.Enum):
    ONE = "1"
    OTHER = "2"


@dataclasses.dataclass(frozen=True)
class Inner:
    size: tuple[int, int] = (3, 4)
    place: Path | None = None


@dataclasses.dataclass(frozen=True)
class Rich(Options):
    """Options of all types that a run can keep."""

    ratings: Path = Path("ratings.csv")
    others: tuple[Path, ...] = (Path("a"), Path("b"))
    kind: Kind = Kind.OTHER
    pairs: tuple[tuple[int, int], ...] = ((1, 2), (3, 4))
    mixed: tuple[int, str] = (1, "x")
    inner: Inner | None = Inner(place=Path("c"))
    nothing: Inner | None = None
    either: Path | float = 0.5
    names: frozenset[str] = frozenset({"b", "a"})
    by_name: Mapping[str, Inner] = dataclasses.field(default_factory=lambda: {"x": Inner()})
    several: Sequence[Inner] = (Inner(), Inner(place=Path("d")))


def test_options_of_all_types_come_back():
    options = Rich()
    options.check()
    assert Rich.from_json(json.loads(json.dumps(options.to_json()))) == options


@pytest.mark.parametrize(
    ("hint", "value"), [(object, complex(1, 2)), (list[int], [1, 2]), (dict[int, str], {1: "x"}), (tuple, (Path("a"),))]
)
def test_options_that_do_not_come_back_are_refused_before_a_run(hint, value):
    made = dataclasses.make_dataclass(
        "Made", [("odd", hint, dataclasses.field(default_factory=lambda: value))], bases=(Options,), frozen=True
    )
    if hint == list[int]:  # as JSON has it
        made().check()
        return
    with pytest.raises(ValueError, match=r"--odd .* is not the same once it was kept as JSON .*options are numbers"):
        made().check()


def test_options_of_the_command_line_come_back():
    """Which may be lists where they are tuples here."""
    workload = dataclasses.replace(WORKLOAD, options=Rich)
    options = run.parse(workload, ["--ratings", "x.csv", "--kind", "ONE", "--others", "a", "b", "c"])
    assert (options.ratings, options.kind) == (Path("x.csv"), Kind.ONE)
    assert options.others == (Path("a"), Path("b"), Path("c"))
    options.check()

    @dataclasses.dataclass(frozen=True)
    class Listed(Options):
        """Options that tyro makes lists of."""

        names: Sequence[str] = ("a",)
        limit: float = float("nan")

    listed = run.parse(dataclasses.replace(WORKLOAD, options=Listed), ["--names", "b", "c"])
    assert isinstance(listed.names, list)
    listed.check()
    listed.check_resumes(Listed.from_json(json.loads(json.dumps(listed.to_json()))))


def test_a_tuple_that_may_change_at_a_price_has_not_changed(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Sized(Options):
        """Options with sizes of layers."""

        hidden: tuple[int, ...] = option((32, 32), resume="restarts")

    position = Position(setup=Sized().setup())
    (tmp_path / "position.json").write_text(json.dumps(to_json({"position": position, "parts": {}})))
    saved = look(tmp_path).position.setup
    assert Sized().setup_changes(saved) == []
    assert Sized(hidden=(16,)).setup_changes(saved) == ["--hidden [32, 32] -> [16]"]


def test_a_member_that_is_gone_is_named():
    with pytest.raises(TypeError, match="Kind has no member 'THIRD'"):
        from_json("THIRD", Kind)


def test_numbers_of_numpy_and_what_is_not_finite():
    values = {"count": np.int64(3), "rows": np.arange(2), "mean": np.float32("nan"), "set": {2, 1}, "path": Path("x")}
    assert json.loads(json.dumps(to_json(values | {"mean": 1.0}))) == {
        "count": 3, "rows": [0, 1], "mean": 1.0, "set": [1, 2], "path": "x",
    }  # fmt: skip
    assert finite(values)["mean"] is None
    assert finite([float("inf"), {"a": (1.5, float("-inf"))}]) == [None, {"a": [1.5, None]}]


def test_another_default_changes_nothing_else_of_an_option():
    @dataclasses.dataclass(frozen=True)
    class Others(Options):
        """Options with other defaults."""

        steps: int | None = 1000
        workers: int = 4
        quorum: int = 2
        extra: int = 1

    said = declared(Others)
    assert [said[name]["resume"] for name in ("steps", "workers", "extra")] == ["free", "restarts", "fixed"]
    assert said["quorum"]["mpi_only"]
    saved = Others(extra=2)
    dataclasses.replace(saved, steps=2000, workers=2).check_resumes(saved)
    with pytest.raises(ValueError, match="--extra is 2 in the run"):
        dataclasses.replace(saved, extra=1).check_resumes(saved)
