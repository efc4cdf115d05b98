"""The pairs of AD-PSGD."""

import collections

import numpy as np
import pytest

from wagma_jax.bipartite import PairSchedule


@pytest.mark.parametrize("graph", ["exponential", "ring"])
@pytest.mark.parametrize("num_workers", [2, 3, 4, 5, 7, 8, 16, 33])
def test_the_graph_is_bipartite_symmetric_and_connected(num_workers, graph):
    schedule = PairSchedule(num_workers, graph)
    neighbours = {worker: schedule.neighbours(worker) for worker in range(num_workers)}
    for worker, others in neighbours.items():
        assert others, "everybody averages with somebody"
        assert all(schedule.is_active(other) != schedule.is_active(worker) for other in others)
        assert all(worker in neighbours[other] for other in others)
    matrix = schedule.matrix()
    np.testing.assert_allclose(matrix.sum(0), 1)
    np.testing.assert_allclose(matrix, matrix.T)
    assert np.linalg.eigvalsh(matrix)[-2] < 1 - 1e-4, "models mix"


def test_distances():
    assert PairSchedule(32).neighbours(0) == (1, 3, 5, 9, 15, 17, 23, 27, 29, 31)  # 1, 3, 5, 9, 17, both ways
    assert PairSchedule(8, "ring").neighbours(0) == (1, 7)
    assert PairSchedule(5).neighbours(4) == (1, 3), "the circle of an odd number does not close"
    assert PairSchedule(2).neighbours(0) == (1,)
    assert PairSchedule(1).neighbours(0) == ()


def test_partners_are_drawn_from_the_seed():
    schedule = PairSchedule(8)
    drawn = [schedule.partner(2, number) for number in range(400)]
    assert drawn[:12] == [schedule.partner(2, number) for number in range(12)]
    assert drawn[:4] == DRAWN, "the same on all machines and in all versions"
    counts = collections.Counter(drawn)
    assert set(counts) == {1, 3, 5, 7}
    assert min(counts.values()) > 70, counts
    assert drawn != [PairSchedule(8, seed=1).partner(2, number) for number in range(400)]
    assert drawn != [schedule.partner(4, number) for number in range(400)]


DRAWN = [7, 3, 1, 3]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0,), "num_workers must be at least 1, got 0"),
        ((2.5,), "num_workers must be an integer"),
        ((4, "star"), "graph must be 'exponential' or 'ring', got 'star'"),
        ((4, "ring", 1 << 63), "seed must fit into 64 bits"),
    ],
)
def test_bad_arguments(arguments, text):
    with pytest.raises(ValueError, match=text):
        PairSchedule(*arguments)


def test_in_words():
    assert PairSchedule(5).describe() == "5 workers in pairs, 3 of them ask others (exponential graph)"
