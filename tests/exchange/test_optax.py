"""An exchange as a link of an optax chain in jitted steps, and random keys in what is exchanged."""

import numpy as np
import pytest

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)

import ranks


@pytest.mark.parametrize("body", ["accumulation", "accumulation_around", "trees", "steps_in_flight", "keys"])
def test_a_link_of_a_chain(body):
    ranks.run(f"exchange_optax.{body}", num_ranks=2)


def test_ranks_draw_masks_of_their_own():
    (equal, own), (same, other) = ranks.run("exchange_optax.dropout", num_ranks=2)
    np.testing.assert_array_equal(equal, same)
    assert len({mask.tobytes() for mask in (equal, own, other)}) == 3
