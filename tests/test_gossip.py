"""Who receives from whom in gossip schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wagma_jax.algorithms import Settings, build
from wagma_jax.gossip import GossipSchedule, exponential, ring

SIZES = [1, 2, 3, 4, 5, 8, 13]


@pytest.mark.parametrize("graph", [ring, exponential])
@pytest.mark.parametrize("num_workers", SIZES)
def test_mixing_is_doubly_stochastic_and_sends_match_receipts(graph, num_workers):
    schedule = graph(num_workers)
    product = np.eye(num_workers)
    for t in range(2 * schedule.period):
        matrix = schedule.matrix(t)
        np.testing.assert_allclose(matrix.sum(0), 1)
        np.testing.assert_allclose(matrix.sum(1), 1)
        for worker in range(num_workers):
            others = {worker, *schedule.receives_from(worker, t)}
            assert set(np.flatnonzero(matrix[worker])) == others
            assert set(np.flatnonzero(matrix[:, worker])) == {worker, *schedule.sends_to(worker, t)}
            assert len(others) <= schedule.group_size
        product = matrix @ product
    for _ in range(60):
        for t in range(schedule.period):
            product = schedule.matrix(t) @ product
    np.testing.assert_allclose(product, 1 / num_workers, atol=0.02)  # all influence all in the end


def test_rings():
    assert [ring(n).group_size for n in SIZES] == [1, 2, 3, 3, 3, 3, 3]
    assert ring(5).receives_from(0, 7) == (4, 1)
    np.testing.assert_array_equal(ring(2).matrix(0), np.full((2, 2), 0.5))
    np.testing.assert_array_equal(ring(3).matrix(0), np.full((3, 3), 1 / 3))


@pytest.mark.parametrize("num_workers", [2, 4, 8, 16])
def test_exponential_graphs_reach_the_mean_in_a_period(num_workers):
    schedule, product = exponential(num_workers), np.eye(num_workers)
    assert schedule.period == num_workers.bit_length() - 1
    for t in range(schedule.period):
        assert schedule.sends_to(0, t) == (2**t,)
        product = schedule.matrix(t) @ product
    np.testing.assert_allclose(product, 1 / num_workers)


@pytest.mark.parametrize("graph", [ring, exponential])
def test_numbers_of_numpy_and_what_is_no_number(graph):
    assert graph(np.int64(6)) == graph(6)
    with pytest.raises(ValueError, match=r"num_workers must be an integer, got 2\.5"):
        graph(2.5)


@pytest.mark.parametrize("name", ["dpsgd", "sgp"])
def test_policies_of_gossip(name):
    """Kept leaves are not mixed, and there are no sync rounds for others."""
    start = {"mask": jnp.full((4, 2), jnp.finfo(jnp.float32).min), "w": jnp.arange(8.0).reshape(4, 2)}
    policy = lambda path, leaf: "keep" if path[0].key == "mask" else "mean"
    for chosen in (policy, lambda path, leaf: "sync"):
        strategy = build(name, Settings(4, policy=chosen))

        def mixed(tree, strategy=strategy):
            return strategy.combine(tree, tree, strategy.init(tree), None)[0]

        run = jax.vmap(mixed, axis_name="data")
        if chosen is policy:
            new = run(start)
            np.testing.assert_array_equal(new["mask"], start["mask"])
            assert (new["w"] != start["w"]).any()
        else:
            with pytest.raises(ValueError, match="returned 'sync', but gossip has no sync rounds"):
                run(start)


@pytest.mark.parametrize("name", ["dpsgd", "sgp", "local", "wagma", "allreduce"])
def test_what_only_processes_have_is_refused_in_one_program(name):
    with pytest.raises(ValueError, match="on_nonfinite='skip' needs a process for each worker, got one program"):
        build(name, Settings(4, on_nonfinite="skip"))


def test_what_people_read():
    assert exponential(8).describe() == "8 workers, each sends to 1 other, in turn of 3 rounds"
    assert ring(8).describe() == "8 workers, each sends to 2 others, the same every round"
    assert (ring(8).group_sizes, ring(8).sync_period) == ([3], None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, ((0,),)), "num_workers must be at least 1, got 0"),
        ((2.5, ((0,),)), "num_workers must be an integer"),
        *(((3, shifts), "shifts must have for each round a tuple of distinct shifts below num_workers=3, 0 first")
          for shifts in ((), ((),), ((1, 0),), ((0, 1, 1),), ((0, 3),), ((0, -1),))),
    ],
)  # fmt: skip
def test_bad_schedules(arguments, message):
    with pytest.raises(ValueError, match=message):
        GossipSchedule(*arguments)
