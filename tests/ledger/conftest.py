"""Constructed ledgers that several tests read; nobody changes them."""

import numpy as np
import pytest
from ledger.constructed import END, call, exchange, offset, simulate, start, write

from wagma_jax import ledger


@pytest.fixture(scope="session")
def two(tmp_path_factory):
    """Rank 1 takes 3 s for its second step; rank 0 waits for it 0.5 s at round 1 (say, with quorum 2)."""
    return ledger.read(
        write(
            tmp_path_factory.mktemp("two"),
            [
                start(0, quorum=2),
                exchange(0, [0, 1], [0, 0], 1.2, 1.3), call(0, 1.0, 1.1, 1.3, 1.4, {1: 0.05}),
                exchange(1, [0, 1], [1, 0], 2.9, 3.0), call(1, 2.4, 2.4, 3.0, 3.0, {1: 0.5}),
                exchange(2, [0, 1], [2, 2], 5.0, 5.5), call(2, 5.0, 5.0, 5.5, 5.5),
                offset(6.0), END,
            ],
            [
                start(1, quorum=2),
                exchange(0, [0, 1], [0, 0], 1.2, 1.3), call(0, 1.2, 1.2, 1.3, 1.3),
                exchange(1, [0, 1], [1, 0], 2.9, 3.0), call(1, 4.3, 4.4, 4.4, 4.5, {}, "late"),
                exchange(2, [0, 1], [2, 2], 5.0, 5.5), call(2, 4.8, 4.8, 5.5, 5.6, {0: 0.2}),
                offset(6.0), END,
            ],
        )
    )  # fmt: skip


@pytest.fixture(scope="session")
def uneven():
    """The entries of four ranks whose steps take random times, with a sync every 10 rounds."""
    return simulate(np.random.default_rng(0).exponential(0.01, (4, 40)))


@pytest.fixture(scope="session")
def many(tmp_path_factory):
    """Twenty ranks: more than a table or an axis has room for."""
    computation = np.random.default_rng(0).exponential(0.01, (20, 40))
    return ledger.read(write(tmp_path_factory.mktemp("many"), *simulate(computation, group_size=4)))


@pytest.fixture(scope="session")
def starts(tmp_path_factory):
    """Two ranks that were killed before their first round."""
    return ledger.read(write(tmp_path_factory.mktemp("starts"), [start(0)], [start(1)]))
