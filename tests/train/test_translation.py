"""Translation: what is the workload's own, on a text of forty words and a Transformer of two layers."""

import dataclasses
import io
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ranks

from models import transformer
from tests.train.runs import TIMES
from train import run, translation
from train.data.text import buckets
from train.data.text.buckets import Shape
from train.data.text.feed import batch_shape
from train.fields import flag
from train.translation import WORKLOAD, Options, Translation

DEFAULTS = {
    "workers": 2, "steps": 6, "sync_period": 2, "vocabulary_size": 320, "buckets": 2, "batch_size": 120,
    "log_every": 2, "eval_every": 4, "checkpoint_every": 4, "beam": 2, "picture": False,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def small():
    """A Transformer of two layers in the place of "tiny"."""
    tiny = transformer.TRANSFORMERS["tiny"]
    smaller = {"d_model": 16, "num_heads": 2, "d_ff": 32, "num_encoder_layers": 1, "num_decoder_layers": 1}
    transformer.TRANSFORMERS["tiny"] = dataclasses.replace(tiny, **smaller)
    yield
    transformer.TRANSFORMERS["tiny"] = tiny


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Parallel files: sentences of 2 to 7 words of forty, the target backwards; with every kind of bad line."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 40, rng.integers(2, 8)) for _ in range(300)]
    source = [" ".join(f"s{word}" for word in row).encode() for row in rows]
    target = [" ".join(f"t{word}" for word in row[::-1]).encode() for row in rows]
    source[:5] = [b"", b"\xff", b"same", b"s1 " * 90, b"s1"]
    target[:5] = [b"t1", b"t1", b"same", b"t1", b"t1 t2 t3 t4 t5 t6 t7 t8"]
    paths = folder / "text.en", folder / "text.de"
    for path, lines in zip(paths, (source, target), strict=True):
        path.write_bytes(b"\n".join(lines) + b"\n")
    return {"source": paths[0], "target": paths[1]}


def train(out, text, **options):
    return run.train(WORKLOAD, Options(**{**DEFAULTS, **text, "out": out, **options}))


@pytest.fixture(scope="module")
def learned(text, tmp_path_factory):
    """A run that nobody changes, its summary and its rows."""
    out = tmp_path_factory.mktemp("learned") / "run"
    return out, *train(out, text, picture=True, dropout=0.1)


def numbers(rows):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def test_a_run_and_what_it_leaves(learned, capsys):
    out, summary, rows = learned
    assert summary["unit"] == "tokens"
    assert set(summary["eval"]) == {"BLEU", "chrF", "copy_BLEU", "nearest_BLEU"}
    assert summary["signature"].startswith("nrefs:1|")
    assert 0 < summary["padding"] < 0.3
    assert len(summary["batch_shapes"]) == 2
    left_out = summary["pairs"]["training"]["left_out"]
    assert left_out.pop("kept for the test") == summary["pairs"]["test"]["read"] == 15
    assert left_out == {
        "not UTF-8": 1, "empty": 1, "source equals target": 1, "over 48 tokens": 1, "lengths differ over 4 times": 1
    }  # fmt: skip
    logged = [row for row in rows if "loss" in row]
    assert all(0 <= row["padding"] < 0.4 and np.isfinite(row["loss"]) for row in logged)
    assert all((out / name).stat().st_size > 10_000 for name in ("lengths.png", "training.png"))
    assert not (out / "step-times.png").exists()
    written = (out / "translations.txt").read_text("utf-8").split("\n\n")[:-1]
    assert len(written) == 15
    assert all(block.startswith("source       s") for block in written)
    run.main(WORKLOAD, ["--evaluate", str(out / "consensus")])
    assert f"{summary['eval']['chrF']:#.4g}".rstrip(".") in capsys.readouterr().out


def test_it_goes_on_bit_for_bit(learned, text, tmp_path):
    """With dropout, in the middle of a cycle of buckets."""
    out, summary, rows = learned
    begun = tmp_path / "begun"
    shutil.copytree(out, begun)
    shutil.rmtree(begun / "checkpoints" / "6")  # killed after the checkpoint at step 4
    (begun / "summary.json").unlink()
    (begun / "vocabulary.model").rename(tmp_path / "kept")
    with pytest.raises(ValueError, match=r"has no vocabulary.model"):
        train(None, text, resume=begun, dropout=0.1)
    (tmp_path / "kept").rename(begun / "vocabulary.model")
    other = {side: tmp_path / path.name for side, path in text.items()}  # the same lines in another order
    for side, path in other.items():
        path.write_bytes(b"".join(reversed(text[side].read_bytes().splitlines(keepends=True))))
    with pytest.raises(ValueError, match="text"):
        train(None, other, resume=begun, dropout=0.1)
    again, rows_again = train(None, text, resume=begun, dropout=0.1)
    assert numbers(rows_again) == numbers(rows)
    assert again["examples"] == summary["examples"]
    text_of = lambda folder: (folder / "translations.txt").read_bytes()
    assert text_of(begun) == text_of(out)


def test_translating_text(learned, tmp_path, capsys, monkeypatch):
    """A line for a line, and the same one whatever lines it comes with."""
    out, _, _ = learned
    lines = ["s1 s2", "", "s3 s4 s5 s6", "s7", " s1   s2 ", "s1 s2 s3 " * 30]
    (tmp_path / "text").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfs3 s4 s5 s6\n")))
    translation.main(["--translate", str(tmp_path / "text"), "--exported", str(out / "consensus")])
    told = capsys.readouterr()
    translated = told.out.split("\n")
    assert len(translated) == len(lines) + 1
    assert translated[1] == ""
    assert translated[0] == translated[4]
    assert "line 6 has" in told.err
    assert "the model has learned from 48 at most" in told.err
    translation.main(["--translate", "-", "--exported", str(out / "checkpoints" / "6")])
    assert capsys.readouterr().out.split("\n") == [translated[2], ""]
    (tmp_path / "text").write_bytes(b"fine\n\xff\n")
    (tmp_path / "long").write_text("fine\n" + "s1 " * 600)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "options.json").write_text('{"image_size": 28}')
    for words, message in (
        (["--translate", str(tmp_path / "text"), "--exported", str(out)], "line 2 of .*text is not valid UTF-8"),
        (
            ["--translate", str(tmp_path / "long"), "--exported", str(out)],
            "line 2 has .* tokens, more than 1024: split",
        ),
        (["--translate", str(tmp_path / "text")], "--translate and --exported go together"),
        (["--translate", "-", "--exported", str(tmp_path)], "belongs to no run"),
        (["--translate", "-", "--exported", str(tmp_path / "images")], "images is of another script or version"),
    ):
        with pytest.raises(SystemExit, match=message):
            translation.main(words)


