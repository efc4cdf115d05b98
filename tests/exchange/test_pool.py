"""The pool of memory alone: who uses which buffers, and what is free."""

import jax.numpy as jnp
import numpy as np
import pytest

from wagma_jax.exchange.layouts import make_layouts
from wagma_jax.exchange.pool import Pool, model_signature, signature, sum_signature

ORDINARY, WHOLE = ((3, jnp.dtype("float32")),), ((3, jnp.dtype("float32")), (4, jnp.dtype("float32")))


def model(value, size=3):
    return (jnp.full(size, value, jnp.float32),)


def whole(value):
    """The first buffer is exchanged at ordinary rounds, the second at sync rounds only."""
    return (*model(value), *model(value, size=4))


def same(found, expected):
    return found is not None and len(found) == len(expected) and all(map(lambda a, b: a is b, found, expected))


def taken(pool, kind):
    buffers = pool.take(kind)
    assert buffers is not None
    return buffers


def test_memory_is_free_when_nobody_holds_it_any_more():
    pool, sent = Pool(2, ORDINARY), model(1)
    for _ in range(3):  # the trainer's model, and two sends of it
        pool.hold(sent)
    for left in (2, 1):
        pool.release(sent)
        assert pool.holds(sent) == left
        assert not pool.has(ORDINARY)
        assert pool.take(ORDINARY) is None
    assert pool.has(ORDINARY, releasing=sent)
    pool.release(sent)
    assert (pool.holds(sent), len(pool)) == (0, 0)
    assert pool.has(ORDINARY)
    again = taken(pool, ORDINARY)
    assert same(again, sent)
    assert pool.holds(again) == 1
    assert pool.take(ORDINARY) is None


def test_equal_buffers_are_told_apart_and_no_more_is_kept_than_needed():
    pool, first, second, third = Pool(2, ORDINARY), model(1), model(1), model(1)
    for each in (first, second, third):
        pool.hold(each)
    pool.release(second)
    assert [pool.holds(each) for each in (first, second, third)] == [1, 0, 1]
    pool.release(first)
    pool.release(third)  # two are enough
    assert {id(taken(pool, ORDINARY)[0]) for _ in range(2)} == {id(first[0]), id(second[0])}
    assert pool.take(ORDINARY) is None
    pool.put(model(0, size=4))
    assert pool.take(ORDINARY) is None, "it is of another size"
    pool.put(third)
    pool.clear()
    assert len(pool) == 0
    assert pool.take(ORDINARY) is None


def test_only_the_last_holder_spends_and_nobody_releases_what_is_not_held():
    pool, shared = Pool(1, ORDINARY), model(1)
    pool.hold(shared)
    pool.hold(shared)
    with pytest.raises(AssertionError, match="others use it"):
        pool.spend(shared)
    with pytest.raises(AssertionError, match="somebody uses it"):
        pool.put(shared)
    pool.release(shared)
    pool.spend(shared)
    assert pool.take(ORDINARY) is None, "what was spent is gone"
    with pytest.raises(AssertionError, match="does not hold it"):
        pool.release(shared)
    pool.hold(())
    pool.release(())  # a tree without averaged leaves
    assert pool.take(()) == ()


def test_a_publication_that_an_exchange_reads_is_free_only_afterwards():
    pool, read, new = Pool(1, WHOLE), whole(1), whole(2)
    for _ in ("published", "read"):
        pool.hold(read)
    assert not pool.has(ORDINARY, releasing=read[:1])
    pool.hold(new)
    pool.release(read)
    assert pool.take(ORDINARY) is None
    pool.release(read)
    assert same(pool.take(WHOLE), read)
    assert pool.take(ORDINARY) is None, "the other is still published"


def test_publications_share_the_buffers_that_only_sync_rounds_exchange():
    pool, first, second = Pool(1, WHOLE), whole(1), model(2)
    pool.hold(first)
    pool.hold((*second, first[1]))
    pool.release(first)
    assert [pool.holds((buffer,)) for buffer in first] == [0, 1]
    assert not pool.has(WHOLE)
    assert pool.has(WHOLE, releasing=first[1:])
    assert same(pool.take(ORDINARY), first[:1])
    pool.release((*second, first[1]))
    assert same(pool.take(WHOLE), (*second, first[1]))


def test_publications_of_other_dtypes_than_their_sums_are_no_memory():
    shapes, dtypes = [(5,), (7,)], [np.dtype(jnp.bfloat16), np.dtype(np.float32)]
    layouts = make_layouts(shapes, dtypes, ["mean", "mean"], most_elements=64)
    models, sums = model_signature(layouts), sum_signature(layouts)
    assert models != sums
    pool = Pool(1, sums)
    published = tuple(jnp.zeros(size, dtype) for size, dtype in models)
    pool.hold(published)
    assert not pool.has(sums, releasing=published)
    pool.release(published)
    assert not pool.has(models)
    assert pool.take(sums) is None
    total = tuple(jnp.zeros(size, dtype) for size, dtype in sums)
    pool.put(total)
    assert signature(taken(pool, sums)) == sums
    assert pool.take(sums) is None


def test_as_much_is_kept_as_the_wanted_kinds_hold():
    pool = Pool(1, WHOLE, (WHOLE[1], WHOLE[1]), WHOLE)
    for _ in range(5):
        pool.put(whole(0))
    assert pool.has((WHOLE[1],) * 3)
    assert not pool.has((WHOLE[1],) * 4)
    assert pool.take((WHOLE[1],) * 4) is None
    assert signature(taken(pool, (ORDINARY[0], *(WHOLE[1],) * 3))) == (ORDINARY[0], *(WHOLE[1],) * 3)
    nothing = Pool(0, WHOLE)
    nothing.put(whole(0))
    assert not nothing.has(ORDINARY)
