"""EagerExchange between real processes."""

import os

import pytest

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)

import ranks
from processes import ROOT, run_ranks


def test_with_nobody_late_it_is_optax_on_the_mean():
    ranks.run("exchange_eager.nobody_late", num_ranks=3)


@pytest.mark.parametrize(
    ("num_ranks", "start", "clock", "rounds", "size"),
    [(2, "solo", "step", 40, 40_000), (3, "majority", "step", 40, 8), (4, "solo", "round", 24, 8)],
)
def test_every_gradient_is_applied_once(num_ranks, start, clock, rounds, size):
    results = ranks.run("exchange_eager.once", start, clock, rounds, size, num_ranks=num_ranks)
    assert sum(late for _, late in results) > 0
    assert clock == "round" or all(calls == rounds for calls, _ in results)


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_late_gradients_by_hand(num_ranks):
    ranks.run("exchange_eager.forced", num_ranks=num_ranks)


@pytest.mark.parametrize(
    ("body", "num_ranks"),
    [
        ("majority", 2),
        ("lags", 2),
        ("misses", 2),
        ("unequal_steps", 3),
        ("resumes", 2),
        ("alone", 1),
        ("fails", 3),
        ("misuse", 2),
        ("in_a_step", 2),
    ],
)
def test_what_is_taken(body, num_ranks):
    ranks.run(f"exchange_eager.{body}", num_ranks=num_ranks)


@pytest.mark.long
def test_five_workers():
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    program = ROOT / "tests" / "programs" / "exchange_eager.py"
    status, output = run_ranks(5, program, timeout=250, environment={"PYTHONPATH": path})
    assert status == 0, output
    assert output.count("5 workers: ") == 3
