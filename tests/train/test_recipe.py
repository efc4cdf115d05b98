"""Optimizers against NumPy, schedules at their corners, and accumulated gradients wherever a step may run."""

import dataclasses
import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tyro
from contexts import CONTEXTS, data_mesh
from flax import nnx

import wagma_jax as wagma
from models.resnet import RESNETS, ResNet
from train.recipe import (
    Progress,
    RecipeOptions,
    create_optimizer,
    cross_entropy,
    learning_rate_schedule,
    mean_loss_and_gradients,
)


def trajectory(options, params, gradients, progress):
    """The parameters after every step, as the optimizer takes them."""
    optimizer = create_optimizer(options, progress)
    params = jax.tree.map(jnp.asarray, params)
    state, update, result = optimizer.init(params), jax.jit(optimizer.update), []
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        result.append(params)
    return result


def draw(steps, seed=0):
    random = np.random.default_rng(seed)

    def tree():
        return {"kernel": random.normal(size=(3, 2)), "bias": random.normal(size=2), "scale": random.normal(size=())}

    return tree(), [tree() for _ in range(steps)]


def rate_at(options, step, total):
    """The cosine after a warm-up, in float64."""
    share = step / total
    if share < options.warmup:
        return options.learning_rate * share / options.warmup
    return options.learning_rate * (1 + math.cos(math.pi * (share - options.warmup) / (1 - options.warmup))) / 2


