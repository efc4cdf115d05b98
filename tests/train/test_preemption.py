"""Rollouts that end early: what is learnt from them, who is cut short, and runs with it."""

import json
import math

import jax
import numpy as np
import pytest
import ranks

from tests.train import runs
from tests.train.test_navigation import MAZES, PPO, options, words
from train import run
from train.bench.bounds import Reference
from train.bench.bounds import bounds as bounds_of
from train.environments.point_goal import batches
from train.experience import on_devices, preemption
from train.navigation import WORKLOAD, Navigation
from train.transports.cutoff import needed
from train.transports.local import LocalPlace, NobodyLate

TAKEN = 3  # of 8 steps


class After(NobodyLate):
    """Cuts short after so many parts, as soon as that is allowed."""

    def __init__(self, parts):
        self.left, self.asked = parts, []

    def pause(self, share, may_end):
        self.asked.append(may_end)
        self.left -= 1
        return self.left < 0 and may_end


@pytest.fixture(scope="module")
def collecting():
    """A task, its model, a carry in the middle of episodes, its environments, and a collector."""
    task = Navigation(options(preempt=0.6, transport="mpi", algorithm="allreduce"))
    world = batches.World(task.options.rules, jax.device_put(task.pool("training", 64)), 4)
    collector = preemption.InParts(LocalPlace(), world, task.network, PPO, task.size)
    model = jax.device_put(task.init(0))
    carry, _ = collector.collect(model, jax.jit(task.carry)(jax.random.key(1)), NobodyLate())
    return task, model, carry, world, collector


def on_host(carry):
    return jax.device_get(carry._replace(key=jax.random.key_data(carry.key), world=()))


def test_a_rollout_in_parts_is_the_same_as_in_one_piece(collecting):
    task, model, carry, world, collector = collecting
    ours, steps = collector.collect(model, carry, NobodyLate())
    assert steps == 8
    whole = on_host(jax.jit(lambda *given: on_devices.collect(world, task.network, PPO, *given))(model, carry))
    ours = on_host(ours)
    assert ours.rollout.pop("valid").all()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, whole)
    assert whole.sums["return"] != 0


def test_a_rollout_that_was_cut_short_teaches_what_its_steps_do(collecting):
    task, model, before, _, collector = collecting
    cutoff = After(TAKEN)
    carry, steps = collector.collect(model, before, cutoff)
    assert (steps, cutoff.asked) == (TAKEN, [False, False, True, True])
    whole, short = on_host(collector.collect(model, before, NobodyLate())[0]), on_host(carry)
    # by hand: the first steps of the whole rollout, and as what follows, the value of where they have led
    taken = {
        name: jax.tree.map(lambda leaf: leaf[:TAKEN], tree)
        for name, tree in whole.rollout.items() if name not in ("recurrent", "valid")
    }  # fmt: skip
    for name in taken.keys() - {"advantage", "return"}:
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x: x[:TAKEN], short.rollout[name]), taken[name])
    rewards, ended = rewards_of(whole.rollout), whole.rollout["start"][1:]
    advantage = np.zeros((TAKEN + 1, 4))
    for t in reversed(range(TAKEN)):
        going_on = np.where(ended[t], 0, 1)
        following = going_on * whole.rollout["value"][t + 1]
        delta = rewards[t] + PPO.discount * following - whole.rollout["value"][t]
        advantage[t] = delta + PPO.discount * PPO.decay * going_on * advantage[t + 1]
    taken["advantage"] = advantage[:TAKEN].astype(np.float32)
    taken["return"] = taken["advantage"] + taken["value"]
    for name in ("advantage", "return"):
        np.testing.assert_allclose(short.rollout[name][:TAKEN], taken[name], rtol=1e-3, atol=1e-4)
        assert not short.rollout[name][TAKEN:].any()
    assert short.sums["steps"] == TAKEN * 4
    np.testing.assert_allclose(short.sums["return"], rewards[:TAKEN].sum(), rtol=1e-3, atol=1e-3)
    assert short.sums["episodes"] == ended[:TAKEN].sum()

    gradients = jax.jit(lambda rollout, update: task.gradients(model, carry._replace(rollout=rollout), update, None))
    update = {"update": np.int32(0)}
    expected = jax.device_get(gradients(taken | {"recurrent": whole.rollout["recurrent"]}, update))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected.grads)) > 1e-3
    # whatever stands in the steps that were not taken
    dirty = jax.tree.map(
        lambda leaf: np.concatenate([leaf[:TAKEN], np.ones_like(leaf[TAKEN:])]),
        {name: tree for name, tree in short.rollout.items() if name not in ("recurrent", "valid")},
    )
    found = jax.device_get(gradients(short.rollout | dirty, update))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found.grads, expected.grads)
    assert found.metrics.pop("collected") == (TAKEN * 4, 8 * 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found.metrics, expected.metrics)


