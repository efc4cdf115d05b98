"""An exchange as a link of an optax chain in jitted steps, and random keys in what is exchanged."""

import numpy as np
import pytest

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)

import failing
import ranks

from wagma_jax.exchange import callbacks


@pytest.mark.parametrize("body", ["accumulation", "accumulation_around", "trees", "steps_in_flight", "keys"])
def test_a_link_of_a_chain(body):
    ranks.run(f"exchange_optax.{body}", num_ranks=2)


def test_a_step_that_has_failed_is_told_of_once():
    dispatch = failing.dispatcher()
    dispatch()
    with pytest.raises(Exception, match="of the step"):
        callbacks.finish()
    callbacks.finish()
    dispatch()
    with pytest.warns(UserWarning, match=r"a step that was dispatched before has failed: (.|\n)*of the step"):
        callbacks.begin()
    callbacks.begin()


def test_ranks_draw_masks_of_their_own():
    (equal, own), (same, other) = ranks.run("exchange_optax.dropout", num_ranks=2)
    np.testing.assert_array_equal(equal, same)
    assert len({mask.tobytes() for mask in (equal, own, other)}) == 3