@pytest.mark.parametrize(
    ("decoupled", "nesterov", "weights"),
    [
        (False, False, [0.45, -0.3475]),
        (False, True, [0.175, -0.725625]),
        (True, False, [0.45, -0.3225]),
        (True, True, [0.2, -0.685]),
    ],
)
def test_two_steps_by_hand(decoupled, nesterov, weights):
    options = RecipeOptions(
        learning_rate=0.5, warmup=0.0, schedule="constant", momentum=0.5, weight_decay=0.1,
        nesterov=nesterov, decoupled_weight_decay=decoupled,
    )  # fmt: skip
    steps = trajectory(options, {"w": np.ones((1, 1), np.float32)}, [{"w": jnp.ones((1, 1))}] * 2, Progress(2))
    np.testing.assert_allclose([step["w"][0, 0] for step in steps], weights, rtol=1e-6)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_follows_its_equations(decoupled, nesterov):
    options = RecipeOptions(
        learning_rate=0.3, warmup=0.25, momentum=0.8, weight_decay=0.05,
        nesterov=nesterov, decoupled_weight_decay=decoupled,
    )  # fmt: skip
    params, gradients = draw(8)
    actual = trajectory(options, params, gradients, Progress(8))
    momenta = dict.fromkeys(params, 0.0)
    for step, gradient in enumerate(gradients):
        rate = rate_at(options, step, 8)
        for name, weights in params.items():
            decay = 0.05 * weights if name == "kernel" else 0.0
            direction = gradient[name] + (0.0 if decoupled else decay)
            momenta[name] = 0.8 * momenta[name] + direction
            ahead = direction + 0.8 * momenta[name] if nesterov else momenta[name]
            params[name] = weights - rate * (ahead + (decay if decoupled else 0.0))
            np.testing.assert_allclose(actual[step][name], params[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_follows_its_equations(nesterov):
    """You et al., 2017, algorithm 1: the rate is part of what the momentum adds up."""
    options = RecipeOptions(
        optimizer="lars", learning_rate=20.0, warmup=0.25, momentum=0.8, weight_decay=0.05, nesterov=nesterov
    )
    params, gradients = draw(8)
    actual = trajectory(options, params, gradients, Progress(8))
    velocities = dict.fromkeys(params, 0.0)
    for step, gradient in enumerate(gradients):
        for name, weights in params.items():
            direction, local_rate = gradient[name], 1.0
            if name == "kernel":
                direction = direction + 0.05 * weights
                local_rate = 0.001 * np.linalg.norm(weights) / np.linalg.norm(direction)
            push = rate_at(options, step, 8) * local_rate * direction
            velocities[name] = 0.8 * velocities[name] + push
            params[name] = weights - (push + 0.8 * velocities[name] if nesterov else velocities[name])
            np.testing.assert_allclose(actual[step][name], params[name], rtol=1e-4, atol=1e-5)


@cache
def resnet():
    """The graph of a tiny ResNet for evaluation, its parameters, and its statistics."""
    model = nnx.jit(lambda: ResNet(RESNETS["resnet_tiny"], rngs=nnx.Rngs(0)))()
    model.eval()
    return nnx.split(model, nnx.Param, nnx.BatchStat)


@pytest.mark.parametrize("changes", [{}, {"decoupled_weight_decay": True}, {"optimizer": "lars"}], ids=str)
def test_norms_and_biases_of_a_resnet_do_not_decay(changes):
    options = RecipeOptions(
        learning_rate=0.5, warmup=0.0, schedule="constant", momentum=0.0, weight_decay=0.1, **changes
    )
    _, params, _ = resnet()
    params = jax.tree.map(lambda leaf: leaf + 1.0, params)  # no zeros, which cannot be seen to decay
    (without,) = trajectory(options, params, [jax.tree.map(jnp.zeros_like, params)], Progress(1))
    (pushed,) = trajectory(options, params, [jax.tree.map(jnp.ones_like, params)], Progress(1))
    ranks = set()
    leaves = (jax.tree.leaves_with_path(params), jax.tree.leaves(without), jax.tree.leaves(pushed))
    for (path, before), still, after in zip(*leaves, strict=True):
        name = jax.tree_util.keystr(path)
        ranks.add(before.ndim)
        if before.ndim == 1:
            assert "kernel" not in name
            np.testing.assert_array_equal(still, before)
            np.testing.assert_allclose(after, before - 0.5, rtol=1e-6)  # nor is there a trust ratio
        else:
            assert "kernel" in name
            factor = 0.001 if options.optimizer == "lars" else 0.1
            np.testing.assert_allclose(still, before - 0.5 * factor * before, rtol=1e-5)
    assert ranks == {1, 2, 4}


@pytest.mark.parametrize("changes", [{"decoupled_weight_decay": True}, {"optimizer": "lars"}], ids=str)
@pytest.mark.parametrize("context", ["shard_map", "vmap"])
def test_optimizers_work_per_worker(context, changes):
    options = RecipeOptions(weight_decay=0.1, warmup=0.0, **changes)
    optimizer = create_optimizer(options, Progress(10))
    params = {"kernel": jnp.arange(1.0, 13.0).reshape(2, 3, 2), "bias": jnp.arange(1.0, 5.0).reshape(2, 2)}
    gradients = jax.tree.map(lambda leaf: jnp.sin(leaf), params)

    def step(params, gradients):
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    actual = CONTEXTS[context](step, 2)(params, gradients)
    for worker in range(2):
        one = lambda tree, worker=worker: jax.tree.map(lambda leaf: leaf[worker], tree)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
            one(actual),
            step(one(params), one(gradients)),
        )


@pytest.mark.parametrize(("warmup", "total"), [(0.0, 7), (0.1, 300), (0.25, 1000), (0.5, 10)])
def test_the_cosine_is_that_of_optax(warmup, total):
    ours = learning_rate_schedule(RecipeOptions(learning_rate=0.4, warmup=warmup), Progress(total))
    theirs = optax.warmup_cosine_decay_schedule(0.0, 0.4, round(warmup * total), total)
    steps = jnp.arange(total + 5)
    actual, expected = jax.jit(lambda steps: (jax.vmap(ours)(steps), jax.vmap(theirs)(steps)))(steps)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert ours(0) == (0.0 if warmup else np.float32(0.4))
    assert ours(total) == pytest.approx(0.0, abs=1e-7)
    assert ours(3).dtype == jnp.float32


@pytest.mark.parametrize("epoch", [1, 1001, 5005])
@pytest.mark.parametrize("map_over", [jax.vmap, lambda f: jax.jit(jax.vmap(f))], ids=["eager", "jit"])
def test_steps_of_the_rate_fall_on_whole_epochs(epoch, map_over):
    options = RecipeOptions(learning_rate=8.0, warmup=0.0, schedule="step", step_factor=0.5)
    schedule = learning_rate_schedule(options, Progress(90 * epoch))
    boundaries = epoch * np.array([30, 60, 80])
    steps = jnp.array([0, *np.stack([boundaries - 1, boundaries]).T.ravel(), 90 * epoch])
    np.testing.assert_array_equal(map_over(schedule)(steps), [8, 8, 4, 4, 2, 2, 1, 1])


def test_steps_of_the_rate_come_after_the_warmup():
    options = RecipeOptions(learning_rate=1.0, warmup=0.2, schedule="step", step_boundaries=(0.5,))
    schedule = learning_rate_schedule(options, Progress(10))
    rates = [0, 0.5, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(jnp.arange(12)), rates, rtol=1e-6)


def test_a_constant_rate_after_the_warmup():
    schedule = learning_rate_schedule(RecipeOptions(learning_rate=2.0, warmup=0.5, schedule="constant"), Progress(8))
    rates = [0, 0.5, 1, 1.5, 2, 2, 2, 2, 2, 2]
    np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(jnp.arange(10)), rates, rtol=1e-6)


