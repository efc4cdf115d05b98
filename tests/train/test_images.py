"""Image training on digits: what is the workload's own. Loop, resume and transports are tested on the toy."""

import json
import shutil
import sys

import numpy as np
import pytest
import ranks
from processes import run_all

from tests.train.runs import TIMES
from train import run
from train.fields import flag
from train.images import WORKLOAD, Options


def train(out, **options):
    defaults = {"workers": 4, "steps": 8, "batch_size": 4, "log_every": 2, "eval_every": 4}
    return run.train(WORKLOAD, Options(**{**defaults, "out": out, **options}))


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run that nobody changes, its summary and its rows."""
    out = tmp_path_factory.mktemp("learned") / "run"
    summary, rows = train(
        out, steps=100, batch_size=16, learning_rate=0.3, late_probability=0.1, log_every=20, eval_every=50
    )
    return out, summary, rows


def test_wagma_learns_the_digits(learned):
    _, summary, _ = learned
    assert summary["eval"]["accuracy"] > 0.95


def test_a_run_and_its_model(learned, tmp_path, capsys):
    original, summary, rows = learned
    out = shutil.copytree(original, tmp_path / "run")
    assert summary["unit"] == "images"
    assert (summary["test_examples"], summary["unreadable"]) == (360, {"train": 0, "test": 0})
    assert set(summary["eval"]) == {"accuracy", "loss"}
    assert np.isfinite([row["loss"] for row in rows if "loss" in row]).all()
    described = json.loads((out / "consensus" / "description.json").read_text())
    assert described["model"] == "resnet_tiny"
    assert described["input"]["shape"] == [8, 8, 1]
    assert described["classes"] == list("0123456789")
    run.main(WORKLOAD, ["--evaluate", str(out)])
    assert f"{summary['eval']['accuracy']:.2%}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--model is resnet_tiny in the run that --resume names, got resnet_small"):
        train(out, steps=112, resume=out, learning_rate=0.3, model="resnet_small")
    with pytest.raises(ValueError, match="--dataset is digits in the run"):
        train(out, steps=112, resume=out, learning_rate=0.3, dataset="fashion-mnist")
    # somebody put another run's checkpoints there, or edited the options
    written = json.loads((out / "options.json").read_text())
    (out / "options.json").write_text(json.dumps({**written, "model": "resnet_small"}))
    with pytest.raises(ValueError, match="it holds another model or optimizer than these options ask for"):
        train(out, steps=112, resume=out, learning_rate=0.3, model="resnet_small")
    with pytest.raises(ValueError, match="it holds another model"):
        run.evaluate(WORKLOAD, Options(evaluate=out, model="resnet_small"))


def test_the_whole_recipe(tmp_path):
    """Every option at once: nothing but that they work together."""
    summary, rows = train(
        tmp_path / "run", sampling="shard", augment="crop-flip", optimizer="lars", schedule="step", label_smoothing=0.1,
        precision="bfloat16", accumulate=2, nesterov=False, scale_learning_rate=True, late_probability=0.2,
    )  # fmt: skip
    assert np.isfinite([row["loss"] for row in rows if "loss" in row]).all()
    assert summary["options"]["precision"] == "bfloat16"


def test_over_mpi_it_gives_the_numbers_of_one_program(tmp_path):
    """With the statistics of the normalization, which are exchanged; all else about MPI is tested on the toy."""
    pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)
    options = {
        "workers": 2, "sync_period": 2, "steps": 4, "batch_size": 8, "augment": "flip", "log_every": 2, "eval_every": 4
    }  # fmt: skip
    words = [str(word) for name, value in options.items() for word in (flag(name), value)]
    several = tmp_path / "several"
    command = [*words, "--quorum", "2", "--no-picture", "--out", str(several)]
    ranks.run("train_bodies.image_run", command, num_ranks=2, timeout=100)
    _, expected = train(tmp_path / "alone", **options, picture=False)
    text = (several / "metrics.jsonl").read_text()
    for ours, theirs in zip(map(json.loads, text.splitlines()), expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - TIMES - {"eval"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)
        if "eval" in ours:  # the statistics are in the loss
            assert ours["eval"]["loss"] == pytest.approx(theirs["eval"]["loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"workers": 8, "batch_size": 180},
            "--workers 8 times --batch-size 180 is more than the 1437 training examples",
        ),
        ({"accumulate": 3}, "--batch-size 4 cannot be split into --accumulate 3 equal parts"),
        ({"loader_threads": 0}, "--loader-threads must be at least 1"),
        ({"dataset": "cats"}, "--dataset must be digits, fashion-mnist.*got 'cats'"),
        ({"dataset": "imagefolder"}, "--dataset imagefolder needs to know where"),
        ({"dataset": "imagefolder:/nowhere/at/all"}, "/nowhere/at/all"),
        ({"dataset": "tfrecord:/nowhere/*"}, "/nowhere"),
        ({"dataset": "fashion-mnist:/nowhere"}, "python -m train.fetch fashion-mnist"),
        ({"dataset": "imagefolder:x", "channels": 2}, "--channels must be 1"),
        ({"sampling": "shard", "workers": 1500, "batch_size": 1}, "is more than the 1437 training examples"),
        ({"momentum": -0.5}, "--momentum must be in"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", **options)
    assert not list(tmp_path.iterdir())


def test_a_preset_gives_the_defaults():
    read = run.parse(WORKLOAD, ["--preset", "imagenet-resnet50", "--workers", "8"])
    assert (read.model, read.workers, read.preset) == ("resnet50", 8, "imagenet-resnet50")
    with pytest.raises(SystemExit):
        run.parse(WORKLOAD, ["--preset", "imagenet-resnet51"])


def test_training_imports_no_workload_it_does_not_need():
    code = (
        "import sys, tests.train.toy\n"
        "heavy = {'flax', 'grain', 'sklearn', 'PIL', 'orbax', 'matplotlib', 'mpi4py', 'google.protobuf'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ((status, output),) = run_all([[sys.executable, "-c", code]], timeout=60)
    assert (status, output.strip()) == (0, "[]")
