"""Every step counts once in group sums: all interleavings of small cases, random ones of larger."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protocol.simulation import Violation, explore, walk
from protocol.test_interleavings import choose, clusters
from protocol.weights import WeightedCluster

from wagma_jax.protocol.rules import Inbox, Outbox, Steps, global_mean, group_weights, mean_weights
from wagma_jax.schedule import GroupSchedule


@pytest.mark.parametrize("clock", ["step", "round"])
@pytest.mark.parametrize(
    ("shape", "plans"),
    [
        ((2, 2, 3), ("aaca", "aca")),
        ((2, 2, 3), ("ama", "ama")),
        ((3, 2, 2), ("aa", "a", "a")),
    ],
)
def test_every_interleaving_counts_every_step_once(shape, plans, clock):
    assert explore(WeightedCluster(GroupSchedule(*shape), plans, 1, clock)) > 20


@settings(max_examples=20, deadline=None, derandomize=True)
@given(clusters(6), st.integers(0, 2**32))
def test_random_interleavings_count_every_step_once(case, seed):
    schedule, plans, quorum, clock = case
    walk(WeightedCluster(schedule, plans, quorum, clock), choose(seed, schedule.num_workers))


class CountsAgain(Steps):
    """A publication that is contributed again counts again."""

    def contribute(self):
        return self


class CountsTheLast(Steps):
    """Of steps that were not contributed, only the last counts."""

    def publish(self):
        return super().publish()._replace(fresh=1)


class CountsPastMeans(Steps):
    """Steps go on counting after a global mean."""

    def average(self):
        return self


@pytest.mark.parametrize(
    ("mutation", "message"),
    [
        ({"steps": CountsAgain}, "contributes 2 steps at round 1, not"),
        ({"steps": CountsTheLast}, "counts for 1, not 2|contributes 1 steps"),
        ({"steps": CountsPastMeans}, "a mean counts for no steps"),
        ({"in_turn": False}, "counts for 0, not 1|contributes 0 steps"),  # a step that comes meanwhile is lost
    ],
)
def test_without_a_rule_steps_count_twice_or_never(mutation, message):
    schedule, plans = GroupSchedule(2, 2, 4), ("aaaa", "aaaa")
    with pytest.raises(Violation, match=message):
        explore(WeightedCluster(schedule, plans, **mutation))


def test_steps_of_rounds_of_one_count_when_their_model_is_published():
    outbox = Outbox(-1, "W_0", Steps()).take_step().take_step()
    assert outbox.contribute(is_sync=True) == (outbox, 0)
    assert outbox.publish(1, "W'").steps == Steps(2, 2)
    assert global_mean(outbox, Inbox(), 3, "mean")[0] == Outbox(3, "mean", Steps(unpublished=2))
    assert outbox.publish(1, "W'").contribute(is_sync=False) == (Outbox(1, "W'", Steps(0, 2)), 2)
    assert Outbox(-1, "W_0").take_step().contribute(is_sync=False) == (Outbox(-1, "W_0"), None)


def test_weights():
    assert group_weights([2, 0, 1]) == (2, 0, 1)
    assert group_weights([0, 0]) == mean_weights([0, 0]) == (1, 1)
    assert group_weights([4, 4]) == (4, 4), "a late model is merged in proportion to these"
    assert mean_weights([10, 10]) == (1, 1)
    assert mean_weights([10, 4, 0]) == (5, 2, 0)
