"""Misuse is explained on all ranks, and ends nobody."""

import pytest

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)

import ranks


@pytest.mark.parametrize(
    "body",
    [
        "other_trees",
        "functions_in_static_fields",
        "other_settings",
        "bad_settings",
        "another_tree_later",
        "use_after_close",
        "two_threads",
        "other_values",
    ],
)
def test_misuse_is_explained(body):
    ranks.run(f"exchange_misuse.{body}", num_ranks=2)
