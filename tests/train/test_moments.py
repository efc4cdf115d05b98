"""Moments of the optimizer that are averaged with the models: which, when, and to what."""

import jax
import numpy as np
import optax
import pytest

from tests.train import runs
from train import moments
from train.checkpoints import look, read_as_saved
from wagma_jax.algorithms.wagma import WagmaOptions

GROUPS, ALL = 3, 4  # steps done: after an ordinary round of groups of two, and after a sync round


def trained(out, which):
    """The moments of the four workers by name, [num_workers, width], after each of the two rounds."""
    runs.train(out, steps=ALL, checkpoint_every=GROUPS, sync_period=ALL, optimizer="adam", group_size=2, moments=which)
    found = {}
    for step in (GROUPS, ALL):
        checkpoint = out / "checkpoints" / str(step)
        (part,) = look(checkpoint).parts
        for path, leaf in jax.tree_util.tree_leaves_with_path(read_as_saved(checkpoint, part, "optimizer")):
            name = next((name for name in ("mu", "nu") if name in jax.tree_util.keystr(path)), None)
            if name:
                found[name, step] = np.asarray(leaf)
    assert set(found) == {(name, step) for name in ("mu", "nu") for step in (GROUPS, ALL)}
    return found


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("moments") / "own", "own")


@pytest.mark.parametrize("which", ["sync", "round", "second-sync", "second-round"])
def test_which_are_averaged_when(which, own, tmp_path):
    found = trained(tmp_path / which, which)
    for (name, step), values in found.items():
        distinct = len(np.unique(values.round(6), axis=0))
        averaged = (name == "nu" or not which.startswith("second")) and (step == ALL or which.endswith("round"))
        assert distinct == ((1 if step == ALL else 2) if averaged else 4), (name, step)
        if averaged and which.endswith("sync"):  # until then all is as without it
            np.testing.assert_allclose(values, np.broadcast_to(own[name, step].mean(0), values.shape), rtol=1e-4)
    if which.endswith("sync"):
        for name in ("mu", "nu"):
            np.testing.assert_array_equal(found[name, GROUPS], own[name, GROUPS])


def test_they_are_found_by_their_names_and_put_back():
    params = {"w": np.ones(3, np.float32)}
    for optimizer, names in ((optax.adam(1e-3), {"mu", "nu"}), (optax.sgd(0.1, momentum=0.9), {"trace"})):
        state = optimizer.init(params)
        found = moments.select(state, "round")
        assert set(found) == names
        new = {name: jax.tree.map(lambda leaf: leaf + 2, tree) for name, tree in found.items()}
        changed = moments.replace(state, new)
        assert jax.tree.structure(changed) == jax.tree.structure(state)
        jax.tree.map(np.testing.assert_array_equal, moments.select(changed, "sync"), new)
    assert moments.select(optax.adam(1e-3).init(params), "own") == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"moments": "round", "algorithm": "dpsgd"}, "--algorithm dpsgd: leave it out, or use one of local, wagma"),
        (
            {"moments": "round", "transport": "mpi", "wagma": WagmaOptions(late_merge="add")},
            "got --algorithm wagma with WagmaOptions.*late_merge='add'",
        ),
        ({"moments": "sync", "algorithm": "allreduce"}, "is for algorithms that average models after the step"),
        ({"moments": "second-sync", "sync_period": None, "optimizer": "adam"}, "needs sync rounds"),
        ({"moments": "second-round", "optimizer": "sgd"}, "needs an optimizer with moments called nu"),
    ],
)
def test_settings_that_do_not_fit(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        runs.train(tmp_path / "run", steps=2, **options)
    assert not (tmp_path / "run").exists()


def test_two_of_the_same_name():
    state = optax.chain(optax.scale_by_adam(), optax.scale_by_adam()).init({"w": np.ones(2, np.float32)})
    with pytest.raises(ValueError, match="one of each name, got"):
        moments.select(state, "second-round")
