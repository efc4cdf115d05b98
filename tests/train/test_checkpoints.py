"""Saving and restoring: exact, never a half-written checkpoint, and clear words about one of another model."""

import gc
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contexts import data_mesh
from jax.sharding import NamedSharding, PartitionSpec

from train import checkpoints
from train.checkpoints import Checkpoints, DifferentModelError, Position, as_numpy, mean_of_workers, restore_newest


def trees(step=0, sharding=None):
    rng = np.random.default_rng(step)
    model = {"w": rng.normal(size=(8, 3, 2)).astype(np.float32), "blocks": {0: {"b": rng.normal(size=(8, 5))}}}
    model["blocks"][0]["b"] = model["blocks"][0]["b"].astype(jnp.bfloat16)
    items = {"model": model, "optimizer": (jnp.arange(8), (), {"trace": rng.normal(size=(8, 4))}), "strategy": ()}
    return jax.tree.map(lambda x: jax.device_put(jnp.asarray(x), sharding), items)


def like(items):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), items)


def save(folder, *steps, keep=5, sharding=None):
    with Checkpoints(folder, keep) as saver:
        for step in steps:
            saver.save(Position(step=step, examples=7 * step, unreadable=(3, 5), workers=8), trees(step, sharding))


def no_warning(message):
    pytest.fail(message)


@pytest.mark.parametrize("on_mesh", [True, False])
def test_everything_comes_back_bit_for_bit(on_mesh, tmp_path):
    sharding = NamedSharding(data_mesh(8), PartitionSpec("data")) if on_mesh else None
    save(tmp_path / "c", 3, 12, sharding=sharding)
    expected = trees(12, sharding)
    position, items, _ = restore_newest(tmp_path / "c", lambda position: like(expected), no_warning)
    assert position == Position(step=12, examples=84, unreadable=(3, 5), workers=8)
    assert jax.tree.structure(items) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(items), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert a.sharding == b.sharding
        np.testing.assert_array_equal(a, b)


def test_some_items_as_numpy(tmp_path):
    save(tmp_path, 1)
    seen = []

    def wanted(position):
        seen.append(position.workers)
        return {"model": as_numpy(trees()["model"])}

    _, items, _ = restore_newest(tmp_path, wanted, no_warning)
    assert seen == [8]
    assert list(items) == ["model"]
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(items))
    np.testing.assert_array_equal(items["model"]["w"], trees(1)["model"]["w"])


def test_the_newest_stay(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep=2)
    assert checkpoints.steps(tmp_path) == [4, 3]
    assert checkpoints.steps(tmp_path / "missing") == []
    assert restore_newest(tmp_path / "missing", lambda position: {}, no_warning) is None


def test_a_save_is_of_the_moment(tmp_path):
    """What is written in the background is a copy: the arrays may be donated right after."""
    items = trees(5)
    expected = jax.tree.map(np.array, items)
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)
    with Checkpoints(tmp_path) as saver:
        saver.save(Position(step=5, workers=8), items)
        step(items)
    _, restored, _ = restore_newest(tmp_path, lambda position: like(trees(5)), no_warning)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_what_is_half_written_is_no_checkpoint(tmp_path):
    save(tmp_path, 1)
    half = tmp_path / "2.orbax-checkpoint-tmp-17"
    (half / "model").mkdir(parents=True)
    assert checkpoints.steps(tmp_path) == [1]
    assert restore_newest(tmp_path, lambda position: like(trees()), no_warning).position.step == 1
    save(tmp_path, 2)  # the same step, after the interruption
    assert checkpoints.steps(tmp_path) == [2, 1]


# tensorstore reports other reads, still under way when the first one fails, to an event loop that orbax has closed
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["missing", "truncated", "position"])
def test_a_damaged_checkpoint_is_set_aside(damage, tmp_path):
    save(tmp_path, 1, 2)
    if damage == "position":
        (tmp_path / "2" / "position" / "metadata").write_text("{")
    else:
        files = [p for p in (tmp_path / "2" / "model").rglob("*") if p.is_file() and p.parent.name == "d"]
        assert files
        for path in files:
            path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:10])
    warnings = []
    position, items, unreadable = restore_newest(tmp_path, lambda position: like(trees()), warnings.append)
    time.sleep(0.3)  # for these reads to end within this test
    gc.collect()
    assert (position.step, unreadable) == (1, (2,))
    np.testing.assert_array_equal(items["model"]["w"], trees(1)["model"]["w"])
    (warning,) = warnings
    assert "2 cannot be read" in warning
    assert checkpoints.steps(tmp_path) == [2, 1]  # reading changes nothing
    checkpoints.set_aside(tmp_path, unreadable)
    assert (tmp_path / "damaged-2").is_dir()
    save(tmp_path, 2)
    assert restore_newest(tmp_path, lambda position: like(trees()), no_warning).position.step == 2


def test_if_none_can_be_read_nothing_starts_anew(tmp_path):
    save(tmp_path, 1, 2)
    for step in ("1", "2"):
        (tmp_path / step / "position" / "metadata").unlink()
    with pytest.raises(ValueError, match=r"none of the checkpoints in .* can be read \(steps 2, 1\)"):
        restore_newest(tmp_path, lambda position: like(trees()), lambda warning: None)
    assert checkpoints.steps(tmp_path) == [2, 1]


def test_another_model_is_named_and_left_alone(tmp_path):
    save(tmp_path, 1)
    other = like(trees())
    other["model"]["w"] = jax.ShapeDtypeStruct((8, 3, 7), jnp.float32)
    with pytest.raises(
        DifferentModelError, match=r"At \['w'\] it has float32 \[8, 3, 2\], expected float32 \[8, 3, 7\]"
    ):
        restore_newest(tmp_path, lambda position: other, no_warning)
    with pytest.raises(DifferentModelError, match=r"At \['more'\] it has nothing, expected int32 \[8\]"):
        restore_newest(tmp_path, lambda p: {"model": {**like(trees())["model"], "more": jnp.arange(8)}}, no_warning)
    assert checkpoints.steps(tmp_path) == [1]


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
        checkpoints.export(tmp_path / "model", model, {"classes": ["a"]})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert json.loads((tmp_path / "model" / "description.json").read_text()) == {"classes": ["a"]}
    loaded = checkpoints.load_export(tmp_path / "model", model)
    np.testing.assert_array_equal(loaded["params"]["stages"][0]["w"], model["params"]["stages"][0]["w"])
    other = {"params": {"stages": {0: {"w": np.zeros((2, 4), np.float32)}}}}
    with pytest.raises(ValueError, match="another model"):
        checkpoints.load_export(tmp_path / "model", other)
