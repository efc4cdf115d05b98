"""Injected delays are drawn beforehand: the same for every algorithm, whatever happens meanwhile."""

import itertools
import time
import types

import jax
import numpy as np
import pytest

from train import lateness, traces
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
        ("trace:a.csv", Straggler("trace", 0.1, file="a.csv")),
        ("trace:a:b.csv:0.25", Straggler("trace", 0.25, file="a:b.csv")),
        ("trace:C:x", Straggler("trace", 0.1, file="C:x")),
    ],
)
def test_what_is_written_is_read(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "some", "none:1", "rotating", "rotating:0", "rotating:x", "rotating:1:0", "fixed:1", "fixed:-1:1",
             "lognormal:nan", "rotating:inf", "rotating:1:2:3", "trace",
             "trace:", "trace:x.csv:0", "trace:x.csv:-1"],
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


@pytest.mark.parametrize("text", ["rotating:0.5:2", "fixed:1:0.2", "lognormal:0.5:2", "trace:slow-worker:0.2"])
def test_a_delay_in_every_so_many_steps(text):
    """The draws are those of the same delays in every step, so that what is late does not depend on what a step is."""
    whole, spread = parse(text), parse(text, 3)
    for step in range(7):
        expected = np.zeros(3) if step % 3 else whole.delays(5, step // 3, 3)
        np.testing.assert_array_equal(spread.delays(5, step, 3), expected)
        assert spread.pause(5, step, 3, worker=1, spent=0.01) == pytest.approx(
            max(expected[1] - 0.01 * spread.whole_steps, 0.0)
        )


def test_too_few_workers():
    with pytest.raises(ValueError, match="names 3 workers, and there are 2: name fewer"):
        parse("rotating:1:3").check(2)


def test_a_delay_lasts(monkeypatch):
    assert delay("sleep") is time.sleep
    computed, clock = [], itertools.count(0, 0.04)
    done = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda array: computed.append(array) or done(array))
    monkeypatch.setattr("train.stragglers.time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    delay("compute")(0.1)
    assert len(computed) >= 2, "it computes until the time is over"


def write(path, text):
    path.write_text(text)
    return f"trace:{path}:0.5"


def test_a_trace_gives_steps_their_times(tmp_path):
    straggler = parse(write(tmp_path / "own.csv", "step,a,b,c\n7,2,4,6\n\n# a remark\n9,8,10,12\n"))  # median 7
    drawn = [straggler.delays(3, step, 3) * 7 / 0.5 for step in range(5)]
    order = np.argsort(drawn[0])
    np.testing.assert_allclose(
        [row[order] for row in drawn], [[2, 4, 6], [8, 10, 12]] * 2 + [[2, 4, 6]]
    )  # wraps around
    assert {tuple(np.argsort(straggler.delays(seed, 0, 3))) for seed in range(30)} > {(0, 1, 2), (2, 1, 0)}
    # two workers share a replica where there are more workers than replicas; each has its own where there are fewer
    assert sorted(np.round(straggler.delays(1, 0, 6) * 14)) == [2, 2, 4, 4, 6, 6]
    assert len(set(straggler.delays(1, 0, 2))) == 2
    # what is left of the time, however long a worker computes by itself
    whole = straggler.delays(3, 1, 3)[2]
    assert straggler.pause(3, 1, 3, worker=2, spent=0.1) == pytest.approx(whole - 0.1)
    assert straggler.pause(3, 1, 3, worker=2, spent=9.0) == 0
    assert parse("fixed:2:0.3").pause(0, 0, 3, worker=2, spent=9.0) == 0.3  # on top of it


@pytest.mark.parametrize(
    "text",
    [
        "Step,a,b\n7,1,2\n9,3,4\n",
        ",a,b\n0,1,2\n1,3,4\n",  # as pandas writes it
        "# iteration,a,b\n0,1,2\n1,3,4\n",  # as NumPy does
        "a,b\n1,2\n3,4\n",
        "\ufeffstep,a,b\r\n0,1,2\r\n1,3,4\r\n",
        "# a remark, with two commas, and no names\n1,2\n3,4\n",
    ],
)
def test_a_column_that_counts_steps_is_no_replica(tmp_path, text):
    (tmp_path / "own.csv").write_bytes(text.encode())
    np.testing.assert_array_equal(traces.read(str(tmp_path / "own.csv")), [[1, 2], [3, 4]])


def test_traces_that_come_with_the_project():
    assert traces.NAMES == ("sequence-lengths", "slow-worker")
    slow, uneven = traces.read("slow-worker"), traces.read("sequence-lengths")
    assert (slow.shape, uneven.shape) == ((44, 4), (43, 32))
    assert slow.max(1).mean() / slow.mean() == pytest.approx(1.64, abs=0.005)  # as their README says
    assert uneven.max(1).mean() / uneven.mean() == pytest.approx(1.32, abs=0.005)
    drawn = np.array([parse("trace:slow-worker:0.2").delays(0, step, 4) for step in range(44)])
    assert np.median(drawn) == pytest.approx(0.2)
    parse("trace:slow-worker").check(4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3\n", "line 3 has 1 columns, and the first has 2"),
        ("1,2\n3,x\n", "line 2: 'x' is no time of a step"),
        ("1,2\n3,-1\n", "line 2: '-1' is no time"),
        ("1,2\n3,nan\n", "line 2: 'nan' is no time"),
        ("step\n1\n", "has no times: give a CSV file"),
        ("", "has no times"),
        ("0,0,1\n", "half of the times"),
        (b"\xff\xfe\x00", "cannot be read as a CSV file"),
        (None, "there is no file .*: give a CSV file of steps x replicas, or one of those that come with the project"),
    ],
)
def test_files_that_are_no_traces(tmp_path, text, message):
    path = tmp_path / "own.csv"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"^--straggler trace:.*own.csv: .*{message}"):
        parse(f"trace:{path}").check(2)


def test_a_file_that_has_changed_is_read_again(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("1,2\n")
    assert traces.read(str(path)).tolist() == [[1, 2]]
    path.write_text("3,4\n5,6\n")
    assert traces.read(str(path)).tolist() == [[3, 4], [5, 6]]


def test_lateness_as_in_a_real_run(tmp_path):
    path = tmp_path / "late.csv"
    path.write_text("worker_0,worker_1\n0,1\n0,2\n0,0\n")  # worker 0 is never late, the other in two of three rounds
    table = np.array([lateness.draw(0.0, str(path), 5, t, 400) for t in range(6)])
    shares = table.mean(0)
    assert set(np.round(shares, 6)) == {0.0, np.round(2 / 3, 6)}
    assert 0.4 < (shares > 0).mean() < 0.6
    np.testing.assert_array_equal(table[:3], table[3:])  # it begins again after its last round
    assert len({tuple(column) for column in table[:3].T}) == 4  # from different rounds on
    assert (table != [lateness.draw(0.0, str(path), 6, t, 400) for t in range(6)]).any()
    assert lateness.draw(0.0, None, 5, 0, 4) is None
    assert lateness.draw(0.5, None, 5, 0, 4).shape == (4,)
    lateness.check(0.0, str(path))
    with pytest.raises(ValueError, match="both say who is late: drop one"):
        lateness.check(0.1, str(path))
    with pytest.raises(ValueError, match=r"^--late-trace absent: there is no file absent"):
        lateness.check(0.0, "absent")
