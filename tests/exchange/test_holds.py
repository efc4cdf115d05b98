"""Who uses which buffers, and whose memory is free; and formulas in such memory. Alone, without processes."""

import jax.numpy as jnp
import numpy as np
import pytest

from wagma_jax.exchange.formulas import Formulas
from wagma_jax.exchange.holds import Holds, signature
from wagma_jax.exchange.isolation import own_settings
from wagma_jax.exchange.staging import Staging
from wagma_jax.protocol import mixing


def model(value, size=3):
    return (jnp.full(size, value, jnp.float32),)


def test_memory_is_free_when_nobody_holds_it_any_more():
    holds, sent = Holds(2), model(1)
    for _ in range(3):  # the trainer's model, and two sends of it
        holds.hold(sent)
    for left in (2, 1):
        holds.release(sent)
        assert holds.holds(sent) == left
        assert holds.take(signature(sent)) is None
    holds.release(sent)
    assert (holds.holds(sent), len(holds)) == (0, 0)
    again = holds.take(signature(sent))
    assert again is sent
    assert holds.holds(again) == 1
    assert holds.take(signature(sent)) is None


def test_equal_buffers_are_told_apart_and_no_more_is_kept_than_needed():
    holds, first, second, third = Holds(2), model(1), model(1), model(1)
    for each in (first, second, third):
        holds.hold(each)
    holds.release(second)
    assert [holds.holds(each) for each in (first, second, third)] == [1, 0, 1]
    holds.release(first)
    holds.release(third)  # two are enough
    assert {id(holds.take(signature(first))) for _ in range(2)} == {id(first), id(second)}
    assert holds.take(signature(first)) is None
    holds.put(model(0, size=4))
    assert holds.take(signature(first)) is None, "it is of another size"
    holds.clear()
    assert len(holds) == 0


def test_only_the_last_holder_spends_and_nobody_releases_what_is_not_held():
    holds, shared = Holds(1), model(1)
    holds.hold(shared)
    holds.hold(shared)
    with pytest.raises(AssertionError, match="others use it"):
        holds.spend(shared)
    with pytest.raises(AssertionError, match="somebody uses it"):
        holds.put(shared)
    holds.release(shared)
    holds.spend(shared)
    assert holds.take(signature(shared)) is None, "what was spent is gone"
    with pytest.raises(AssertionError, match="does not hold it"):
        holds.release(shared)
    holds.hold(())
    holds.release(())  # a tree without averaged leaves


PARAMS = {"a": np.arange(5, dtype=np.float32), "b": np.linspace(0, 1, 7).astype(jnp.bfloat16), "c": np.arange(2.0)}


@pytest.mark.parametrize("spare", [True, False])
def test_formulas_are_those_of_numbers_and_spend_what_nobody_else_holds(spare):
    with own_settings():
        staging, holds = Staging(PARAMS), Holds(1)
        compute = Formulas(staging.layouts, staging.device, holds)
        own = staging.pack(staging.check(PARAMS))
        stepped = staging.copy(own)
        holds.hold(stepped)
        compute.spare = [stepped]
        if not spare:
            holds.hold(stepped)
            holds.put(staging.copy(own))
        found = compute(mixing.mean_and_step, 3, stepped, own, own, own, own)
        assert [buffer.is_deleted() for buffer in stepped] == [spare] * len(stepped)
        assert holds.take(compute.model) is None, "free memory is used"
        for leaf, value in zip(PARAMS.values(), staging.to_arrays(found), strict=True):
            np.testing.assert_allclose(value.astype(float), leaf.astype(float), rtol=1e-6)
        share = compute(mixing.share_of_step, 2, np.float32(0.75), own, own)
        assert signature(share) == compute.share
        assert compute.share != compute.model, "shares of bfloat16 are wider"
        halves = staging.to_arrays(compute(mixing.unbiased, np.float32(0.75), share, share))
        for leaf, value in zip(PARAMS.values(), halves, strict=True):
            np.testing.assert_allclose(value.astype(float), leaf.astype(float), rtol=1e-2)
