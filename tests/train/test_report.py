"""What a run leaves for people and for other programs."""

import json
import struct

import pytest

from train import report


def test_numbers_that_are_not_finite_become_null(tmp_path):
    with report.MetricsFile(tmp_path / "metrics.jsonl") as metrics:
        metrics.write(step=1, loss=float("nan"))
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": None}


def test_rows_after_the_step_are_dropped_and_half_a_line_too(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5, "loss": 1.0}\n{"step": 10, "loss": 0.5}\n{"step": 15, "lo')
    with report.MetricsFile(path, step=5) as metrics:
        assert metrics.rows == [{"step": 5, "loss": 1.0}]
        metrics.write(step=10, loss=0.25)
    assert path.read_text() == '{"step": 5, "loss": 1.0}\n{"step": 10, "loss": 0.25}\n'


def test_only_one_process_writes(tmp_path):
    with report.MetricsFile(tmp_path / "metrics.jsonl", write=False) as metrics:
        metrics.write(step=1, loss=1.0)
    assert metrics.rows == [{"step": 1, "loss": 1.0}]
    assert not list(tmp_path.iterdir())


def test_tensorboard_gets_every_number(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    from tensorboardX.proto.event_pb2 import Event

    with report.TensorBoard(tmp_path / "tb") as sink, report.MetricsFile(tmp_path / "metrics.jsonl") as metrics:
        metrics.sinks.append(sink)
        metrics.write(step=10, loss=0.5, examples=80)
        metrics.write(step=10, eval={"accuracy": 0.25})
    (path,) = (tmp_path / "tb").iterdir()
    data, found = path.read_bytes(), {}
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    assert found == {("train/loss", 10): 0.5, ("train/examples", 10): 80.0, ("eval/accuracy", 10): 0.25}


def test_a_missing_tensorboard_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"the extra 'tensorboard' brings: run make setup"):
        report.check_tensorboard()
