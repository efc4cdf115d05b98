"""Pairs as tokens, the shapes of their batches, and who takes which."""

import itertools

import numpy as np
import pytest

from train.data.text import Pairs, buckets, feed, tokens
from train.data.text.buckets import Shape
from train.data.text.order import BucketOrder
from train.transports.local import LocalPlace


def made(*lengths):
    """Token pairs of these lengths, whose tokens tell which pair they are of."""
    sides = [[np.full(pair[side], number + 4, np.int32) for number, pair in enumerate(lengths)] for side in (0, 1)]
    return tokens.TokenPairs(*map(tokens.Rows, sides))


@pytest.fixture(scope="module")
def lengths():
    rng = np.random.default_rng(0)
    source = rng.geometric(0.1, 3000).clip(2, 40)
    return np.stack([source, (source * rng.uniform(0.8, 1.5, 3000)).astype(int).clip(2, 44)], axis=1)


class Letters:
    """A vocabulary with a token for each character, and an end."""

    def encode(self, texts):
        return [np.array([*map(ord, text), 2], np.int32) for text in texts]


def test_pairs_that_are_too_long_or_uneven_are_counted():
    pairs = Pairs(["abc", "a", "abcdefgh", "abcdefg"], ["ab", "abcdefg", "a", "a"])
    encoded, text, counts = tokens.encoded(pairs, Letters(), max_tokens=8, max_ratio=3.0)
    assert text == (["abc"], ["ab"])
    assert counts.left_out == {"over 8 tokens": 1, "lengths differ over 3 times": 2}
    assert counts.kept == len(encoded) == 1
    assert encoded.lengths.tolist() == [[4, 3]]
    assert encoded.source.padded(np.array([0, 0]), 6).tolist() == [[97, 98, 99, 2, 0, 0]] * 2
    nothing, _, _ = tokens.encoded(Pairs([], []), Letters(), 8, 3.0)
    assert len(nothing) == 0


def test_few_shapes_hold_all_pairs_with_little_padding(lengths):
    shares = []
    for count in (1, 4, 12):
        shapes = buckets.choose(lengths, count, 1000, multiple=2)
        assert len(shapes) == count
        bucket = buckets.assign(lengths, shapes)
        for number, shape in enumerate(shapes):
            assert (lengths[bucket == number] <= (shape.source, shape.target)).all()
            assert shape.rows % 2 == 0
            assert shape.positions <= 1000 < (shape.rows + 2) * (shape.source + shape.target)
        positions = sum(shape.source + shape.target for shape in (shapes[b] for b in bucket))
        shares.append(buckets.padding(lengths, shapes))
        assert shares[-1] == pytest.approx(1 - lengths.sum() / positions)
    assert shares[0] > 0.5 > shares[1] > 0.15 > shares[2]


def test_the_shapes_are_the_best(lengths):
    """Against all bounds, where both sides are equally long, so that one ratio is right."""
    equal = np.stack([lengths[:, 0]] * 2, axis=1).clip(max=12)
    cost = lambda ends: sum(2 * min(end for end in ends if end >= n) for n in equal[:, 0])
    best = min(cost((*ends, 12)) for ends in itertools.combinations(range(2, 12), 2))
    shapes = buckets.choose(equal, 3, 1000)
    assert cost([shape.source for shape in shapes]) == best


def test_shapes_for_every_shard(lengths):
    shapes = buckets.choose(lengths[:40], 12, 1000, least=8)
    assert np.bincount(buckets.assign(lengths[:40], shapes)).min() >= 8
    assert len(buckets.choose(lengths[:5], 12, 1000, least=8)) == 1
    with pytest.raises(
        ValueError, match=r"--batch-size 80 tokens cannot hold the longest pair, which takes \d+: raise"
    ):
        buckets.choose(lengths, 2, 80)
    with pytest.raises(ValueError, match="cannot hold 4 of the longest pair"):
        buckets.choose(lengths, 2, 300, multiple=4)


def order(**options):
    members = [np.arange(60), np.arange(60, 90), np.arange(90, 100)]
    return BucketOrder(members, (6, 3, 1), **{"num_workers": 2, "seed": 3, **options})


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("sampling", ["whole", "shard"])
def test_all_pairs_are_seen_equally_often(together, sampling):
    taken = order(together=together, sampling=sampling)
    cycle = int(taken.counts.sum())
    seen = np.zeros(100, int)
    for step, worker in itertools.product(range(cycle), (0, 1)):
        bucket, which = taken.take(step, worker)
        assert set(which) <= set(taken.members[bucket])
        assert sampling == "whole" or len(set(which % 2)) == 1  # the members of a shard are every second one
        seen[which] += 1
    assert seen.sum() == 2 * sum(taken.counts * taken.rows)
    assert seen.max() - seen.min() <= 4  # of about 17, as each bucket ends within an epoch of its own
    again = order(together=together, sampling=sampling)
    for step in (cycle + 5, 7):  # in any order, without those before
        assert (again.take(step, 1)[1] == taken.take(step, 1)[1]).all()


def test_workers_of_one_program_share_the_bucket():
    together, alone = order(together=True), order()
    steps = range(50)
    drawn = lambda taken, worker: [taken.take(step, worker)[0] for step in steps]
    assert drawn(together, 0) == drawn(together, 1)
    assert drawn(alone, 0) != drawn(alone, 1)
    assert all(not set(together.take(step, 0)[1]) & set(together.take(step, 1)[1]) for step in steps)
    half = order(together=True, seen=0.5)
    first = next(step for step in steps if half.take(step, 0)[0] == 0)
    begun = next(step for step in range(400) if together.take(step, 0)[0] == 0)
    assert (half.take(first, 0)[1] != together.take(begun, 0)[1]).any()


def test_a_feed_counts_tokens():
    pairs = made((3, 2), (5, 4), (4, 4))
    shapes = [Shape(3, 2, 1), Shape(5, 4, 2)]
    fed = feed.PairFeed(pairs, shapes, BucketOrder([np.arange(1), np.arange(1, 3)], (1, 2), 1, 0), LocalPlace())
    batches = [fed.next(step, None, "carry") for step in range(20)]
    assert {carry for _, carry in batches} == {"carry"}
    assert {int(batch.units[0]) for batch, _ in batches} == {5, 17}
    for batch, _ in batches:
        source, target = (np.asarray(batch.arrays[side]) for side in ("source", "target"))
        shape = shapes[len(source) - 1]
        wanted = feed.batch_shape(shape)
        assert (source.shape, target.shape) == (wanted["source"].shape, wanted["target"].shape)
        assert (source > 0).sum() + (target > 0).sum() == batch.units[0]
        assert (source[:, 0] == target[:, 0]).all()  # the same pairs on both sides
