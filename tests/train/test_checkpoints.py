"""Saving and restoring: exact, never a half-written checkpoint, and clear words about one of another model."""

import gc
import json
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contexts import data_mesh
from jax.sharding import NamedSharding, PartitionSpec

from train import checkpoints, exports
from train.checkpoints import Checkpoints, DifferentModelError, Position, read, read_newest
from train.pytrees import as_numpy, mean_of_workers
from train.transports.group import Group

ALONE = Group()


def trees(step=0, sharding=None):
    rng = np.random.default_rng(step)
    model = {"w": rng.normal(size=(8, 3, 2)).astype(np.float32), "blocks": {0: {"b": rng.normal(size=(8, 5))}}}
    model["blocks"][0]["b"] = model["blocks"][0]["b"].astype(jnp.bfloat16)
    pieces = {"model": model, "optimizer": (jnp.arange(8), (), {"trace": rng.normal(size=(8, 4))})}
    pieces = jax.tree.map(lambda x: jax.device_put(jnp.asarray(x), sharding), pieces)
    return pieces | {"carry": jax.device_put(jax.random.split(jax.random.key(step), 8), sharding)}


def like(pieces):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), pieces)


def save(folder, *steps, keep=5, sharding=None):
    with Checkpoints(folder, ALONE, keep, together=True) as saver:
        for step in steps:
            position = Position(step=step, examples=7 * step, notes={"lost": (3, 5)}, workers=8)
            saver.save(position, trees(step, sharding))


def newest(folder, wanted, warn=None):
    """The position, the pieces and the steps that could not be read."""
    found = read_newest(folder, lambda path, saved: read(path, saved, "all", wanted), warn or pytest.fail, ALONE)
    return None if found is None else (found.saved.position, found.found, found.unreadable)


@pytest.mark.parametrize("on_mesh", [True, False])
def test_everything_comes_back_bit_for_bit(on_mesh, tmp_path):
    sharding = NamedSharding(data_mesh(8), PartitionSpec("data")) if on_mesh else None
    save(tmp_path / "c", 3, 12, sharding=sharding)
    expected = trees(12, sharding)
    position, pieces, _ = newest(tmp_path / "c", like(expected))
    assert position == Position(step=12, examples=84, notes={"lost": (3, 5)}, workers=8)
    assert jax.tree.structure(pieces) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(pieces), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            assert a.sharding == b.sharding
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(*(jax.random.key_data(tree["carry"]) for tree in (pieces, expected)))


def test_some_pieces_as_numpy(tmp_path):
    save(tmp_path, 1)
    _, pieces, _ = newest(tmp_path, {"model": as_numpy(trees()["model"])})
    assert list(pieces) == ["model"]
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(pieces))
    np.testing.assert_array_equal(pieces["model"]["w"], trees(1)["model"]["w"])


def test_the_newest_stay(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep=2)
    assert checkpoints.steps(tmp_path) == [4, 3]
    save(tmp_path, 5, keep=1)
    assert checkpoints.steps(tmp_path) == [5]
    assert {path.name for path in tmp_path.iterdir()} == {"5"}
    assert checkpoints.steps(tmp_path / "missing") == []
    assert newest(tmp_path / "missing", {}) is None


def test_a_save_is_of_the_moment(tmp_path):
    """What is written in the background is a copy: the arrays may be donated right after."""
    pieces = trees(5)
    expected = jax.tree.map(np.array, pieces["model"])
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)
    with Checkpoints(tmp_path, ALONE, together=True) as saver:
        saver.save(Position(step=5, workers=8), pieces)
        step(pieces["model"])
    _, restored, _ = newest(tmp_path, {"model": as_numpy(expected)})
    jax.tree.map(np.testing.assert_array_equal, restored["model"], expected)


def test_what_is_half_written_is_no_checkpoint(tmp_path):
    save(tmp_path, 1, 2)
    (tmp_path / "2" / "all").rename(tmp_path / "2" / "all.orbax-checkpoint-tmp-17")
    (tmp_path / "3").mkdir()  # begun
    assert checkpoints.steps(tmp_path) == [1]
    assert newest(tmp_path, like(trees()))[0].step == 1
    save(tmp_path, 2)  # the same step, after the interruption
    assert checkpoints.steps(tmp_path) == [2, 1]
    assert not list(tmp_path.glob("2/*tmp*"))


