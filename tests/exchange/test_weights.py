"""Contributions that weigh as many as the steps that they count for."""

import pytest

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)

import ranks


def test_a_worker_of_few_steps_weighs_as_many_in_a_run_its_resumption_and_its_replay(tmp_path):
    ranks.run("exchange_weights.by_steps", str(tmp_path), num_ranks=2)
