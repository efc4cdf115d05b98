"""GroupExchange between real processes, against references."""

import os

import pytest

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)

import ranks
from processes import ROOT, run_ranks


@pytest.mark.parametrize(("num_ranks", "rounds"), [(2, 15), (3, 22), (4, 15)])
def test_with_nobody_late_it_is_the_xla_averager(num_ranks, rounds):
    ranks.run("exchange_rounds.nobody_late", rounds, num_ranks == 2, num_ranks=num_ranks)


@pytest.mark.parametrize(("num_ranks", "dtype"), [(2, "bfloat16"), (3, "float32"), (4, "float32")])
def test_forced_lateness_gives_what_the_rule_says(num_ranks, dtype):
    ranks.run("exchange_rounds.forced_lateness", dtype, num_ranks=num_ranks)


@pytest.mark.parametrize(
    ("num_ranks", "floats", "rounds", "clock", "quorum"),
    [(2, 300_000, 18, "step", 1), (3, 1000, 36, "round", 1), (4, 1000, 48, "step", 1), (4, 1000, 24, "step", 2)],
)
def test_random_stragglers_leave_nothing_torn_or_unexplained(num_ranks, floats, rounds, clock, quorum):
    results = ranks.run("exchange_rounds.stragglers", floats, rounds, clock, quorum, num_ranks=num_ranks)
    ((_, calls),) = set(results)
    assert calls >= rounds


@pytest.mark.parametrize(
    ("body", "num_ranks"),
    [("unequal_steps", 3), ("policies", 2), ("other_device", 2), ("places", 2), ("patience", 2)],
)
def test_what_is_exchanged(body, num_ranks):
    ranks.run(f"exchange_rounds.{body}", num_ranks=num_ranks)


def test_frozen_leaves_keep_their_bits_in_groups_of_powers_of_two():
    ranks.run("exchange_rounds.frozen", optimized=True)  # optimizations change how XLA divides


def test_rounds_use_the_memory_of_former_sums():
    ranks.run("exchange_rounds.memory_of_sums", num_ranks=2)


@pytest.mark.long
def test_many_rounds_of_two_to_eight_workers():
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    program = ROOT / "tests" / "programs" / "exchange_rounds.py"
    status, output = run_ranks(8, program, timeout=280, environment={"PYTHONPATH": path})
    assert status == 0, output
    for workers in (2, 3, 4, 5, 6, 8):
        assert f"{workers} workers: stragglers" in output


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_rounds_of_one(num_ranks):
    ranks.run("exchange_rounds.alone", num_ranks=num_ranks)