def test_rollouts_in_simulators_are_cut_short_as_well():
    pytest.importorskip("gymnasium", reason="the extra gymnasium is not installed")
    changes = {"preempt": 0.6, "transport": "mpi", "algorithm": "allreduce", "batch_size": 2}
    task = Navigation(options(**changes, simulator=f"{MAZES}:Corridor-v0"))
    carry = jax.jit(task.carry)(jax.random.key(1))
    feed = task.feed(LocalPlace(), 0, 0)
    try:
        collector = feed._collector
        whole, _ = collector.collect(task.init(0), carry, None)
        carry, steps = collector.collect(task.init(0), whole, After(TAKEN))
    finally:
        feed.close()
    whole, short = on_host(whole), on_host(carry)
    assert (steps, whole.sums["steps"], short.sums["steps"]) == (TAKEN, 8 * 2, TAKEN * 2)
    assert whole.rollout["valid"].all()
    assert short.rollout["valid"].sum(0).tolist() == [TAKEN, TAKEN]
    assert short.rollout["advantage"][:TAKEN].all()
    assert not short.rollout["advantage"][TAKEN:].any()
    # it goes on where the whole one has ended
    begins, before = short.rollout["start"][0], whole.rollout["action"][-1]
    assert short.rollout["previous_action"][0].tolist() == np.where(begins, task.spaces.num_actions, before).tolist()
    recurrent = jax.tree.map(np.asarray, (short.rollout["recurrent"], whole.recurrent))
    jax.tree.map(np.testing.assert_array_equal, *recurrent)


def rewards_of(rollout):
    """The rewards of all steps but the last, from their advantages."""
    advantage, value = (np.asarray(rollout[name], np.float64) for name in ("advantage", "value"))
    going_on = np.where(rollout["start"][1:], 0, 1)
    delta = advantage[:-1] - PPO.discount * PPO.decay * going_on * advantage[1:]
    return delta + value[:-1] - PPO.discount * going_on * value[1:]


@pytest.mark.parametrize(
    ("share", "of", "expected"), [(0.6, 4, 3), (0.5, 4, 2), (1.0, 4, 4), (0.01, 4, 1), (0.6, 5, 3), (0.07, 100, 7)]
)
def test_how_many_a_share_is(share, of, expected):
    assert needed(share, of) == expected


@pytest.fixture
def over_mpi():
    pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)


def test_enough_are_counted_while_one_still_works(over_mpi):
    assert ranks.run("preemption_bodies.counts", 3, 3) == [[True] * 3] * 4
    assert ranks.run("preemption_bodies.counts", 1, 2) == [[True] * 2] * 4
    assert ranks.run("preemption_bodies.counts", 4, 2) == [[False] * 2] * 4


