"""The picture: laid out, but not rendered, which `wagma ledger` does in its own test."""

import numpy as np
import pytest
from ledger.constructed import call, simulate, start, write

from wagma_jax import ledger
from wagma_jax.ledger.entries import Call, Mixed
from wagma_jax.ledger.picture import MOST_COLUMNS, _binned, draw


def drawn(ledgers):
    """The shown values of staleness and waits, and all titles."""
    figure = draw(ledgers, ledger.align(ledgers))
    figure.draw_without_rendering()
    images = [axis.get_images()[0].get_array().filled(np.nan) for axis in figure.axes if axis.get_images()]
    return images[0], images[1], "\n".join(axis.get_title() for axis in figure.axes)


def test_a_picture_has_a_row_for_each_rank_and_a_column_for_each_round(two):
    ages, waits, titles = drawn(two)
    assert ages.tolist() == [[0, 0, 0], [0, 1, 0]]
    np.testing.assert_allclose(waits, [[0.05, 0.5, 0], [0, 0, 0.2]], atol=1e-6)
    assert "white" not in titles


def test_rounds_without_a_call_are_white(tmp_path):
    entries = simulate(np.random.default_rng(0).exponential(0.01, (2, 30)))
    entries[1] = [e for e in entries[1] if not (isinstance(e, Call) and e.round in (3, 4, 5))]
    ages, waits, titles = drawn(ledger.read(write(tmp_path / "run", *entries)))
    assert ages.shape == waits.shape == (2, 30)
    assert np.argwhere(np.isnan(waits)).tolist() == [[1, 3], [1, 4], [1, 5]]
    assert "white: no call" in titles
    assert "blue marks: sync rounds" in titles


@pytest.mark.parametrize("name", ["many", "starts"])
def test_pictures_of_many_ranks_and_of_nothing(name, request):
    ledgers = request.getfixturevalue(name)
    ages, waits, titles = drawn(ledgers)
    assert ages.shape == waits.shape == (len(ledgers), 40 if name == "many" else 1)
    assert ("white: nothing written" in titles) == (name == "starts")


def test_gossip_that_was_killed_inside_of_a_round_is_drawn(tmp_path):
    """The engine has completed a round, and no trainer has left it yet."""
    settings = {"method": "gossip", "options": {"mixing": "Dpsgd", "lag": "0", "shifts": "((0, 1),)"}}
    ranks = [
        [start(rank, **settings), Mixed(0, (1 - rank,), True, 1.0, 1.1), call(0, 1.0, 1.0, 1.1, 1.2, merge="mixed")]
        + [Mixed(1, (1 - rank,), True, 2.0, 2.1)]
        for rank in range(2)
    ]
    ages, waits, _ = drawn(ledger.read(write(tmp_path / "run", *ranks)))
    assert ages.shape == waits.shape == (2, 2)
    assert not ages.any()


def test_long_runs_are_drawn_in_bins(tmp_path):
    ages, waits, titles = drawn(ledger.read(write(tmp_path / "run", *simulate(np.full((2, 2000), 0.01)))))
    assert ages.shape == waits.shape == (2, 667)
    assert ages.shape[1] <= MOST_COLUMNS
    assert "blue marks" in titles


def test_bins_of_rounds():
    values = np.arange(2.0 * 2000).reshape(2, 2000)
    values[0, :3] = np.nan
    values[1, 0] = np.nan
    bins, size = _binned(values, np.sum, 0)
    assert size == 3
    assert bins.shape == (2, 667)
    assert np.isnan(bins[0, 0])
    assert bins[1, 0] == 2001 + 2002
    assert bins[0, -1] == 1998 + 1999
