"""Navigation on tiny maps: what is the workload's own. Loop, resume and transports are tested on the toy."""

import functools
import json
import re
import shutil
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ranks
from processes import ROOT

from tests.train import runs
from tests.train.runs import TIMES
from train import parsing, run
from train.checkpoints import look, steps
from train.environments.point_goal import batches
from train.experience import feeds, on_devices, rollouts, simulated
from train.experience.rollouts import Size
from train.fields import flag
from train.learner import Learner
from train.navigation import WORKLOAD, Navigation, Options
from train.ppo import PPOOptions
from train.resume import load_consensus
from train.transports.group import Group

# an iteration is four updates; checkpoints are in the middle of some
SMALL = {
    "workers": 2, "sync_period": 5, "steps": 12, "batch_size": 4, "rollout": 8, "policy": "tiny", "map_size": 12,
    "max_steps": 20, "episodes": 32, "evaluation_episodes": 6, "log_every": 2, "eval_every": 6, "checkpoint_every": 6,
    "picture": False, "schedule": "constant", "warmup": 0.0,
}  # fmt: skip
PPO = PPOOptions(epochs=2, minibatches=2)
PAGE = (ROOT / "docs" / "navigation.md").read_text()
MAZES = "tests.train.environments.mazes"


def options(out=None, **changes):
    return Options(**{**SMALL, "ppo": PPO, "out": out, **changes})


def train(out, **changes):
    return run.train(WORKLOAD, options(out, **changes))


def words(**changes):
    values = {**SMALL, "ppo.epochs": 2, "ppo.minibatches": 2, **changes}
    values = {name: value for name, value in values.items() if name != "picture"}
    return ["--no-picture", *(str(word) for name, value in values.items() for word in (flag(name), value))]


