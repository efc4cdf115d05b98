"""The pool of memory: what is free, and what is still read."""

import pytest

from wagma_jax.exchange.pool import Pool


def ordinary(model):
    """Of two buffers the first is exchanged at ordinary rounds."""
    return model[:1]


def test_a_former_publication_is_memory_for_the_next_sum():
    pool = Pool(ordinary, reuse=True)
    assert pool.take(1) is None
    assert pool.has(1, retiring=("a", "b"))
    assert not pool.has(2, retiring=("a", "b"))
    pool.retire(("a", "b"))
    assert pool.take(1) == ("a",)
    assert pool.take(1) is None


def test_a_publication_that_an_exchange_reads_is_free_only_afterwards():
    pool = Pool(ordinary, reuse=True)
    read, new = ("a", "b"), ("c", "d")
    pool.begin_reading(read)
    assert not pool.has(1, retiring=read)
    pool.retire(read)
    assert pool.take(1) is None
    with pytest.raises(AssertionError, match="one exchange at a time"):
        pool.begin_reading(new)
    pool.end_reading(current=new)
    assert pool.take(1) == ("a",)


def test_what_is_still_published_is_not_free():
    pool = Pool(ordinary, reuse=True)
    publication = ("a", "b")
    pool.begin_reading(publication)
    pool.end_reading(current=publication)
    assert pool.take(1) is None


def test_publications_of_other_dtypes_than_their_sums_are_no_memory():
    pool = Pool(ordinary, reuse=False)
    assert not pool.has(1, retiring=("a", "b"))
    pool.retire(("a", "b"))
    assert pool.take(1) is None
    pool.put(("sum",))
    assert pool.take(1) == ("sum",)


def test_there_is_at_most_one_for_each_size():
    pool = Pool(ordinary, reuse=True)
    pool.put(("first",))
    pool.put(("second",))
    pool.put(("x", "y"))
    assert pool.take(1) == ("first",)
    assert pool.take(1) is None
    assert pool.take(2) == ("x", "y")
    pool.put(("third",))
    pool.clear()
    assert pool.take(1) is None