@pytest.fixture(scope="module")
def batch(text):
    """Options of a task, and a batch of eight pairs, of which the last four are padding only."""
    rng = np.random.default_rng(1)
    tokens = {
        side: rng.integers(4, 300, (8, length)).astype(np.int32) for side, length in (("source", 9), ("target", 7))
    }
    for array in tokens.values():
        array[4:] = 0
        array[0, 5:] = 0
    options = {**DEFAULTS, **text, "dropout": 0.0}
    return options, jax.tree.map(jnp.asarray, tokens)


def gradients(options, batch, key=0):
    task = Translation(Options(**options))
    return task, jax.jit(task.gradients)(task.init(0), (), batch, jax.random.key(key))


def test_accumulation_gives_the_gradient_of_one_batch(batch):
    """Also where two of four micro-batches are nothing but padding."""
    options, arrays = batch
    task, whole = gradients(options, arrays)
    _, parts = gradients({**options, "accumulate": 4}, arrays)
    for a, b in zip(*map(jax.tree.leaves, (whole.grads, parts.grads)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-5), whole.metrics, parts.metrics))
    assert float(whole.metrics["loss"].count) == 4 * 7 - 2
    assert float(whole.metrics["padding"].total) == 8 * 16 - (4 * 16 - 4 - 2)
    # the loss of the whole batch divided by the usual number of tokens, not by those that are there
    half = jax.tree.map(lambda x: x[:4], arrays)
    _, same = gradients(options, half)
    np.testing.assert_allclose(*[jax.tree.leaves(made.grads)[0] for made in (whole, same)], rtol=1e-4, atol=1e-6)
    assert 0.9 < task.target_per_step / (DEFAULTS["batch_size"] / 2) < 1.1