# tensorstore reports other reads, still under way when the first one fails, to an event loop that orbax has closed
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["missing", "truncated", "position"])
def test_a_damaged_checkpoint_is_set_aside(damage, tmp_path):
    save(tmp_path, 1, 2)
    if damage == "position":
        (tmp_path / "2" / "position.json").write_text("{")
    else:
        files = [p for p in (tmp_path / "2" / "all" / "model").rglob("*") if p.is_file() and p.parent.name == "d"]
        assert files
        for path in files:
            path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:10])
    warnings = []
    position, pieces, unreadable = newest(tmp_path, like(trees()), warnings.append)
    time.sleep(0.3)  # for these reads to end within this test
    gc.collect()
    assert (position.step, unreadable) == (1, (2,))
    np.testing.assert_array_equal(pieces["model"]["w"], trees(1)["model"]["w"])
    (warning,) = warnings
    assert "2 cannot be read" in warning
    assert checkpoints.steps(tmp_path) == [2, 1]  # reading changes nothing
    checkpoints.set_aside(tmp_path, unreadable, ALONE)
    assert (tmp_path / "damaged-2").is_dir()
    save(tmp_path, 2)
    assert newest(tmp_path, like(trees()))[0].step == 2


def test_if_none_can_be_read_nothing_starts_anew(tmp_path):
    save(tmp_path, 1, 2)
    for step in ("1", "2"):
        (tmp_path / step / "position.json").write_text("")
    with pytest.raises(ValueError, match=r"none of the checkpoints in .* can be read \(steps 2, 1\)"):
        newest(tmp_path, like(trees()), lambda warning: None)
    assert checkpoints.steps(tmp_path) == [2, 1]


def test_another_model_is_named_and_left_alone(tmp_path):
    save(tmp_path, 1)
    other = like(trees())
    other["model"]["w"] = jax.ShapeDtypeStruct((8, 3, 7), jnp.float32)
    with pytest.raises(
        DifferentModelError, match=r"At \['w'\] it has float32 \[8, 3, 2\], expected float32 \[8, 3, 7\]"
    ):
        newest(tmp_path, other)
    with pytest.raises(DifferentModelError, match=r"At \['more'\] it has nothing, expected int32 \[8\]"):
        newest(tmp_path, {"model": {**like(trees())["model"], "more": jnp.arange(8)}})
    assert checkpoints.steps(tmp_path) == [1]


class Threads(Group):
    """Several processes' part in a checkpoint, played by threads."""

    def __init__(self, rank, size, values, barrier):
        self.rank, self.size = rank, size
        self._values, self._barrier = values, barrier

    def everyone(self, value):
        self._values[self.rank] = value
        self._barrier.wait(20)
        values = list(self._values)
        self._barrier.wait(20)
        return values


def workers(count, work):
    """Runs ``work(group)`` in threads that make up a group."""
    values, barrier = [None] * count, threading.Barrier(count)
    errors = []

    def run(rank):
        try:
            work(Threads(rank, count, values, barrier))
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]


def test_an_error_on_one_process_is_raised_on_all(tmp_path):
    raised = []

    def work(group):
        with pytest.raises((ValueError, RuntimeError)) as error:
            group.agreed(lambda: 1 / group.rank)
        raised.append(str(error.value))
        with pytest.raises(ValueError, match="process 1 differs from process 0: rank: 1; start all processes with"):
            group.check_same({"rank": group.rank, "size": group.size})

    workers(2, work)
    assert sorted(raised) == ["ZeroDivisionError: division by zero", "process 0: ZeroDivisionError: division by zero"]


def test_means_of_workers():
    tree = {
        "a": np.array([[1.0, 2], [3, 6]], np.float32),
        "n": np.array([7, 7]),
        "h": np.full((2, 1), 60000, np.float16),
    }
    means = mean_of_workers(tree)
    np.testing.assert_array_equal(means["a"], np.array([2, 4], np.float32))
    assert means["n"] == 7
    np.testing.assert_array_equal(means["h"], np.array([60000], np.float16))  # summed in float32


def test_export_and_back(tmp_path):
    model = {"params": {"stages": {0: {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3)}}}}
    for _ in range(2):  # the second replaces the first
        exports.export(tmp_path / "model", model, {"classes": ["a"]})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert json.loads((tmp_path / "model" / "description.json").read_text()) == {"classes": ["a"]}
    loaded = exports.load_export(tmp_path / "model", model)
    np.testing.assert_array_equal(loaded["params"]["stages"][0]["w"], model["params"]["stages"][0]["w"])
    other = {"params": {"stages": {0: {"w": np.zeros((2, 4), np.float32)}}}}
    with pytest.raises(ValueError, match="another model"):
        exports.load_export(tmp_path / "model", other)
