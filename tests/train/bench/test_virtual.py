"""Waiting rules in virtual time, against times counted by hand and bounds that are known."""

import dataclasses

import numpy as np
import pytest

from tests.train.toy import Options, Toy
from train.bench import bounds as bounds_of
from train.bench import virtual
from train.bench.bounds import Reference, computation, rule_of, step_times
from train.bench.virtual import Event, Wait
from train.stragglers import Straggler, parse
from wagma_jax.algorithms.sgp import SgpOptions
from wagma_jax.algorithms.wagma import WagmaOptions

TIMES = np.array([[1.0, 2.0], [3.0, 1.0], [1.0, 2.0], [1.0, 1.0]])  # [steps, workers]


def everyone(worker, round_):
    return (Wait((0, 1), 2),)


def test_by_hand():
    assert virtual.free(TIMES) == pytest.approx(4 / 6 + 4 / 6)
    assert virtual.elapsed(TIMES, everyone) == 2 + 3 + 2 + 1
    assert virtual.elapsed(TIMES, lambda *_: ()) == 6
    every_second = lambda worker, round_: (Wait((0, 1), 2),) if round_ % 2 else ()
    assert virtual.elapsed(TIMES, every_second) == max(1 + 3, 2 + 1) + max(2, 3)
    assert virtual.elapsed(TIMES, lambda worker, round_: (Wait((0, 1), 1),)) == 6  # the first arrival is enough
    # worker 0 goes on at 1.5, 4.5, 5.5 and 6.5, worker 1 at 2, 3.5, 5.5 and 6.5
    patient = lambda worker, round_: (Wait((0, 1), 2, seconds=0.5),)
    assert virtual.elapsed(TIMES, patient) == 6.5
    assert virtual.elapsed(TIMES[:1], patient) == 2
    assert virtual.elapsed(TIMES[:2], patient) == 4.5
    assert virtual.elapsed(TIMES, lambda worker, round_: (Wait((0, 1), 2, seconds=9),)) == 2 + 3 + 2 + 1
    # worker 0 begins the second round at 1, worker 1 at 2; they end it at 4 and 3, since both have begun it
    begun = lambda worker, round_: (Wait((0, 1), 2, Event.BEGUN),)
    assert virtual.elapsed(TIMES[:2], begun) == 4
    assert virtual.elapsed(TIMES[:2, ::-1] * [[1, 1], [0, 1]], begun) == 4  # worker 0 has no second step, and waits for
    # what was sent in the round before: worker 1 ends its first step at 10, for which worker 0 waits in its second
    times, before = np.array([[1.0, 10.0], [1.0, 1.0]]), lambda worker, round_: (Wait((0, 1), 2, Event.ARRIVED_BEFORE),)
    assert virtual.elapsed(times[:1], lambda *wait: before(*wait) if wait[0] == 0 else ()) == 10
    assert virtual.elapsed(times, before) == 11


def test_the_round_clock_by_hand():
    # worker 1 is in its second step when worker 0 arrives at the third round, and joins it there after 4 seconds
    times = np.tile([[1.0, 2.0]], (10, 1))
    assert virtual.elapsed_by_round_clock(times, sync_period=3, steps=5) == (4.0, 5)
    assert virtual.elapsed_by_round_clock(times, sync_period=3, steps=6) == (8.0, 10)


def rate(times, **options):
    """Steps per second over those of Allreduce-SGD."""
    by = lambda **more: virtual.elapsed(times, rule_of(Options(transport="mpi", workers=times.shape[1], **more)))
    return by(algorithm="allreduce") / by(**options)


def trace(name, workers, steps):
    return np.array([parse(f"trace:{name}:1").delays(0, step, workers) for step in range(steps)])


def test_what_traces_allow_at_best():
    """With a global mean every ten steps, against one at each, the figures of whoever derived the traces."""
    slow, uneven = trace("slow-worker", 4, 440), trace("sequence-lengths", 32, 430)
    assert rate(slow, algorithm="wagma") == pytest.approx(1.00, abs=0.005)
    assert rate(uneven, algorithm="wagma") == pytest.approx(1.19, abs=0.015)
    for times, best in ((slow, 1.81), (uneven, 1.31)):
        done = virtual.elapsed_by_round_clock(times, 10, times.size)
        gain = done.steps / done.seconds / (times.size / times.max(1).sum())
        assert 0.93 * best < gain <= best + 0.01  # steps in progress at a sync round are waited for
        assert virtual.free(times) * times.max(1).mean() / times.shape[1] == pytest.approx(best, abs=0.015)


