"""Averaging in pairs between real processes."""

import pytest

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)

import jax.numpy as jnp
import numpy as np
import ranks


@pytest.mark.parametrize(
    ("num_ranks", "dtype", "tolerance", "clock"),
    [
        (2, np.float32, 1e-5, "step"),
        (3, np.float32, 1e-5, "round"),
        (4, np.float64, 1e-13, "step"),
        (3, jnp.bfloat16, 0.2, "step"),
    ],
)
def test_the_mean_changes_by_the_steps_alone(num_ranks, dtype, tolerance, clock):
    ranks.run("exchange_pairs.mean_is_preserved", 40, dtype, tolerance, clock, num_ranks=num_ranks)


@pytest.mark.parametrize(
    ("num_ranks", "floats", "steps"),
    [(3, 1 << 18, 30), pytest.param(4, 1 << 22, 60, marks=pytest.mark.long)],
)
def test_models_stay_whole(num_ranks, floats, steps):
    ranks.run("exchange_pairs.whole", floats, steps, num_ranks=num_ranks, timeout=200)


@pytest.mark.parametrize(
    ("body", "num_ranks"),
    [
        ("nobody_waits", 2),
        ("agreed", 2),
        ("policies", 2),
        ("nonfinite", 2),
        ("never_meeting", 2),
        ("jitted", 3),
        ("alone", 1),
        ("refusals", 2),
    ],
)
def test_a_pair(body, num_ranks):
    ranks.run(f"exchange_pairs.{body}", num_ranks=num_ranks)


@pytest.mark.parametrize(("failing", "resting"), [(0, False), (1, False), (2, True), (1, True)])
def test_a_failure_ends_all_and_nobody_hangs(failing, resting):
    ranks.run("exchange_pairs.a_rank_fails", failing, resting, num_ranks=3)


def test_a_failure_while_a_large_model_is_on_its_way():
    ranks.run("exchange_pairs.stuck", num_ranks=2)


def test_a_run_goes_on_from_a_meeting():
    ranks.run("exchange_pairs.resumed", num_ranks=2)


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_a_quadratic_converges(num_ranks):
    for own, of_mean in ranks.run("exchange_pairs.quadratic", 60, num_ranks=num_ranks):
        assert own < 0.1
        assert of_mean < 0.1


def test_a_slow_worker_takes_fewer_steps():
    fast, slow = ranks.run("exchange_pairs.slow_worker_jumps", num_ranks=2)
    assert slow < fast / 2


def test_many_exchanges_leave_nothing_behind():
    ranks.run("exchange_pairs.leaks", 3, num_ranks=2)
