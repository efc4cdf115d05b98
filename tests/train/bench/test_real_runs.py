"""A bench of real processes over MPI, from the plan to the table; the only one, since starting processes takes long."""

import json
import math

import pytest
from processes import ROOT

from train.bench import __main__ as command
from train.bench.__main__ import Config

PLAN = """
[options]
workers = 2
batch_size = 4
steps = 30
sync_period = 10
eval_every = 10
[workloads.toy]
module = "tests.train.toy"
[arms.wagma]
[scenarios.trace]
straggler = "trace:slow-worker:0.02"
"""


def test_from_the_plan_to_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "real.toml").write_text(PLAN)
    assert command.bench(Config(tmp_path / "real.toml", out=tmp_path / "runs", picture=False), []) == 0
    found = json.loads((tmp_path / "runs" / "real.json").read_text())
    (row,), (run,) = found["rows"], found["runs"]
    assert run["examples"] == 30 * 2 * 4
    assert len(run["curve"]) == 3
    # what the bounds are is tested without runs: this one may have been held up anywhere
    assert row["of_ideal"]["median"] == pytest.approx(row["throughput"]["median"] / run["ideal"])
    assert 0 < row["of_ideal"]["median"] <= row["of_rule"]["median"] < math.inf
    assert 0 < row["goodput"]["median"] <= 1
    assert row["reached"] == 1
    assert "| trace    | wagma |" in (tmp_path / "runs" / "real.md").read_text()
    took = json.loads(next((tmp_path / "runs").rglob("wagma*/bench.json")).read_text())
    assert took["seconds"] > run["seconds"]