@pytest.mark.parametrize("map_over", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_shares_are_exact_to_float32(map_over):
    total = 10**7
    steps = np.array([0, 1, 2, 3_333_333, 4_999_999, 5_000_000, 9_999_999, total, total + 1])
    shares = map_over(Progress(total).share)(jnp.asarray(steps))
    assert shares.dtype == jnp.float32
    np.testing.assert_allclose(shares, np.minimum(steps / total, 1), rtol=1.5e-7)
    late = Progress(total, first_step=9_000_000, first_share=0.25)
    expected = np.clip(0.25 + 0.75 * (steps - 9_000_000) / 1_000_000, 0, 1)
    np.testing.assert_allclose(map_over(late.share)(jnp.asarray(steps)), expected, atol=1.5e-7)


@pytest.mark.parametrize(("schedule", "change"), [("cosine", 30), ("cosine", 450), ("step", 450), ("constant", 30)])
def test_a_run_goes_on_with_another_number_of_steps(schedule, change):
    """Half the workers for the rest of the run: every step from then on does half as much."""
    before = Progress(1000)
    total = change + 2 * (1000 - change)
    after = Progress(total, change, float(before.share(change)))
    assert after.share(change) == before.share(change)
    assert after.share(total) == pytest.approx(1)
    options = RecipeOptions(schedule=schedule)
    old, new = learning_rate_schedule(options, before), learning_rate_schedule(options, after)
    steps = np.arange(change, 1001)
    rates = jax.jit(lambda a, b: (jax.vmap(old)(a), jax.vmap(new)(b)))(steps, change + 2 * (steps - change))
    np.testing.assert_allclose(*rates, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), r"must be more than the 0 steps done, got 0: raise --steps"),
        ((5, 5), r"must be more than the 5 steps done, got 5"),
        ((5, -1), r"must be more than the -1 steps"),
        ((5, 0, 1.5), r"first_share must be in \[0, 1\], got 1.5"),
        ((5, 0, math.nan), r"first_share must be in \[0, 1\], got nan"),
    ],
)
def test_bad_progress(arguments, message):
    with pytest.raises(ValueError, match=message):
        Progress(*arguments)


def linear_loss(params, carry, batch):
    """A mean over examples; the carry counts micro-batches and remembers the last example."""
    errors = batch["x"] @ params["w"] + params["b"] - batch["y"]
    carry = {"calls": carry["calls"] + 1, "last": batch["y"][-1]}
    return jnp.mean(errors**2), (carry, {"largest": jnp.max(errors), "positive": jnp.mean(errors > 0)})


def linear_problem(num_workers, examples=12, seed=0):
    random = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(random.normal(size=(num_workers, *shape)), jnp.float32)
    carry = {"calls": jnp.zeros(num_workers, jnp.int32), "last": draw()}
    return {"w": draw(5), "b": draw()}, carry, {"x": draw(examples, 5), "y": draw(examples)}


