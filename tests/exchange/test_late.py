"""Late workers whose last step is added to their group's mean."""

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)

import ranks

from wagma_jax.averaging import merge, merge_by_adding


def test_a_late_worker_adds_its_step_in_a_run_its_resumption_and_its_replay(tmp_path):
    ranks.run("exchange_late.by_adding", str(tmp_path), num_ranks=2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_the_mean_over_workers_keeps_the_whole_step(dtype):
    """Worker 0 comes first, and averages with what worker 1 had before its step; worker 1 is late."""
    before = jnp.asarray([1.0, -3.0, 0.25], dtype)
    first, second = before + jnp.asarray([0.5, 1.0, -0.5], dtype), before + jnp.asarray([0.25, 0.5, 0.125], dtype)
    total = (first + before).astype(jnp.promote_types(dtype, "float32"))
    results = merge(total, first, 2), merge_by_adding(total, second, before, 2)
    assert all(result.dtype == before.dtype for result in results)
    np.testing.assert_array_equal(sum(results), first + second)
    paper = results[0] + merge(total, second, 2, late=True)
    np.testing.assert_allclose(
        paper.astype("complex64"),
        (2 * before + 5 / 6 * (first - before) + 1 / 3 * (second - before)).astype("complex64"),
        rtol=2e-2 if dtype == "bfloat16" else 1e-6,
    )
