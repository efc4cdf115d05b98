"""Contributions that weigh as many as the steps that they count for."""

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)

import ranks

from wagma_jax.exchange.storage import stored, values
from wagma_jax.exchange.weighing import scaled


def test_a_worker_of_few_steps_weighs_as_many_in_a_run_its_resumption_and_its_replay(tmp_path):
    ranks.run("exchange_weights.by_steps", str(tmp_path), num_ranks=2)


def test_steps_whose_model_is_lost_count_for_nothing_later():
    ranks.run("exchange_weights.steps_that_are_lost", num_ranks=2)
    ranks.run("exchange_weights.steps_that_are_lost_between_means", num_ranks=2)


def test_models_that_change_after_a_round_of_one():
    ranks.run("exchange_weights.numpy_models_that_change", num_ranks=2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_contributions_are_scaled_in_their_own_dtype(dtype):
    model = jnp.asarray([0.1, -3.0, 1e-3], dtype)
    (times,) = scaled((stored(model),), jnp.int32(3))
    np.testing.assert_array_equal(values(times), (3 * model.astype(jnp.promote_types(dtype, "float32"))).astype(dtype))
    (nothing,) = scaled((stored(model.at[0].set(jnp.nan)),), jnp.int32(0))
    assert not values(nothing).any(), "what does not count is not looked at"
