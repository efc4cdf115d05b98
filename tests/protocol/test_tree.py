"""The tree and the hypercube of workers, for all small numbers of them."""

import pytest

from wagma_jax.protocol import tree
from wagma_jax.protocol.facts import Facts, mask_of, workers_of
from wagma_jax.protocol.messages import Kind


@pytest.mark.parametrize("num_workers", [*range(1, 40), 1_000, 1_024])
def test_all_are_in_the_tree_and_nobody_has_many_neighbours(num_workers):
    most = (num_workers - 1).bit_length()
    below, depth = [], {0: 0}
    for worker in range(num_workers):
        children = tree.children(worker, num_workers)
        assert {tree.parent(child) for child in children} <= {worker}
        depth |= dict.fromkeys(children, depth[worker] + 1)
        below += children
        neighbours = tree.neighbours(worker, num_workers)
        assert {*children, *([tree.parent(worker)] if worker else [])} <= {*neighbours}
        assert all(worker in tree.neighbours(other, num_workers) for other in neighbours)
        assert max(len(children), len(neighbours), depth[worker]) <= most
    assert sorted(below) == list(range(1, num_workers))


def test_facts_are_masks_by_round_and_kind():
    facts = Facts().add(Kind.READY, 3, 5).add(Kind.ARRIVED, 3, 900).add(Kind.ARRIVED, 2, 1).add(Kind.READY, 3, 0)
    assert facts == Facts().add(Kind.ARRIVED, 2, 1).add(Kind.READY, 3, 0).add(Kind.READY, 3, 5).add(
        Kind.ARRIVED, 3, 900
    )
    assert workers_of(facts.who(3, Kind.READY)) == [0, 5]
    assert workers_of(facts.who(3, Kind.READY, Kind.ARRIVED)) == [0, 5, 900]
    assert facts.who(3, Kind.FORCE) == facts.who(4, Kind.READY) == 0
    assert facts.rounds_after(1) == facts.since(2).rounds_after(0) == {2, 3}
    assert facts.rounds_after(2) == facts.since(3).rounds_after(0) == {3}
    assert facts.rounds_after(3) == Facts().rounds_after(-1) == set()
    assert mask_of(workers_of(0b1011)) == 0b1011
