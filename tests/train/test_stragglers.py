"""Injected delays are drawn beforehand: the same for every algorithm, whatever happens meanwhile."""

import time

import numpy as np
import pytest

from train.stragglers import Straggler, delay, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", Straggler()),
        ("rotating:0.15", Straggler("rotating", 0.15)),
        ("rotating:0.15:3", Straggler("rotating", 0.15, count=3)),
        ("fixed:2:1.5", Straggler("fixed", 1.5, rank=2)),
        ("lognormal:0.5", Straggler("lognormal", 0.1, sigma=0.5)),
        ("lognormal:0.5:2", Straggler("lognormal", 2.0, sigma=0.5)),
    ],
)
def test_what_is_written_is_read(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "some", "none:1", "rotating", "rotating:0", "rotating:x", "rotating:1:0", "fixed:1", "fixed:-1:1",
             "lognormal:nan", "rotating:inf", "rotating:1:2:3"],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(text):
    with pytest.raises(ValueError, match="--straggler must be none, rotating:SECONDS"):
        parse(text)


def test_rotating_delays_so_many_workers_and_each_about_equally_often():
    draws = np.array([parse("rotating:0.5:2").delays(7, step, 5) for step in range(2000)])
    assert ((draws == 0.5).sum(1) == 2).all()
    np.testing.assert_allclose((draws > 0).mean(0), 0.4, atol=0.05)
    np.testing.assert_array_equal(draws[11], parse("rotating:0.5:2").delays(7, 11, 5))
    assert (draws[:20] != [parse("rotating:0.5:2").delays(8, step, 5) for step in range(20)]).any()


def test_fixed_delays_one_worker_at_every_step():
    for step in range(3):
        np.testing.assert_array_equal(parse("fixed:1:0.2").delays(0, step, 3), [0, 0.2, 0])


def test_lognormal_has_its_median_and_its_sigma():
    draws = np.log([parse("lognormal:0.5:2").delays(0, step, 8) for step in range(2000)])
    assert np.median(draws) == pytest.approx(np.log(2), abs=0.02)
    assert np.std(draws) == pytest.approx(0.5, rel=0.05)


def test_too_few_workers():
    with pytest.raises(ValueError, match="names 3 workers, and there are 2: name fewer"):
        parse("rotating:1:3").check(2)


@pytest.mark.parametrize("kind", ["sleep", "compute"])
def test_a_delay_lasts(kind):
    pause = delay(kind)
    started, used = time.perf_counter(), time.process_time()
    pause(0.1)
    assert time.perf_counter() - started >= 0.1
    busy = time.process_time() - used
    assert busy < 0.05 if kind == "sleep" else busy > 0.005
