"""D-PSGD and SGP between real processes."""

import os

import numpy as np
import pytest

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)

import ranks
from processes import ROOT, run_ranks

from wagma_jax import ledger
from wagma_jax.exchange.replay import replay

KINDS = ["dpsgd", "sgp", "overlap"]


@pytest.mark.parametrize(
    ("kind", "num_ranks"),
    [("dpsgd", 2), ("dpsgd", 3), ("dpsgd", 4), ("sgp", 3), ("sgp", 4), ("overlap", 2), ("overlap", 4)],
)
def test_models_are_those_of_the_papers_and_of_xla(kind, num_ranks):
    ranks.run("exchange_gossip.trajectory", kind, 9, num_ranks=num_ranks)


@pytest.mark.parametrize(("kind", "num_ranks"), [("dpsgd", 4), ("sgp", 3), ("overlap", 4)])
def test_no_step_is_lost_by_delays_and_unequal_numbers_of_them(kind, num_ranks):
    ranks.run("exchange_gossip.unequal", kind, 0, num_ranks=num_ranks)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_from_a_meeting_bit_for_bit(kind):
    ranks.run("exchange_gossip.resumed", kind, num_ranks=3 if kind == "dpsgd" else 2)


@pytest.mark.parametrize("kind", ["dpsgd", "overlap"])
def test_one_worker_is_plain_optax(kind):
    ranks.run("exchange_gossip.alone", kind, num_ranks=1)


@pytest.mark.parametrize(("kind", "num_ranks"), [("dpsgd", 4), ("overlap", 3)])
def test_a_rank_that_fails_or_does_not_come_ends_the_run_everywhere(kind, num_ranks):
    ranks.run("exchange_gossip.fails", kind, num_ranks=num_ranks)


def test_what_cannot_be_right_is_refused():
    ranks.run("exchange_gossip.refused", num_ranks=2)


@pytest.mark.parametrize("kind", ["dpsgd", "overlap"])
def test_steps_that_are_not_finite_are_left_out(kind):
    ranks.run("exchange_gossip.skips", kind, num_ranks=2)


@pytest.mark.parametrize("kind", ["dpsgd", "overlap"])
def test_a_recorded_run_is_replayed_bit_for_bit(kind, tmp_path):
    calls, *_ = ranks.run("exchange_gossip.replayed", kind, str(tmp_path), num_ranks=3)
    assert calls == 10
    ledgers = ledger.read(tmp_path)
    text = ledger.text(ledger.summarize(ledgers))
    assert "3 ranks, gossip among" in text
    assert "12 rounds (0 syncs)" in text
    ledger.report(ledgers, tmp_path / "report")
    assert {entry.stepped for one in ledgers for entry in one.segments[0].mixed} == {True, False}
    lines = (tmp_path / "ledger-2.jsonl").read_text().splitlines()
    lost = next(i for i, line in enumerate(lines) if '"kind": "mixed"' in line)
    (tmp_path / "ledger-2.jsonl").write_text("\n".join(lines[:lost] + lines[lost + 1 :]) + "\n")
    with pytest.raises(ValueError, match="the ledgers lack round 0 of some ranks"):
        replay(tmp_path, {"w": np.zeros(3, np.float32)}, lambda rank, call, params: params)


@pytest.mark.parametrize("kind", ["dpsgd", "sgp"])
def test_nothing_is_left_behind(kind):
    ranks.run("exchange_gossip.leaks", kind, 3, num_ranks=2)


@pytest.mark.long
@pytest.mark.parametrize("num_ranks", [5, 8])
def test_more_ranks_and_more_seeds(num_ranks):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    program = ROOT / "tests" / "programs" / "exchange_gossip.py"
    status, output = run_ranks(num_ranks, program, timeout=280, environment={"PYTHONPATH": path})
    assert status == 0, output