def assert_like_the_whole_batch(accumulate, actual, params, carry, batch):
    loss, new_carry, metrics, gradients = actual
    errors = np.asarray(batch["x"]) @ np.asarray(params["w"]) + np.asarray(params["b"]) - np.asarray(batch["y"])
    np.testing.assert_allclose(loss, np.mean(errors**2), rtol=1e-5)
    np.testing.assert_allclose(gradients["w"], 2 * errors @ np.asarray(batch["x"]) / len(errors), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradients["b"], 2 * errors.mean(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["positive"], np.mean(errors > 0), rtol=1e-5)
    np.testing.assert_allclose(metrics["largest"], errors.reshape(accumulate, -1).max(1).mean(), rtol=1e-5)
    assert new_carry["calls"] == carry["calls"] + accumulate
    assert new_carry["last"] == batch["y"][-1]


@pytest.mark.parametrize(
    ("context", "accumulate"), [*((context, 3) for context in CONTEXTS), ("shard_map", 1), ("vmap", 1)]
)
def test_accumulation_is_the_whole_batch_for_every_worker(context, accumulate):
    arguments = linear_problem(4)

    def step(params, carry, batch):
        return mean_loss_and_gradients(linear_loss, params, carry, batch, accumulate)

    results = CONTEXTS[context](step, 4)(*arguments)
    for worker in range(4):
        one = jax.tree.map(lambda leaf, worker=worker: leaf[worker], (results, *arguments))
        assert_like_the_whole_batch(accumulate, *one)


@pytest.mark.parametrize(("accumulate", "jit"), [(2, False), (12, False), (1, True), (4, True)])
def test_accumulation_without_workers(accumulate, jit):
    arguments = jax.tree.map(lambda leaf: leaf[0], linear_problem(1))
    function = lambda *arguments: mean_loss_and_gradients(linear_loss, *arguments, accumulate)
    assert_like_the_whole_batch(accumulate, (jax.jit(function) if jit else function)(*arguments), *arguments)


def test_one_micro_batch_is_the_plain_program():
    arguments = jax.tree.map(lambda leaf: leaf[0], linear_problem(1))

    def plain(params, carry, batch):
        (loss, (carry, metrics)), gradients = jax.value_and_grad(linear_loss, has_aux=True)(params, carry, batch)
        return loss, carry, metrics, gradients

    ours = lambda accumulate: str(
        jax.make_jaxpr(lambda *a: mean_loss_and_gradients(linear_loss, *a, accumulate))(*arguments)
    )
    assert ours(1) == str(jax.make_jaxpr(plain)(*arguments))
    assert "scan" in ours(2)


def test_shared_parameters_get_the_sum_of_all_workers_gradients():
    """As JAX differentiates by what does not vary over workers, with one micro-batch or several."""
    params, carry, batch = linear_problem(4)
    shared = jax.tree.map(lambda leaf: leaf[0], params)

    def gradients(accumulate):
        step = lambda carry, batch: mean_loss_and_gradients(linear_loss, shared, carry, batch, accumulate)[3]
        return jax.jit(wagma.for_workers(step, mesh=data_mesh(4)))(carry, batch)

    one, several = gradients(1), gradients(3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), several, one)
    np.testing.assert_array_equal(several["b"], np.broadcast_to(several["b"][0], 4))


