"""D-PSGD and SGP between real processes."""

import pytest

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)

import ranks

KINDS = ["dpsgd", "sgp", "overlap"]


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_models_are_those_of_the_papers_and_of_xla(kind, num_ranks):
    ranks.run("exchange_gossip.trajectory", kind, 9, num_ranks=num_ranks)
