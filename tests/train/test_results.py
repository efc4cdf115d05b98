"""What a run leaves for other programs, and the tables that are made of it."""

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest

from train import results
from train.task import Score

ACCURACY = Score("accuracy", "%")


def summary(**changes):
    return {
        "algorithm": "wagma", "workers": 4, "group_size": 2, "sync_period": 10, "steps": 1200, "unit": "images",
        "examples_per_second": 1234.5, "wall_seconds": 12.34, "wait_seconds": [1.0, 2.0], "late_fraction": 0.256,
        "eval": {"loss": 0.012345, "accuracy": 0.98611},
    } | changes  # fmt: skip


def columns(table):
    return {str(column.header): list(column.cells) for column in table.columns}


def test_numbers_that_are_not_finite_become_null(tmp_path):
    with results.MetricsFile(tmp_path / "metrics.jsonl") as metrics:
        metrics.write(step=1, loss=float("nan"))
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": None}


def test_rows_after_the_step_are_dropped_and_half_a_line_too(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5, "loss": 1.0}\n{"step": 10, "loss": 0.5}\n{"step": 15, "lo')
    with results.MetricsFile(path, step=5) as metrics:
        assert metrics.rows == [{"step": 5, "loss": 1.0}]
        metrics.write(step=10, loss=0.25)
    assert path.read_text() == '{"step": 5, "loss": 1.0}\n{"step": 10, "loss": 0.25}\n'


def test_only_one_process_writes(tmp_path):
    with results.MetricsFile(tmp_path / "metrics.jsonl", write=False) as metrics:
        metrics.write(step=1, loss=1.0)
    assert metrics.rows == [{"step": 1, "loss": 1.0}]
    assert not list(tmp_path.iterdir())


def test_what_was_not_measured_stays_null_when_a_run_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with results.MetricsFile(path) as metrics:
        metrics.write(step=5, consensus_distance=None, eval={"accuracy": None})
    with results.MetricsFile(path, step=5) as metrics:
        assert metrics.rows == [{"step": 5, "consensus_distance": None, "eval": {"accuracy": None}}]
    results.write_summary(tmp_path / "summary.json", {"wait_seconds": [None], "out": Path("x"), "rate": np.float32(2)})
    assert results.results(tmp_path) == ({"wait_seconds": [None], "out": "x", "rate": 2.0}, metrics.rows)


def test_tensorboard_gets_every_number(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    from tensorboardX.proto.event_pb2 import Event

    with results.TensorBoard(tmp_path / "tb") as sink, results.MetricsFile(tmp_path / "metrics.jsonl") as metrics:
        metrics.sinks.append(sink)
        metrics.write(step=10, loss=0.5, examples=80, consensus_distance=None)
        metrics.write(step=10, eval={"accuracy": 0.25, "loss": None})
    (path,) = (tmp_path / "tb").iterdir()
    data, found = path.read_bytes(), {}
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    assert found == {("train/loss", 10): 0.5, ("train/examples", 10): 80.0, ("eval/accuracy", 10): 0.25}


def test_tensorboard_hides_what_a_killed_start_has_written(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    starts = []
    for _ in range(2):
        with results.TensorBoard(tmp_path / "tb"):
            pass
    for path in (tmp_path / "tb").iterdir():
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            starts += [event.step] * (event.session_log.status == SessionLog.START)
    assert starts == [1], "of the second start alone"


@pytest.mark.parametrize("value", [[0.5, 0.5], np.ones(3), "good", None])
def test_scores_are_numbers(value):
    assert results.checked_scores({"accuracy": np.float32(0.5), "n": 3}, ACCURACY) == {"accuracy": 0.5, "n": 3}
    with pytest.raises(ValueError, match=r"scores are numbers, got each = .*: give each number a name of its own"):
        results.checked_scores({"accuracy": 0.5, "each": value}, ACCURACY)
    with pytest.raises(ValueError, match=r"the task's score is 'accuracy', but scores\(\) returned error"):
        results.checked_scores({"error": 0.5}, ACCURACY)


def test_a_missing_tensorboard_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"the extra 'tensorboard' brings: run make setup"):
        results.check_tensorboard()


@pytest.mark.parametrize(
    ("waits", "mean"), [([1.0, 3.0], 2.0), ([0.0], 0.0), ([None, None], None), ([1.0, None], None), ([], None)]
)
def test_waited_seconds(waits, mean):
    assert results.waited_seconds({"wait_seconds": waits}) == mean


def test_the_table_of_runs():
    table = results.summary_table([summary(), summary(algorithm="local", group_size=1)], "title", ACCURACY)
    assert table.title == "title"
    assert columns(table) == {
        "algorithm": ["wagma", "local"], "P": ["4"] * 2, "S": ["2", "1"], "sync": ["10"] * 2, "steps": ["1,200"] * 2,
        "images/s": ["1,234"] * 2, "seconds": ["12.3"] * 2, "waited": ["1.5"] * 2, "late": ["25.6%"] * 2,
        "accuracy": ["98.61%"] * 2, "loss": ["0.01235"] * 2,
    }  # fmt: skip
    assert list(columns(table))[-2:] == ["accuracy", "loss"]  # the score first


def test_the_table_shows_what_there_is():
    nothing = {
        "group_size": None, "sync_period": None, "examples_per_second": None, "wall_seconds": None,
        "late_fraction": None, "wait_seconds": [None], "eval": {},
    }  # fmt: skip
    table = columns(results.summary_table([summary(**nothing), summary(wait_seconds=[None])], "", ACCURACY))
    assert "waited" not in table
    assert table["sync"] == ["none", "10"]
    for name in ("S", "images/s", "seconds", "late", "accuracy", "loss"):
        assert table[name][0] == ""
        assert table[name][1]


def test_runs_of_several_tasks_have_a_rate_each():
    table = columns(results.summary_table([summary(), summary(unit="tokens", eval={"bleu": 27.3})], ""))
    assert table["images/s"] == ["1,234", ""]
    assert table["tokens/s"] == ["", "1,234"]
    assert table["bleu"] == ["", "27.30"]
    assert table["accuracy"] == ["0.9861", ""]  # nothing says that it is a share


def test_the_table_of_an_evaluation():
    values = {"reward": 12.5, "length": None, "share": 0.5}
    table = results.evaluation_table(values, Score("reward", "points"))
    cells = [list(column.cells) for column in table.columns]
    assert cells == [["reward (points)", "length", "share"], ["12.50", "", "0.5000"]]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (1.0, "1.000"), (0.98765, "0.9877"), (27.3, "27.30"), (-3.14159, "-3.142"), (999.96, "1000"),
     (1000, "1,000"), (123456.7, "123,457"), (1.23456e-5, "1.235e-05"), (math.nan, "nan"), (None, "")],
)  # fmt: skip
def test_numbers_have_four_digits(value, text):
    assert results.number(value, "loss", ACCURACY) == text
    assert results.number(value, "accuracy", Score("accuracy")) == text


@pytest.mark.parametrize("name", ["accuracy", "top5_accuracy"])
def test_shares_are_percent(name):
    assert results.number(0.98765, name, ACCURACY) == "98.77%"
    assert results.number(0.98765, name, ACCURACY, digits=1) == "98.8%"
    assert results.number(None, name, ACCURACY) == ""
    assert results.number(0.98765, "inaccuracy", ACCURACY) == "0.9877"
