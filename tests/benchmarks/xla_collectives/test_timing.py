"""All candidates are measured; what comes out is not looked at."""

import pytest
from rich.progress import Progress

from benchmarks.xla_collectives import candidates
from benchmarks.xla_collectives.comparison import compare
from benchmarks.xla_collectives.config import Config
from benchmarks.xla_collectives.timing import measure


@pytest.mark.usefixtures("small_model")
def test_measuring_takes_every_candidate(monkeypatch):
    monkeypatch.setattr(candidates, "LOWERINGS_OF", {"check_vma=False": ("auto",), "vmap": ("auto", "matrix")})
    with Progress(disable=True) as progress:
        measured, left_out = measure(0.004, Config(group_sizes=(2,), repeats=1), progress)
    assert left_out == []
    assert [one.candidate.name for one in measured] == ["pmean", "consensus", "auto"] * 2 + ["matrix"]
    assert all(len(one.seconds) == 1 for one in measured)
    (comparison,) = compare(measured)
    assert comparison.equals == ("matrix",)
