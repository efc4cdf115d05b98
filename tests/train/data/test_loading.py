"""Loading in the background: in order whatever loads, of any arrays, bounded, and ended by errors and by close."""

import itertools
import threading
import time

import numpy as np
import pytest

from train.data.loading import LoadingOptions, evaluation_batches, training_batches
from train.data.order import Order


class Numbers:
    """Examples that are their indices, with some of their random draws."""

    def __init__(self, size, bad=None, seconds=0.0):
        self.size = size
        self.bad = bad
        self.seconds = seconds
        self.loads = 0

    def __len__(self):
        return self.size

    def load(self, indices, draws):
        self.loads += 1
        time.sleep(self.seconds)
        if self.bad in indices:
            raise OSError(f"number {self.bad} is bad")
        noise = np.zeros((len(indices), 2), np.float32)
        if draws is not None:
            assert len(draws) == len(indices)
            noise[:] = [draw.random(2) for draw in draws]
        return {"number": indices, "noise": noise}


def collected(order, workers, steps, **options):
    batches = training_batches(Numbers(order.num_examples), order, workers, steps.start, **options)
    some = list(itertools.islice(batches, len(steps)))
    batches.close()
    return {name: np.stack([batch[name] for batch in some]) for name in ("number", "noise")}


def expected(order, workers, steps):
    """The same without loading in the background."""
    rows = range(len(workers) * order.batch_size)
    trees = [Numbers(order.num_examples).load(*order.take(step, workers, rows)) for step in steps]
    shape = (len(steps), len(workers), order.batch_size)
    return {
        name: np.stack([tree[name] for tree in trees]).reshape(*shape, *trees[0][name].shape[1:]) for name in trees[0]
    }


def check_equal(got, wanted):
    assert got.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(got[name], values, strict=True)


def wait_until(condition, seconds=10):
    end = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < end
        time.sleep(0.005)


@pytest.mark.parametrize("sampling", ["whole", "shard"])
@pytest.mark.parametrize(("chunk", "threads"), [(None, 1), (None, 7), (1, 7), (4, 1), (4, 7), (100, 7)])
def test_nothing_depends_on_chunks_or_threads(sampling, chunk, threads):
    order = Order(101, 4, 6, seed=3, sampling=sampling)
    got = collected(order, range(4), range(8), chunk=chunk, threads=threads)
    check_equal(got, expected(order, range(4), range(8)))


def test_nothing_depends_on_processes():
    order = Order(30, 2, 4, seed=0)
    got = collected(order, range(2), range(5, 11), chunk=2, threads=2, processes=2)
    check_equal(got, expected(order, range(2), range(5, 11)))


@pytest.mark.parametrize("sampling", ["whole", "shard"])
def test_a_process_gets_its_own_workers_rows(sampling):
    order = Order(50, 4, 3, seed=0, sampling=sampling)
    some = collected(order, range(2, 4), range(9), chunk=2)
    check_equal(some, {name: values[:, 2:4] for name, values in expected(order, range(4), range(9)).items()})


@pytest.mark.parametrize("sampling", ["whole", "shard"])
def test_going_on_at_a_step_gives_the_same_batches_and_draws(sampling):
    order = Order(30, 2, 4, seed=0, sampling=sampling)
    through, later = collected(order, range(2), range(12)), collected(order, range(2), range(7, 12))
    check_equal(later, {name: values[7:] for name, values in through.items()})


def test_finish_runs_on_every_batch_in_the_background():
    def finish(batch):
        return batch["number"].shape, threading.current_thread()

    batches = training_batches(Numbers(20), Order(20, 1, 5, seed=0), range(1), 0, finish)
    for shape, thread in itertools.islice(batches, 3):
        assert shape == (1, 5)
        assert thread is not threading.current_thread()
    batches.close()


@pytest.mark.parametrize(("size", "batch_size", "rows"), [(10, 4, 4), (12, 4, 4), (3, 8, 8), (10, 4, 2)])
@pytest.mark.parametrize("chunk", [None, 2])
def test_every_test_example_is_inside_once(size, batch_size, rows, chunk):
    seen = []
    for first in range(0, batch_size, rows):
        for batch, inside in evaluation_batches(Numbers(size), batch_size, range(first, first + rows), chunk=chunk):
            assert batch["number"].shape == inside.shape == (rows,)
            assert batch["noise"].shape == (rows, 2)
            assert (batch["number"][~inside] == size - 1).all()
            seen += batch["number"][inside].tolist()
    assert sorted(seen) == list(range(size))


def test_loading_ahead_begins_at_once_and_is_bounded():
    examples = Numbers(100)
    batches = training_batches(examples, Order(100, 1, 4, seed=0), [0], 0, chunk=1, threads=2)
    for taken in range(3):
        wait_until(lambda taken=taken: examples.loads > 4 * (taken + 1))
        time.sleep(0.1)
        assert examples.loads <= 4 * (taken + 6)
        next(batches)
    batches.close()


def test_an_error_comes_in_place_of_its_batch_and_ends_all():
    batches = evaluation_batches(Numbers(12, bad=6), 4, range(4), chunk=1)
    time.sleep(0.1)  # it has happened
    assert next(batches)[0]["number"].tolist() == [0, 1, 2, 3]
    with pytest.raises(OSError, match="number 6 is bad"):
        next(batches)
    assert list(batches) == []


def test_close_does_not_wait_for_a_batch():
    examples = Numbers(1000, seconds=0.02)
    others = set(threading.enumerate())
    batches = training_batches(examples, Order(1000, 1, 1000, seed=0), [0], 0, chunk=1, threads=1)  # 20 s each
    wait_until(lambda: examples.loads)
    begun = time.perf_counter()
    batches.close()
    assert time.perf_counter() - begun < 10
    assert list(batches) == []
    wait_until(lambda: set(threading.enumerate()) <= others)
    batches.close()


def test_loading_options_out_of_range():
    LoadingOptions().check()
    with pytest.raises(ValueError, match="--loader-threads must be at least 1, got 0"):
        LoadingOptions(loader_threads=0).check()
    with pytest.raises(ValueError, match="--loader-processes must not be negative, got -1"):
        LoadingOptions(loader_processes=-1).check()