def test_who_waits_for_whom():
    by = lambda **options: rule_of(Options(transport="mpi", workers=4, **options))
    everyone = (Wait((0, 1, 2, 3), 4),)
    assert by(algorithm="allreduce")(0, 0) == everyone
    assert by(algorithm="local", sync_period=3)(0, 1) == ()
    assert by(algorithm="local", sync_period=3)(0, 2) == everyone
    assert by(algorithm="wagma", group_size=2)(0, 0) == ()
    assert by(algorithm="wagma", group_size=2, quorum=2)(1, 0) == (Wait((0, 1), 2),)
    patient = WagmaOptions(quorum_seconds=0.1)
    assert by(algorithm="wagma", group_size=2, quorum=2, wagma=patient)(1, 0) == (Wait((0, 1), 2, seconds=0.1),)
    assert by(algorithm="eager", sync_period=3)(0, 2) == everyone
    ((members, count, event, _),) = by(algorithm="dpsgd")(1, 0)
    assert (sorted(members), count, event) == ([0, 1, 2], 3, Event.BEGUN)  # models from before the step
    ((members, count, event, _),) = by(algorithm="sgp")(0, 1)
    assert (sorted(members), count, event) == ([0, 2], 2, Event.ARRIVED)
    ((members, count, event, _),) = by(algorithm="sgp", sgp=SgpOptions(overlap=1))(0, 2)
    assert (sorted(members), count, event) == ([0, 2], 2, Event.ARRIVED_BEFORE)
    assert by(algorithm="adpsgd")(1, 0) == ()
    # meetings stop everybody, whoever else is waited for
    assert by(algorithm="adpsgd")(1, 49) == by(algorithm="adpsgd", meet_every=20)(1, 19) == everyone
    assert by(algorithm="adpsgd", meet_every=20)(1, 49) == ()
    assert by(algorithm="wagma", group_size=2, sync_period=50, meet_every=40)(0, 39) == everyone


REFERENCE = {"work_seconds": [2.0, 6.0], "local_steps": [4, 4]}


def test_step_times_are_computation_and_delay():
    straggler = Straggler("fixed", 1.0, rank=1)
    times = step_times(straggler, 0, computation(straggler, 0, REFERENCE), 6)
    np.testing.assert_allclose(times, [[0.5, 0.5 + 1.0]] * 6)


def test_step_times_of_a_trace(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("1,1\n3,3\n")
    straggler = parse(f"trace:{path}:1")  # scaled by 1/2
    # worker 0 kept to the 4 seconds of its four steps; worker 1 took 6 of them
    times = step_times(straggler, 0, computation(straggler, 0, {"work_seconds": [4.0, 6.0], "local_steps": [4, 4]}), 2)
    np.testing.assert_allclose(times, [[0.5, 0.75], [1.5, 2.25]])


def test_step_times_where_only_some_steps_are_delayed(tmp_path):
    reference = {"work_seconds": [2.0, 4.0], "local_steps": [4, 4]}
    timed = lambda straggler, steps: step_times(straggler, 0, computation(straggler, 0, reference), steps)
    times = timed(parse("fixed:1:1", 2), 5)
    np.testing.assert_allclose(times, [[0.5, 0.5 + delay] for delay in (1, 0, 1, 0, 1)])
    path = tmp_path / "own.csv"
    path.write_text("1,1\n3,3\n")
    # worker 1 has computed for 2 of its 4 seconds outside of the steps that take the trace's times
    times = timed(parse(f"trace:{path}:1", 2), 4)
    np.testing.assert_allclose(times, [[0.5, 1.0], [0.0, 0.5], [1.5, 2.0], [0.0, 0.5]])


def test_bounds_of_a_run():
    options = Options(transport="mpi", workers=2, steps=10, straggler="fixed:1:1", batch_size=4, algorithm="allreduce")
    whole = options
    reference = {"work_seconds": [1.0, 5.0], "local_steps": [4, 4]}  # 0.25 s of computation, and the delay
    bounds = lambda options, task: bounds_of.bounds(options, task, Reference(reference, Toy(whole)))
    found = bounds(options, Toy(options))
    assert found.ideal == pytest.approx(4 * (1 / 0.25 + 1 / 1.25))
    assert found.rule == pytest.approx(4 * 2 / 1.25)
    by_round = dataclasses.replace(options, clock="round", steps=None, epochs=2.0, algorithm="wagma", sync_period=5)
    # worker 0 comes to the sync round with its fifth step, as worker 1 ends its first
    assert bounds(by_round, Toy(by_round)).rule == pytest.approx(4 * 6 / 1.25)
    assert bounds(dataclasses.replace(by_round, steps=10, epochs=None), Toy(options)).rule is None
    # steps of half the examples take half of the computation
    halves = dataclasses.replace(options, batch_size=2)
    assert bounds(halves, Toy(halves)).ideal == pytest.approx(2 * (1 / 0.125 + 1 / 1.125))
    unknown = Reference({"work_seconds": [None], "local_steps": [4]}, Toy(options))
    assert bounds_of.bounds(options, Toy(options), unknown) is None