def test_dropout_follows_the_key(batch):
    options, arrays = batch
    options = {**options, "dropout": 0.3}
    task = Translation(Options(**options))
    step, model = jax.jit(task.gradients), task.init(0)
    losses = [float(step(model, (), arrays, jax.random.key(key)).metrics["loss"].total) for key in (1, 2, 1)]
    assert losses[0] == losses[2] != losses[1]


def test_over_mpi_it_gives_the_numbers_of_one_program(text, tmp_path):
    """With one bucket, as workers draw buckets of their own over MPI."""
    pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)
    options = {**DEFAULTS, **text, "buckets": 1, "beam": 1, "steps": 4, "quorum": 2, "out": tmp_path / "several"}
    words = [str(word) for name, value in options.items() if name != "picture" for word in (flag(name), value)]
    ranks.run("train_bodies.translation_run", words, num_ranks=2, timeout=100)
    summary, expected = train(tmp_path / "alone", text, buckets=1, beam=1, steps=4)
    lines = (tmp_path / "several" / "metrics.jsonl").read_text().splitlines()
    for ours, theirs in zip(map(json.loads, lines), expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in {"step", "examples", "loss", "padding"} & ours.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)
    several = json.loads((tmp_path / "several" / "summary.json").read_text())
    assert several["eval"] == pytest.approx(summary["eval"], abs=2)
    assert (tmp_path / "several" / "step-times.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 20}, "--batch-size 20 tokens cannot hold the longest pair"),
        ({"max_tokens": 2}, "no training pairs are left of text.en, 0 of 300 pairs .*: raise --max-tokens"),
        ({"max_ratio": 0.5}, "--max-ratio must be at least 1, got 0.5"),
        ({"buckets": 0}, "--buckets must be at least 1, got 0"),
        ({"dropout": 1.0}, r"--dropout must be in \[0, 1\), got 1.0"),
        ({"length_penalty": -1.0}, "--length-penalty must not be negative, got -1.0"),
        ({"length_penalty": float("nan")}, "--length-penalty must not be negative, got nan"),
        (
            {"sampling": "shard", "workers": 300},
            "shard needs a training pair for each of 300 workers, got 28",
        ),
        ({"vocabulary_size": 100}, "no vocabulary of --vocabulary-size 100 can be made"),
        ({"target": None}, "--source and --target go together"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(options, message, text, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", text, **options)
    assert not list(tmp_path.iterdir())


def test_a_preset_gives_the_defaults():
    read = run.parse(WORKLOAD, ["--preset", "wmt14-en-de-base", "--workers", "8"])
    assert (read.model, read.workers, read.batch_size) == ("base", 8, 8192)
    read.check()


def test_the_default_shapes_have_little_padding():
    """Of the text that comes with the project."""
    task = Translation(Options())
    assert task.padding < 0.15
    assert len(task.batch_shapes) == len(task.shapes) <= 10
    assert task.batch_shapes[0] == batch_shape(task.shapes[0])
    assert buckets.padding(task.train.lengths, [*task.shapes[:-1], Shape(48, 48, 1)]) == pytest.approx(task.padding)
