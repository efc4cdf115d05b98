"""Who gets which example: whole epochs, shards, no dependence on threads, processes or where a run was resumed."""

import numpy as np
import pytest

from train.data import Batch
from train.data.pipeline import Order, evaluation_batches, training_batches


class Numbers:
    """Examples whose image is their index and their first random draw."""

    def __init__(self, size, unreadable=()):
        self.size = size
        self.bad = np.array(sorted(unreadable), np.int64)

    def __len__(self):
        return self.size

    def load(self, indices, draws):
        image = np.zeros((len(indices), 1, 1, 2), np.uint8)
        image[:, 0, 0, 0] = indices % 256
        if draws is not None:
            assert len(draws) == len(indices)
            image[:, 0, 0, 1] = [draws[i].integers(256) for i in range(len(draws))]
        unreadable = np.where(np.isin(indices, self.bad), indices, -1)
        return Batch(image=image, label=indices.astype(np.int32), unreadable=unreadable)

    def describe(self, index):
        return f"number {index}"


def collected(order, workers, steps, examples=None, **options):
    iterator = training_batches(examples or Numbers(order.num_examples), order, workers, steps, **options)
    batches = list(iterator)
    iterator.close()
    assert len(batches) == len(steps)
    return {name: np.stack([batch[name] for batch in batches]) for name in ("image", "label", "unreadable")}


def test_whole_epochs_are_dealt_out():
    order = Order(num_examples=10, num_workers=2, batch_size=3, seed=0)
    labels = collected(order, range(2), range(5))["label"]  # [step, worker, batch]
    assert labels.shape == (5, 2, 3)
    epochs = labels.reshape(3, 10)
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert not (epochs[0] == epochs[1]).all()
    other = collected(Order(10, 2, 3, seed=1), range(2), range(5))["label"]
    assert (labels != other).any()
    assert collected(Order(3, 4, 5, seed=0), range(4), range(1))["label"].shape == (1, 4, 5)  # less than a batch


@pytest.mark.parametrize(("examples", "workers"), [(12, 3), (13, 3), (7, 7)])
def test_shards_belong_to_one_worker(examples, workers):
    order = Order(examples, workers, batch_size=2, seed=0, sampling="shard")
    labels = collected(order, range(workers), range(examples))["label"]
    for worker in range(workers):
        owned = list(range(worker, examples, workers))
        stream = labels[:, worker].reshape(-1)
        for epoch in range(len(stream) // len(owned)):
            assert sorted(stream[epoch * len(owned) : (epoch + 1) * len(owned)]) == owned


def test_a_shard_for_everybody_or_none():
    with pytest.raises(ValueError, match=r"5 workers cannot have a shard each of 4 examples: lower --workers"):
        Order(4, 5, 1, 0, "shard")
    assert Order(4, 5, 1, 0, "whole").sampling == "whole"


@pytest.mark.parametrize("sampling", ["whole", "shard"])
@pytest.mark.parametrize("chunk", [None, 1, 4, 100])
def test_nothing_depends_on_chunks_or_threads(sampling, chunk):
    order = Order(101, 4, 6, seed=3, sampling=sampling)
    expected = collected(order, range(4), range(20), threads=1)
    for threads in (1, 7):
        got = collected(order, range(4), range(20), threads=threads, chunk=chunk)
        for name, values in expected.items():
            np.testing.assert_array_equal(got[name], values)


@pytest.mark.parametrize("sampling", ["whole", "shard"])
def test_a_process_gets_its_own_workers_rows(sampling):
    order = Order(50, 4, 3, seed=0, sampling=sampling)
    everybody = collected(order, range(4), range(9))
    some = collected(order, range(2, 4), range(9), chunk=2)
    for name, values in everybody.items():
        np.testing.assert_array_equal(some[name], values[:, 2:4])


@pytest.mark.parametrize("sampling", ["whole", "shard"])
def test_going_on_at_a_step_gives_the_same_batches_and_draws(sampling):
    order = Order(30, 2, 4, seed=0, sampling=sampling)
    through, later = collected(order, range(2), range(12)), collected(order, range(2), range(7, 12))
    for name, values in through.items():
        np.testing.assert_array_equal(later[name], values[7:])


def test_draws_differ_between_examples_steps_and_epochs():
    draws = collected(Order(40, 2, 4, seed=0), range(2), range(200))["image"][..., 1]
    assert len(np.unique(draws)) > 240  # 1,600 draws of 256 values
    shards = collected(Order(40, 2, 4, seed=0, sampling="shard"), range(2), range(50))["image"][..., 1]
    assert (shards[:, 0] != shards[:, 1]).any()


def test_another_number_of_workers_goes_on_where_the_others_were():
    before = collected(Order(60, 3, 4, seed=0), range(3), range(2))["label"]
    after = collected(Order(60, 2, 6, seed=0, first_example=24), range(2), range(3))["label"]
    assert sorted([*before.reshape(-1), *after.reshape(-1)]) == list(range(60))


def test_finish_runs_on_every_batch():
    order = Order(20, 1, 5, seed=0)
    batches = training_batches(Numbers(20), order, range(1), range(3), lambda batch: batch["label"].sum())
    assert len(list(batches)) == 3


@pytest.mark.parametrize(("size", "batch_size", "rows"), [(10, 4, 4), (12, 4, 4), (3, 8, 8), (10, 4, 2)])
def test_every_test_example_counts_once(size, batch_size, rows):
    seen, bad = [], {2}
    for first in range(0, batch_size, rows):
        batches = evaluation_batches(Numbers(size, bad), batch_size, range(first, first + rows), chunk=2)
        for batch, counts in batches:
            assert batch["label"].shape == counts.shape == (rows,)
            seen += batch["label"][counts].tolist()
    assert sorted(seen) == [i for i in range(size) if i not in bad]
