"""The pool of ranks: results come back, failures are told with every rank's traceback, and it starts anew."""

from pathlib import Path

import pytest

pytest.importorskip("mpi4py", reason="the extra mpi is not installed", exc_type=ImportError)

import ranks


@pytest.fixture(autouse=True)
def two_ranks(monkeypatch, tmp_path):
    """Two ranks of our own, not those that other tests share."""
    monkeypatch.setenv(ranks.FOLDER, str(tmp_path))
    monkeypatch.setattr(ranks, "SIZE", 2)
    monkeypatch.setattr(ranks, "GRACE_SECONDS", 0.5)
    ranks.begin(tmp_path)
    yield
    ranks.kill(tmp_path)


def test_results_come_back_and_the_processes_stay():
    assert [place for place, _ in ranks.run("rank_bodies.whereabouts", num_ranks=1)] == [(0, 1)]
    first, again = (ranks.run("rank_bodies.whereabouts", num_ranks=2) for _ in range(2))
    assert [place for place, _ in first] == [(0, 2), (1, 2)]
    assert first == again


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raises", ["[1] Traceback", "LookupError: on purpose", "[0] TimeoutError: no report"]),
        ("dies", ["[1] EOFError: no report"]),
        ("waits", ["[0] TimeoutError: no report", "[1] TimeoutError: no report", "Timeout (0:00:01", "in fails"]),
    ],
)
def test_a_failure_is_told_and_ends_all_processes(tmp_path, how, words):
    before = ranks.run("rank_bodies.whereabouts", num_ranks=2)
    with pytest.raises(ranks.RanksFailed) as caught:
        ranks.run("rank_bodies.fails", how, num_ranks=2, timeout=3.0)
    assert not [word for word in words if word not in str(caught.value)], caught.value
    for _, pid in before:
        ranks.wait_for_end(pid)
        assert not Path(f"/proc/{pid}").exists()
    if how == "dies":
        after = ranks.run("rank_bodies.whereabouts", num_ranks=2)
        assert not {pid for _, pid in after} & {pid for _, pid in before}