def consensus(out):
    return load_consensus(out / "consensus", Navigation(options()).like, Group())["params"]


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that nobody changes, its summary and its rows."""
    out = tmp_path_factory.mktemp("trained") / "run"
    return out, *train(out, picture=True)


# --- Rollouts ---


@pytest.fixture(scope="module")
def two_rollouts():
    """A task, a model, and the carries of a worker after one and two rollouts."""
    task = Navigation(options())
    world = batches.World(task.options.rules, jax.device_put(task.pool("training", SMALL["episodes"])), 4)
    collect = jax.jit(functools.partial(on_devices.collect, world, task.network, PPO))
    model = task.init(0)
    first = collect(model, jax.jit(task.carry)(jax.random.key(1)))
    return task, model, first, collect(model, first)


def test_a_rollout_is_what_the_policy_did(two_rollouts):
    task, model, first, second = two_rollouts
    taken = second.rollout
    assert bool(jnp.any(jax.tree.leaves(taken["recurrent"])[0] != 0))  # it begins in the middle of episodes
    replay = jax.jit(lambda model, *given: rollouts.policy_of(task.network, model).unroll(*given)[0])
    output = replay(model, taken["observation"], taken["previous_action"], taken["start"], taken["recurrent"])
    chances = np.take_along_axis(
        np.asarray(jax.nn.log_softmax(output.logits)), np.asarray(taken["action"])[..., None], -1
    )
    np.testing.assert_allclose(chances[..., 0], taken["log_prob"], atol=1e-5)
    np.testing.assert_allclose(output.value, taken["value"], atol=1e-5)
    # the second one goes on where the first one ended
    both = jax.tree.map(
        lambda a, b: np.concatenate([a, b]),
        *({name: one.rollout[name] for name in ("start", "previous_action", "action")} for one in (first, second)),
    )
    assert both["start"][0].all()
    assert both["start"][1:].any()
    assert not both["start"].all()
    expected = np.where(both["start"][1:], 4, both["action"][:-1])
    np.testing.assert_array_equal(both["previous_action"][1:], expected)
    assert second.sums["episodes"] >= both["start"][9:].sum()
    assert len(set(first.rollout["action"].ravel().tolist())) == 4


def test_every_update_takes_each_environment_once_per_epoch(two_rollouts):
    _, _, _, carry = two_rollouts
    order = np.asarray(carry.order).reshape(2, -1)
    np.testing.assert_array_equal(np.sort(order, -1), [range(4)] * 2)
    taken = rollouts.minibatch(carry, jnp.int32(3))
    which = carry.order[3]
    np.testing.assert_array_equal(taken["advantage"], carry.rollout["advantage"][:, which])
    np.testing.assert_array_equal(taken["observation"]["goal"], carry.rollout["observation"]["goal"][:, which])
    np.testing.assert_array_equal(
        jax.tree.leaves(taken["recurrent"])[0], jax.tree.leaves(carry.rollout["recurrent"])[0][which]
    )
    counted = [rollouts.episode_metrics(carry, jnp.int32(update))["spl"].count for update in range(4)]
    assert counted == [carry.sums["episodes"], 0, 0, 0]


# --- Runs ---


def test_a_run_and_what_it_leaves(trained):
    out, summary, rows = trained
    assert summary["unit"] == "environment steps"
    assert summary["examples"] == 2 * 3 * 4 * 8
    assert set(summary["eval"]) == {"success", "spl"}
    assert summary["agents"]["oracle"]["success"] > summary["agents"]["random"]["success"]
    logged = [row for row in rows if "loss" in row]
    assert all(np.isfinite(row["loss"]) for row in logged)
    assert all(name in logged[0] for name in ("success", "spl", "return", "entropy"))
    for name in ("episodes.png", "episodes.gif", "training.png"):
        assert (out / name).stat().st_size > 1000
    described = json.loads((out / "consensus" / "description.json").read_text())
    assert described["actions"] == ["forward", "left", "right", "stop"]


def test_a_run_goes_on_exactly_in_the_middle_of_an_iteration(trained, tmp_path):
    original, expected, _ = trained
    out = shutil.copytree(original, tmp_path / "run")
    assert steps(out / "checkpoints") == [12, 6]
    shutil.rmtree(out / "checkpoints" / "12")
    (out / "summary.json").unlink()
    summary, _ = train(out, resume=out)
    assert runs.numbers(out) == runs.numbers(original)
    assert summary["eval"] == expected["eval"]
    same(consensus(out), consensus(original))


@pytest.mark.long
def test_killed_in_the_middle_of_an_iteration_it_goes_on_to_the_same_numbers(trained, tmp_path):
    original, _, _ = trained
    out = tmp_path / "run"
    # the step that the kill comes at is not known; the end, and with it the numbers, are those of the run above
    process = runs.started([sys.executable, "-m", "train.navigation", *words(out=out, checkpoint_every=1)])
    try:
        runs.wait_for(process, lambda: max(steps(out / "checkpoints"), default=0) >= 2)
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode in (-signal.SIGKILL, 0), output
    while steps(out / "checkpoints")[0] % 4 in (0, 3):  # the next step would begin an iteration
        shutil.rmtree(out / "checkpoints" / str(steps(out / "checkpoints")[0]))
    (out / "summary.json").unlink(missing_ok=True)
    assert look(out / "checkpoints" / str(steps(out / "checkpoints")[0])).position.step % 4
    train(out, resume=out)
    assert runs.numbers(out) == runs.numbers(original)
    same(consensus(out), consensus(original))


def test_averaging_once_in_an_iteration_takes_the_same_updates(two_rollouts):
    task, model, carry, _ = two_rollouts
    together = Navigation(options(every="iteration"))
    assert (task.units_per_step, together.units_per_step) == (8, 32)
    assert (task.steps_per_delay, together.steps_per_delay) == (4, 1)
    assert together.batch_shapes[0]["update"].shape == (4,)
    one, all_of_it = (Learner(each, WORKLOAD.optimizer(options()), "models", 0) for each in (task, together))
    step = jax.jit(one.before)
    start = model, jax.jit(one.optimizer_state)(model)
    stepped, now = [], start
    for update in range(4):
        model, optimizer, _, metrics = step(*now, carry, {"update": np.int32(update)}, 0, 0, 0.5)
        now = model, optimizer
        stepped.append(metrics)
    batch = {"update": np.arange(4, dtype=np.int32)}
    model, optimizer, _, metrics = jax.jit(all_of_it.before)(*start, carry, batch, 0, 0, 0.5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, (model, optimizer), now)
    jax.tree.map(close, metrics, jax.tree.map(lambda *each: sum(each), *stepped))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), model["params"], start[0]["params"])
    assert min(jax.tree.leaves(moved)) > 1e-4


def test_units_of_an_iteration_add_up():
    """Also where its updates cannot count for equally many."""

    class Place:
        workers = range(3)
        put = staticmethod(lambda tree: tree)

    collected = []
    feed = feeds.ExperienceFeed(Place(), lambda model, carry: collected.append(carry), Size(5, 3, 4), 4, 1, None)
    batches_made = [feed.next(step, None, step)[0] for step in range(8)]
    assert collected == [0, 4]
    by_epochs = options(epochs=2.0, steps=None)
    task = Navigation(by_epochs)
    assert by_epochs.length(task.units_per_step, task.units_per_epoch).total_steps() == 2_000_000 // (2 * 8)
    assert [batch.arrays["update"].tolist() for batch in batches_made] == [[step % 4] * 3 for step in range(8)]
    assert [batch.units.tolist() for batch in batches_made[:4]] == [[3] * 3, [4] * 3, [4] * 3, [4] * 3]


def test_over_mpi_it_gives_the_numbers_of_one_program(trained, tmp_path):
    pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)
    _, expected, rows = trained
    out = tmp_path / "several"
    command = [*words(out=out), "--quorum", "2", "--meet-every", "2", "--straggler", "fixed:1:0.4"]
    ranks.run("train_bodies.navigation_run", command, num_ranks=2, timeout=100)
    text = (out / "metrics.jsonl").read_text()
    for ours, theirs in zip(map(json.loads, text.splitlines()), rows, strict=True):
        for name in ours.keys() - TIMES - {"eval", "consensus_distance"}:
            number = np.nan if ours[name] is None else ours[name]  # of episodes, if none has ended
            assert number == pytest.approx(theirs[name], rel=1e-3, abs=1e-5, nan_ok=True), name
    summary = runs.summary(out)
    assert summary["eval"] == pytest.approx(expected["eval"], abs=0.1)
    assert 3 * 0.4 <= summary["work_seconds"][1] < 12 * 0.4  # a delay for each of three iterations, not for each step


# --- Simulators ---


def test_it_learns_in_a_simulator(tmp_path):
    pytest.importorskip("gymnasium", reason="the extra gymnasium is not installed")
    changes = {"simulator": f"{MAZES}:Corridor-v0", "batch_size": 2, "checkpoint_every": 0, "evaluation_episodes": 1}
    summary, rows = train(tmp_path / "run", **changes, steps=2, every="iteration", log_every=1)
    assert set(summary["eval"]) == {"success", "spl", "rewards"}
    assert summary["examples"] == 2 * 2 * 16
    logged = [row for row in rows if "loss" in row]
    assert all(np.isfinite(row["loss"]) for row in logged)
    assert all(0 <= row["success"] <= 1 for row in logged)
    assert all(-6 < row["return"] <= 1 for row in logged)


def test_a_process_may_have_no_episode_to_evaluate():
    task = Navigation(options())
    scored = simulated.evaluate("none", 1.0, task.network, 4, {}, [])
    assert [each.shape for each in scored] == [(0,)] * 3


def test_a_simulator_that_raises_ends_the_run_with_its_name(tmp_path):
    pytest.importorskip("gymnasium", reason="the extra gymnasium is not installed")
    out = tmp_path / "run"
    changes = {"simulator": f"{MAZES}:Raises-v0", "batch_size": 2, "workers": 1, "evaluation_episodes": 3, "out": out}
    begun = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        run.main(WORKLOAD, words(**changes))
    message = str(ended.value)
    assert f"worker 0's simulator 0 ({MAZES}:Raises-v0) raised ZeroDivisionError: no such wall: mend it" in message
    assert f"--resume {out}" in message
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 3}, "--batch-size 3 environments cannot be split into --ppo.minibatches 2 equal parts"),
        ({"rollout": 0}, "--rollout must be at least 1, got 0"),
        ({"max_gradient_norm": 0.0}, "--max-gradient-norm must be above 0"),
        ({"sampling": "shard"}, "--sampling shard has no meaning here"),
        ({"every": "iteration", "algorithm": "allreduce"}, "--every iteration is for algorithms that exchange models"),
        ({"map_size": 5}, "--map-size must be at least 8, got 5"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", **changes)
    assert not list(tmp_path.iterdir())


def test_the_commands_of_the_page_exist(monkeypatch):
    monkeypatch.setattr(parsing, "find_options", lambda path: {})
    commands = re.findall(r"python -m train\.navigation([^\n#`]*?)(?: +#|\n|`)", PAGE)
    assert len(commands) >= 5
    for command in commands:
        mpi_only = any(word in command for word in ("--clock", "--straggler", "--preempt"))
        run.parse(WORKLOAD, [*command.split(), *(["--transport", "mpi"] if mpi_only else [])])


@pytest.mark.long
def test_the_example_of_the_page_runs():
    (script,) = re.findall(r"<!-- test: run -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    scope = {}
    exec(script, scope)
    assert scope["seen"]["depth"].shape == (32, 16)
    assert scope["reward"].shape == (32,)


@pytest.mark.long
def test_it_learns_to_find_its_way(tmp_path, optimized):
    summary, _ = run.train(WORKLOAD, Options(out=tmp_path / "run", steps=3000, learning_rate=4e-3))
    assert summary["eval"]["success"] > 0.8
    assert summary["eval"]["spl"] > 0.6