def test_batch_statistics_go_from_one_micro_batch_to_the_next():
    graph, params, stats = resnet()
    model = nnx.merge(graph, params, stats, copy=True)
    model.train()
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    random = np.random.default_rng(0)
    images = jnp.asarray(random.normal(size=(2, 8, 8, 8, 1)), jnp.float32)
    labels = jnp.asarray(random.integers(0, 10, (2, 8)))

    def loss_function(params, stats, batch):
        model = nnx.merge(graph, params, stats, copy=True)
        logits = model(batch["image"])
        loss = cross_entropy(logits, batch["label"], 0.1).mean()
        return loss, (nnx.state(model, nnx.BatchStat), {"accuracy": jnp.mean(jnp.argmax(logits, -1) == batch["label"])})

    def accumulated(params, stats, batch):
        return mean_loss_and_gradients(loss_function, params, stats, batch, 2)

    def one_by_one(params, stats, batch):
        results = []
        for part in (slice(0, 4), slice(4, 8)):
            part = jax.tree.map(lambda leaf, part=part: leaf[part], batch)
            (loss, (stats, metrics)), gradients = jax.value_and_grad(loss_function, has_aux=True)(params, stats, part)
            results.append((loss, metrics, gradients))
        loss, metrics, gradients = jax.tree.map(lambda a, b: (a + b) / 2, *results)
        return loss, stats, metrics, gradients

    workers = wagma.replicate((params, stats), 2)
    batch = {"image": images, "label": labels}
    actual, expected = (
        jax.jit(wagma.for_workers(function, mesh=data_mesh(2)))(*workers, batch)
        for function in (accumulated, one_by_one)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), actual, expected)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            {"x": jnp.zeros((10, 5)), "y": jnp.zeros(10)},
            r"--accumulate must divide .* got 4 and an array of shape",
        ),
        ({"x": jnp.zeros((8, 5)), "y": jnp.zeros(())}, r"got 4 and an array of shape \[\]: change it or --batch-size"),
    ],
)
def test_batches_that_cannot_be_split(batch, message):
    params, carry, _ = jax.tree.map(lambda leaf: leaf[0], linear_problem(1))
    with pytest.raises(ValueError, match=message):
        mean_loss_and_gradients(linear_loss, params, carry, batch, 4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy_is_its_definition(smoothing):
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(6, 4)) * 3, random.integers(0, 4, 6)
    targets = (1 - smoothing) * np.eye(4)[labels] + smoothing / 4
    expected = -np.sum(targets * (logits - np.log(np.exp(logits).sum(1, keepdims=True))), 1)
    actual = jax.jit(cross_entropy, static_argnums=2)(jnp.asarray(logits, jnp.float32), jnp.asarray(labels), smoothing)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({name: -0.1}, f"{flag} must be in \\[0, ") for name, flag in (
            ("learning_rate", "--learning-rate"), ("warmup", "--warmup"), ("momentum", "--momentum"),
            ("weight_decay", "--weight-decay"), ("label_smoothing", "--label-smoothing"),
        )),
        *(({name: 1.0}, f"must be in \\[0, 1\\), got 1.0: the default is {default}") for name, default in (
            ("warmup", 0.1), ("momentum", 0.9), ("weight_decay", 0.0001), ("label_smoothing", 0.0),
        )),
        *(({name: math.nan}, "got nan") for name in (
            "learning_rate", "warmup", "step_factor", "momentum", "weight_decay", "label_smoothing",
        )),
        *(({name: math.inf}, "got inf") for name in (
            "learning_rate", "warmup", "step_factor", "momentum", "weight_decay", "label_smoothing",
        )),
        ({"step_factor": 0.0}, r"--step-factor must be in \(0, 1\], got 0.0"),
        ({"step_factor": 1.5}, r"--step-factor must be in"),
        ({"step_boundaries": (0.5, 0.5)}, r"--step-boundaries must increase strictly within \(0, 1\), got \(0.5"),
        ({"step_boundaries": (0.0, 0.5)}, r"--step-boundaries must increase"),
        ({"step_boundaries": (0.5, 1.0)}, r"--step-boundaries must increase"),
        ({"step_boundaries": (0.5, math.nan, 0.7)}, r"--step-boundaries must increase"),
        ({"schedule": "step", "warmup": 0.4}, r"--step-boundaries must lie after the --warmup of 0.4"),
        ({"accumulate": 0}, r"--accumulate must be an integer of at least 1, got 0"),
        ({"accumulate": 1.5}, r"--accumulate must be an integer"),
        ({"schedule": "linear"}, r"--schedule must be one of cosine, step, constant, got 'linear'"),
        ({"optimizer": "adam"}, r"--optimizer must be one of sgd, lars, got 'adam'"),
        ({"precision": "float16"}, r"--precision must be one of float32, bfloat16, got 'float16'"),
        ({"optimizer": "lars", "decoupled_weight_decay": True}, r"--decoupled-weight-decay must be off with"),
    ],
)  # fmt: skip
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        RecipeOptions(**options).check_recipe()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"learning_rate": 0.0, "warmup": 0.0, "momentum": 0.0, "weight_decay": 0.0},
        {"schedule": "step", "step_boundaries": ()},
        {"schedule": "cosine", "warmup": 0.4},
        {"optimizer": "lars"},
        {"decoupled_weight_decay": True, "precision": "bfloat16", "accumulate": 4, "step_factor": 1.0},
    ],
)
def test_good_options(options):
    RecipeOptions(**options).check_recipe()


def test_options_come_from_the_command_line():
    arguments = ["--schedule", "step", "--step-boundaries", "0.5", "0.75", "--optimizer", "lars", "--no-nesterov"]
    expected = RecipeOptions(schedule="step", step_boundaries=(0.5, 0.75), optimizer="lars", nesterov=False)
    assert tyro.cli(RecipeOptions, args=arguments) == expected


def test_every_option_is_explained(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        tyro.cli(RecipeOptions, args=["--help"])
    help_text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    names = [field.name for field in dataclasses.fields(RecipeOptions)]
    documentation = str(RecipeOptions.__doc__)
    for name, following in zip(names, [*names[1:], None], strict=True):
        explained = documentation.split(f"        {name}: ")[1].split(f"        {following}: ")[0]
        assert " ".join(explained.split()) in help_text