def test_a_late_worker_is_cut_short_and_no_other(over_mpi):
    found = ranks.run("preemption_bodies.one_is_late", 0.6, "fixed:3:2.4", 3)
    assert [parts for parts, _, _ in found[:3]] == [[8] * 3] * 3
    parts, _, worked = found[3]
    assert all(2 <= each < 8 for each in parts)
    for delays, each in zip(worked[1::2], parts, strict=True):  # as far as it came
        assert each * 0.3 <= delays
    assert max(worked[::2]) < 0.6, "no delay belongs to these"
    for collected, units, _ in found:  # by three environments; it counts in equal parts for both updates
        halves = [(3 * each // 2, 3 * each - 3 * each // 2) for each in collected]
        assert units == [8, *(unit for both in halves for unit in both)]


def test_nobody_is_cut_short_where_all_must_be_done(over_mpi):
    found = ranks.run("preemption_bodies.one_is_late", 1.0, "fixed:3:0.04", 2)
    assert [parts for parts, _, _ in found] == [[8] * 2] * 4
    assert found[3][2][1] >= 0.04


def test_a_feed_closes_in_the_middle_of_an_iteration(over_mpi):
    """Also one whose process waits for nobody any more, as after an error."""
    found = ranks.run("preemption_bodies.one_is_late", 0.3, "rotating:0.02", 1, True)
    assert [len(parts) for parts, _, _ in found] == [1, 1, 1, 2]


@pytest.mark.long
def test_runs_with_preemption_go_on_in_the_middle_of_an_iteration(over_mpi, tmp_path):
    out = tmp_path / "run"
    changes = {"algorithm": "allreduce", "preempt": 0.5, "straggler": "fixed:1:0.8", "checkpoint_every": 6}
    command = [*words(out=out, **changes, steps=6), "--meet-every", "2"]
    found = ranks.run("preemption_bodies.runs", command, ["--resume", out, "--steps", 12], num_ranks=2, timeout=100)
    assert found[0] == [[8, 8], [8]]
    late = [steps for run_ in found[1] for steps in run_]
    assert all(2 <= steps < 8 for steps in late)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    logged = {row["step"]: row for row in rows if "loss" in row}
    assert list(logged) == [2, 4, 6, 8, 10, 12]
    assert all(math.isfinite(row["loss"]) for row in logged.values())
    # an iteration is four updates, and four environments: each step of a rollout counts for one
    expected = np.cumsum([2 * (8 + steps) for steps in late for _ in range(2)])
    assert [row["examples"] for row in logged.values()] == expected.tolist()
    assert [logged[step]["collected"] for step in (2, 6, 10)] == [pytest.approx((8 + steps) / 16) for steps in late]
    summary = runs.summary(out)
    assert (summary["steps"], summary["examples"]) == (12, expected[-1])
    worked = summary["work_seconds"][1]  # the rest of its delay was spared
    assert sum(late) * 0.1 <= worked < sum(steps + 3 for steps in late) * 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preempt": 0.0}, "--preempt must be above 0 and at most 1, got 0.0"),
        ({"preempt": 1.5}, "--preempt must be above 0 and at most 1, got 1.5"),
        ({"transport": "xla"}, "--preempt 0.6 needs --transport mpi"),
        ({"algorithm": "wagma"}, "--preempt 0.6 is for algorithms whose workers all wait for all in every round"),
        ({"algorithm": "dpsgd"}, "--preempt 0.6 is for algorithms whose workers all wait for all in every round"),
        ({"rollout": 12}, "--preempt 0.6 collects a rollout in 8 equal parts, got --rollout 12"),
    ],
)
def test_where_nobody_can_be_cut_short_it_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        options(**{"preempt": 0.6, "transport": "mpi", "algorithm": "allreduce", **changes}).check()


def test_with_epochs_the_run_ends_by_the_steps_that_were_taken():
    given = {"transport": "mpi", "steps": None, "epochs": 0.01}
    options(**given, algorithm="allreduce", preempt=0.6).check()
    options(**given, algorithm="wagma", sync_period=1, every="iteration", preempt=0.6).check()
    assert options(**given, preempt=0.6).ends_by_units
    assert not options(**given).ends_by_units
    # so a bench does not know what its waiting allows, since nobody knows who will be cut short
    reference = Reference({"work_seconds": [1.0, 1.0], "local_steps": [10, 10]}, Navigation(options()))
    bounds = [
        bounds_of(options(**given, algorithm="allreduce", preempt=share), Navigation(options()), reference)
        for share in (0.6, None)
    ]
    assert [each.rule is None for each in bounds] == [True, False]
    parsed = run.parse(WORKLOAD, ["--transport", "mpi", "--algorithm", "allreduce", "--preempt", "0.6"])
    assert parsed.preempt == 0.6
