"""The table of peers: what is told of those that run, and of those that do not."""

import json
import sys

import pytest
from processes import ROOT

from benchmarks.peers import __main__ as peers
from benchmarks.peers.__main__ import Config


def test_the_slowest_process_counts_and_the_late_one_does_not_wait():
    measured = [
        {"times": [0.010, 0.020, 0.030], "late": [3.02, 1.02]},
        {"times": [0.040, 0.010, 0.010], "late": [2.02, 2.02]},
        {"times": [0.010, 0.010, 0.010], "late": [99.0, 99.0]},  # the late one's own call
    ]
    found = peers.summarize(measured)
    assert found["ms"] == pytest.approx(30.0)  # of 40, 20 and 30
    assert (found["ms_q1"], found["ms_q3"]) == pytest.approx((20.0, 40.0))
    assert found["waited_seconds"] == pytest.approx(2.02 - 3 * 0.03)
    assert found["waited_longest"] == pytest.approx(3.02 - 3 * 0.03)
    (row,) = peers.rows_of({"x": {"4": found, "version": "y 1.0", "reason": "does not run: no"}}, [4, 25])
    assert row == ["x", "y 1.0", "30.0 (20.0 - 40.0)", "1.93 (at most 2.93)", "", "", "does not run: no"]


def test_the_page_has_the_numbers_of_the_file():
    results = ROOT / "benchmarks/results"
    kept = json.loads((results / "peers.json").read_text())
    page = (ROOT / "benchmarks/README.md").read_text()
    assert (results / "peers.md").read_text() in page
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    assert len(kept["peers"]) == len(peers.PEERS)
    for row in peers.rows_of(kept["peers"], Config.megabytes):
        assert row in lines


def test_what_went_wrong_first_is_told():
    """Processes that are left fail as well, since they miss the first."""
    marks = ("Error:", "Exception:")
    text = "starting\n[rank3]: x.AllreduceException: no group \n[rank0]: RuntimeError: Connection closed by peer\n"
    assert peers._first(text, marks) == "[rank3]: x.AllreduceException: no group"
    assert peers._first("starting\nKilled\n", marks) == "starting / Killed"


def test_a_peer_that_does_not_run_is_listed_with_the_reason(tmp_path, capsys):
    """In an environment that has no torch: a shell that calls this Python without its packages."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    (tmp_path / "torch is installed").touch()
    peers.main(Config(("gloo allreduce",), (4,), environment=tmp_path, processes=2, results=tmp_path / "results"))
    text = (tmp_path / "results" / "peers.md").read_text()
    assert "does not run: ModuleNotFoundError: No module named 'torch'" in text
    assert text.strip() in capsys.readouterr().out
    kept = json.loads((tmp_path / "results" / "peers.json").read_text())
    assert list(kept["peers"]) == ["gloo allreduce"]
    (tmp_path / "torch is installed").unlink()
    with pytest.raises(peers.FailedError, match=r"does not install: .*No module named pip"):
        peers.measure("gloo allreduce", 4, Config(environment=tmp_path))
