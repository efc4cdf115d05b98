"""Ledgers of workers that average in pairs: what the summary, the picture and the trace say."""

import re

import numpy as np
import pytest
from ledger.constructed import END, call, offset, start, write

from wagma_jax import ledger
from wagma_jax.ledger.entries import Swap
from wagma_jax.ledger.picture import draw


def entries(rank, num_workers=4):
    """Rank 0 asks 1 twice, and 2 asks 3 once; all make three steps."""
    calls = [call(t, t + 1.0, t + 1.0, t + 1.0, t + 1.0, None, "own") for t in range(3)]
    pairs = {0: (1, 2), 1: (0, 2), 2: (3, 1), 3: (2, 1)}
    partner, count = pairs.get(rank, (0, 0))
    swaps = [Swap(partner, k, rank % 2 == 0, 2 * k, 2 * k + 1, k, k + 1.1, k + 1.2 + 0.2 * k) for k in range(count)]
    settings = {"num_workers": num_workers, "method": "pairs", "options": {"graph": "ring", "seed": "0"}}
    return [start(rank, **settings), *calls, *swaps, offset(9.0), END]


@pytest.fixture
def pairs(tmp_path):
    return ledger.read(write(tmp_path / "run", *map(entries, range(4))))


def test_text_says_who_asked_whom(pairs):
    words = ledger.text(ledger.summarize(pairs))
    assert words.startswith("4 ranks in pairs (ring graph): 3 swaps in 3.0 s on 1 machine; clock=step")
    assert "a swap took 100 ms (median), 300 ms at most" in words
    assert "  rank 0       -       2       -       -           67%" in words
    assert "  rank 1       -       -       -       -             -" in words
    assert "ordinary rounds" not in words


def test_many_ranks_fit(tmp_path):
    run = ledger.read(write(tmp_path / "run", *(entries(rank, 20) for rank in range(20))))
    words = ledger.text(ledger.summarize(run))
    assert re.search(r"rank 0 asked rank 1 +2\n", words)
    assert max(map(len, words.splitlines())) <= 130


def test_the_picture_shows_swaps_by_rank_and_round(pairs):
    figure = draw(pairs, ledger.align(pairs))
    figure.draw_without_rendering()
    images = [axis.get_images()[0].get_array() for axis in figure.axes if axis.get_images()]
    np.testing.assert_array_equal(images[0], [[1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(images[1], [[0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    assert all(axis.get_xlabel() or axis.get_ylabel() for axis in figure.axes)


def test_the_trace_has_both_sides_of_a_swap(pairs):
    names = [event["name"] for event in ledger.trace(pairs)["traceEvents"] if event["ph"] == "X"]
    assert names.count("asking rank 1") == names.count("answering rank 0") == 2


def test_swaps_of_rounds_that_are_done_again_do_not_count(tmp_path):
    again = start(0, num_workers=1, group_size=1, method="pairs", options={"graph": "ring", "seed": "0"}, first_round=1)
    first = entries(0, 1)[:-2]
    (one,) = ledger.read(write(tmp_path / "run", [first[0]._replace(group_size=1), *first[1:], again]))
    assert [swap.round for swap in one.kept()[0].swaps] == [0]
