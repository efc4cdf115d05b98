"""Formulas of gossip on buffers, in memory that nobody else uses. Alone, without processes."""

import jax.numpy as jnp
import numpy as np
import pytest

from wagma_jax.exchange.formulas import Formulas
from wagma_jax.exchange.isolation import own_settings
from wagma_jax.exchange.pool import Pool, model_signature, signature
from wagma_jax.exchange.staging import Staging
from wagma_jax.protocol import mixing

PARAMS = {"a": np.arange(5, dtype=np.float32), "b": np.linspace(0, 1, 7).astype(jnp.bfloat16), "c": np.arange(2.0)}


@pytest.mark.parametrize("spare", [True, False])
def test_formulas_are_those_of_numbers_and_spend_what_nobody_else_holds(spare):
    with own_settings():
        staging = Staging(PARAMS)
        pool = Pool(1, model_signature(staging.layouts))
        compute = Formulas(staging.layouts, staging.device, pool)
        own = staging.pack(staging.check(PARAMS))
        stepped = staging.copy(own)
        pool.hold(stepped)
        compute.spare = [stepped]
        if not spare:
            pool.hold(stepped)
            pool.put(staging.copy(own))
        found = compute(mixing.mean_and_step, 3, stepped, own, own, own, own)
        assert [buffer.is_deleted() for buffer in stepped] == [spare] * len(stepped)
        assert pool.take(compute.model) is None, "free memory is used"
        for leaf, value in zip(PARAMS.values(), staging.to_arrays(found), strict=True):
            np.testing.assert_allclose(value.astype(float), leaf.astype(float), rtol=1e-6)
        share = compute(mixing.share_of_step, 2, np.float32(0.75), own, own)
        assert signature(share) == compute.share
        assert compute.share != compute.model, "shares of bfloat16 are wider"
        halves = staging.to_arrays(compute(mixing.unbiased, np.float32(0.75), share, share))
        for leaf, value in zip(PARAMS.values(), halves, strict=True):
            np.testing.assert_allclose(value.astype(float), leaf.astype(float), rtol=1e-2)
