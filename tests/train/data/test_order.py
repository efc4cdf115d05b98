"""Who takes which example: whole epochs, shards, and no dependence on processes or on where a run was resumed."""

import numpy as np
import pytest

from train.data.order import Order


def taken(order, workers, steps):
    """Indices and first draws, int64 [steps, workers, batch_size] each."""
    rows = range(len(workers) * order.batch_size)
    indices, draws = zip(*(order.take(step, workers, rows) for step in steps), strict=True)
    assert all(len(some) == len(rows) for some in draws)
    shape = (len(steps), len(workers), order.batch_size)
    drawn = [[draw.integers(256) for draw in some] for some in draws]
    return np.reshape(indices, shape), np.reshape(drawn, shape)


def test_whole_epochs_are_dealt_out():
    indices, _ = taken(Order(num_examples=10, num_workers=2, batch_size=3, seed=0), range(2), range(5))
    epochs = indices.reshape(3, 10)
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert not (epochs[0] == epochs[1]).all()
    other, _ = taken(Order(10, 2, 3, seed=1), range(2), range(5))
    assert (indices != other).any()
    several_epochs, _ = taken(Order(3, 4, 5, seed=0), range(4), range(1))
    assert (np.bincount(several_epochs.reshape(-1)[:18]) == 6).all()


@pytest.mark.parametrize(("examples", "workers"), [(12, 3), (13, 3), (7, 7)])
def test_shards_belong_to_one_worker(examples, workers):
    indices, _ = taken(Order(examples, workers, 2, seed=0, sampling="shard"), range(workers), range(examples))
    for worker in range(workers):
        owned = list(range(worker, examples, workers))
        stream = indices[:, worker].reshape(-1)
        for epoch in range(len(stream) // len(owned)):
            assert sorted(stream[epoch * len(owned) : (epoch + 1) * len(owned)]) == owned


def test_a_shard_for_everybody_or_none():
    with pytest.raises(ValueError, match=r"5 workers cannot have a shard each of 4 examples: lower --workers"):
        Order(4, 5, 1, 0, "shard")
    assert Order(4, 5, 1, 0, "whole").sampling == "whole"


@pytest.mark.parametrize("sampling", ["whole", "shard"])
def test_any_workers_and_rows_can_be_taken_apart(sampling):
    order = Order(50, 4, 3, seed=0, sampling=sampling)
    everybody = taken(order, range(4), range(9))
    for some, all_of_them in zip(taken(order, range(2, 4), range(9)), everybody, strict=True):
        np.testing.assert_array_equal(some, all_of_them[:, 2:4])
    for rows in (range(12), range(2, 7), range(5, 6), range(11, 12)):
        indices, draws = order.take(8, range(4), rows)
        np.testing.assert_array_equal(indices, everybody[0][8].reshape(-1)[rows])
        assert [draw.integers(256) for draw in draws] == everybody[1][8].reshape(-1)[rows].tolist()
        assert [draw.integers(256) for draw in draws[1:]] == everybody[1][8].reshape(-1)[rows][1:].tolist()


def test_draws_differ_between_examples_steps_and_epochs():
    _, draws = taken(Order(40, 2, 4, seed=0), range(2), range(100))
    assert len(np.unique(draws)) > 230  # 800 draws of 256 values
    _, draws = taken(Order(40, 2, 4, seed=0, sampling="shard"), range(2), range(50))
    assert (draws[:, 0] != draws[:, 1]).any()
    _, other = taken(Order(40, 2, 4, seed=1), range(2), range(1))
    assert (other != taken(Order(40, 2, 4, seed=0), range(2), range(1))[1]).any()


def test_another_number_of_workers_goes_on_where_the_others_were():
    before, _ = taken(Order(60, 3, 4, seed=0), range(3), range(2))
    after, _ = taken(Order(60, 2, 6, seed=0, first_example=24), range(2), range(3))
    assert sorted([*before.reshape(-1), *after.reshape(-1)]) == list(range(60))
