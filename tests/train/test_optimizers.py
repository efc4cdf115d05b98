"""Optimizers against NumPy, wherever a step may run, at shares of the training that jump."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contexts import CONTEXTS, FEW
from flax import nnx

import wagma_jax as wagma
from models.resnet import RESNETS, ResNet
from train.recipe import RecipeOptions, create_optimizer, learning_rate_schedule

_COMMON = {"learning_rate": 0.3, "warmup": 0.25, "weight_decay": 0.05}
_MOMENTUM = _COMMON | {"momentum": 0.8}
_ADAM = _COMMON | {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3}
VARIANTS = {
    "sgd": RecipeOptions(**_MOMENTUM, nesterov=False),
    "sgd nesterov": RecipeOptions(**_MOMENTUM),
    "sgd decoupled": RecipeOptions(**_MOMENTUM, nesterov=False, decoupled_weight_decay=True),
    "sgd nesterov decoupled": RecipeOptions(**_MOMENTUM, decoupled_weight_decay=True),
    "lars": RecipeOptions(**(_MOMENTUM | {"learning_rate": 20.0}), optimizer="lars", nesterov=False),
    "lars nesterov": RecipeOptions(**(_MOMENTUM | {"learning_rate": 20.0}), optimizer="lars"),
    "adam": RecipeOptions(**_ADAM, optimizer="adam"),
    "adamw": RecipeOptions(**_ADAM, optimizer="adamw", decoupled_weight_decay=True),
}
# The rounds of each worker's updates, of 32: three of them skip rounds, each in its way.
ROUNDS = np.array([[0, 1, 2, 3, 4, 5], [0, 5, 6, 11, 20, 31], [3, 4, 18, 19, 20, 21], [0, 15, 16, 17, 17, 22]])
SHARES = np.float32(ROUNDS / 32)


def draw(steps, seed=0):
    """A model and the gradients of some updates, stacked."""
    random = np.random.default_rng(seed)

    def tree(*leading):
        shapes = {"kernel": (3, 2), "bias": (2,), "scale": ()}
        return {name: random.normal(size=(*leading, *shape)) for name, shape in shapes.items()}

    return tree(), tree(steps)


def draw_workers():
    """As :func:`draw`, for all workers of ROUNDS."""
    each = [draw(ROUNDS.shape[1], seed) for seed in range(len(ROUNDS))]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


def trajectory(options, params, gradients, shares):
    """The parameters after every update, stacked; traceable."""
    optimizer = create_optimizer(options)

    def step(state, inputs):
        params, inner = state
        gradient, share = inputs
        updates, inner = optimizer.update(gradient, inner, params, share=share)
        params = optax.apply_updates(params, updates)
        return (params, inner), params

    return jax.lax.scan(step, (params, optimizer.init(params)), (gradients, shares))[1]


def trajectories(params, gradients, shares, variants=VARIANTS):
    """Those of all variants, so that a context compiles but once."""
    return {name: trajectory(options, params, gradients, shares) for name, options in variants.items()}


def reference(options, params, gradients, rates, counts=None):
    """The same by the papers' equations, of one worker, in float64.

    ``counts`` is what the bias correction of Adam counts: the worker's own updates.
    """
    o, params = options, {name: np.float64(leaf) for name, leaf in params.items()}
    first, second, result = dict.fromkeys(params, 0.0), dict.fromkeys(params, 0.0), []
    for k, rate in enumerate(rates):
        count = k + 1 if counts is None else counts[k]
        for name, weights in params.items():
            kernel, gradient = name == "kernel", np.float64(gradients[name][k])
            decay = o.weight_decay * weights if kernel else 0.0
            if not (o.decoupled_weight_decay or o.optimizer == "adamw"):
                gradient, decay = gradient + decay, 0.0
            if o.optimizer == "lars":  # You et al., 2017, algorithm 1
                local = 0.001 * np.linalg.norm(weights) / np.linalg.norm(gradient) if kernel else 1.0
                push = rate * local * gradient
                first[name] = o.momentum * first[name] + push
                step = push + o.momentum * first[name] if o.nesterov else first[name]
            elif o.optimizer == "sgd":
                first[name] = o.momentum * first[name] + gradient
                step = rate * (gradient + o.momentum * first[name] if o.nesterov else first[name])
            else:  # Kingma & Ba, 2015, algorithm 1
                first[name] = o.beta1 * first[name] + (1 - o.beta1) * gradient
                second[name] = o.beta2 * second[name] + (1 - o.beta2) * gradient**2
                mean, square = first[name] / (1 - o.beta1**count), second[name] / (1 - o.beta2**count)
                step = rate * mean / (np.sqrt(square) + o.epsilon)
            params[name] = weights - step - rate * decay
        result.append(dict(params))
    return {name: np.stack([step[name] for step in result]) for name in params}


def rates_of(options, shares):
    return np.float64(learning_rate_schedule(options)(shares))


def assert_close(actual, expected, **tolerance):
    assert set(actual) == set(expected)
    for name, leaf in expected.items():
        np.testing.assert_allclose(actual[name], leaf, err_msg=name, **tolerance)


def test_every_optimizer_follows_its_equations():
    """To the last digits of float64, at rates that float32 holds exactly."""
    exact = {"warmup": 0.25, "schedule": "step", "step_boundaries": (0.5, 0.75), "step_factor": 0.5}
    rate = {"sgd": 0.25, "lars": 16.0, "adam": 0.25, "adamw": 0.25}
    variants = {
        name: dataclasses.replace(options, learning_rate=rate[options.optimizer], **exact)
        for name, options in VARIANTS.items()
    }
    params, gradients = draw(10)
    shares = np.float32([0, 1, 4, 5, 8, 15, 16, 17, 24, 32]) / 32
    factors = np.array([0, 0.125, 0.5, 0.625, 1, 1, 0.5, 0.5, 0.25, 0.25])
    with jax.enable_x64(True):
        actual = jax.jit(functools.partial(trajectories, variants=variants))(params, gradients, shares)
    for name, options in variants.items():
        assert actual[name]["kernel"].dtype == np.float64
        expected = reference(options, params, gradients, options.learning_rate * factors)
        assert_close(actual[name], expected, rtol=1e-11, atol=1e-12)


@functools.cache
def expected_of_workers():
    params, gradients = draw_workers()
    return {
        name: [
            reference(options, *jax.tree.map(lambda leaf, w=w: leaf[w], (params, gradients)), rates_of(options, shares))
            for w, shares in enumerate(SHARES)
        ]
        for name, options in VARIANTS.items()
    }


@pytest.mark.parametrize("context", ["one by one", *FEW])
def test_workers_that_skip_rounds_have_their_own_bias_correction(context):
    params, gradients = jax.tree.map(jnp.float32, draw_workers())
    if context == "one by one":
        one = jax.jit(trajectories)
        each = [one(*jax.tree.map(lambda leaf, w=w: leaf[w], (params, gradients, SHARES))) for w in range(len(ROUNDS))]
        actual = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    else:
        actual = CONTEXTS[context](trajectories, len(ROUNDS))(params, gradients, SHARES)
    for name, expected in expected_of_workers().items():
        for worker, leaves in enumerate(expected):
            of_worker = {key: leaf[worker] for key, leaf in actual[name].items()}
            assert_close(of_worker, leaves, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_bias_correction_that_counts_rounds_would_be_seen(name):
    """The test above can tell the two apart, for each worker that skips rounds."""
    params, gradients = draw_workers()
    for worker, rounds in enumerate(ROUNDS):
        one = jax.tree.map(lambda leaf, worker=worker: leaf[worker], (params, gradients))
        rates = rates_of(VARIANTS[name], SHARES[worker])
        by_round = reference(VARIANTS[name], *one, rates, counts=rounds + 1)
        difference = np.abs(by_round["kernel"] - expected_of_workers()[name][worker]["kernel"]).max()
        assert (difference > 0.01) == (worker > 0)


def test_without_jit():
    params, gradients = jax.tree.map(jnp.float32, draw(3))
    shares = jnp.float32([0.125, 0.5, 0.75])
    for name in ("sgd nesterov", "lars", "adam", "adamw"):
        optimizer = create_optimizer(VARIANTS[name])
        weights, state = params, optimizer.init(params)
        for k in range(3):
            gradient = jax.tree.map(lambda leaf, k=k: leaf[k], gradients)
            updates, state = optimizer.update(gradient, state, weights, share=float(shares[k]))
            weights = optax.apply_updates(weights, updates)
        expected = reference(VARIANTS[name], params, gradients, rates_of(VARIANTS[name], shares))
        assert_close(weights, {key: leaf[-1] for key, leaf in expected.items()}, rtol=1e-4, atol=1e-5)


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
    steps = trajectory(options, {"w": jnp.ones((1, 1))}, {"w": jnp.ones((2, 1, 1))}, jnp.float32([0.0, 0.5]))
    np.testing.assert_allclose(steps["w"][:, 0, 0], weights, rtol=1e-6)


def test_at_a_constant_rate_they_are_those_of_optax():
    params, gradients = jax.tree.map(jnp.float32, draw(6))
    kernels = jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    decay = optax.add_decayed_weights(0.05, kernels)
    theirs = {
        "sgd nesterov": lambda rate: optax.chain(decay, optax.sgd(rate, 0.8, nesterov=True)),
        "lars": lambda rate: optax.lars(rate, 0.05, kernels, trust_ratio_mask=kernels, momentum=0.8),
        "adam": lambda rate: optax.chain(decay, optax.adam(rate, 0.8, 0.95, 1e-3)),
        "adamw": lambda rate: optax.adamw(rate, 0.8, 0.95, 1e-3, weight_decay=0.05, mask=kernels),
    }

    def both(params, gradients):
        result = {}
        for name, create in theirs.items():
            options = dataclasses.replace(VARIANTS[name], schedule="constant", warmup=0.0)
            optimizer = create(options.learning_rate)

            def step(state, gradient, optimizer=optimizer):
                updates, inner = optimizer.update(gradient, state[1], state[0])
                params = optax.apply_updates(state[0], updates)
                return (params, inner), params

            expected = jax.lax.scan(step, (params, optimizer.init(params)), gradients)[1]
            result[name] = trajectory(options, params, gradients, jnp.linspace(0, 1, 6)), expected
        return result

    for ours, expected in jax.jit(both)(params, gradients).values():
        assert_close(ours, expected, rtol=1e-6)


def test_the_state_counts_nothing_but_updates_of_adam():
    params, gradients = jax.tree.map(jnp.float32, draw(3))
    gradient = jax.tree.map(lambda leaf: leaf[0], gradients)
    for name, options in VARIANTS.items():
        optimizer = create_optimizer(options)
        state = optimizer.init(params)
        for share in (0.5, 0.9, 0.9):
            _, state = optimizer.update(gradient, state, params, share=share)
        integers = [leaf for leaf in jax.tree.leaves(state) if not jnp.issubdtype(leaf.dtype, jnp.floating)]
        assert integers == ([3] if options.optimizer in ("adam", "adamw") else []), name


def test_the_share_reaches_an_optimizer_that_averages():
    """Through ``wagma``, whose link of averaging is the last of a chain."""
    workers, rate = 4, rates_of(VARIANTS["sgd"], np.float32(0.5))
    optimizer = wagma.wagma(create_optimizer(VARIANTS["sgd"]), wagma.GroupSchedule(workers, workers))
    weights = {"w": jnp.arange(4.0)}

    def step(params, share):
        updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params, share=share)
        return optax.apply_updates(params, updates)

    actual = CONTEXTS["vmap"](step, workers)(weights, jnp.full(workers, 0.5))
    np.testing.assert_allclose(actual["w"], np.full(workers, 1.5 - rate), rtol=1e-6)


@pytest.mark.parametrize("arguments", [{}, {"share": None}])
def test_a_missing_share(arguments):
    optimizer, params = create_optimizer(RecipeOptions()), {"w": jnp.ones(2)}
    with pytest.raises(TypeError, match=r"needs share, which share of the training is done before it, got none: call"):
        jax.jit(optimizer.update)(params, optimizer.init(params), params, **arguments)


@pytest.mark.parametrize(
    ("share", "got"), [(3, "int32"), (jnp.int32(3), "int32"), (jnp.zeros(4), r"float32\[4\]"), (True, "bool")]
)
def test_a_share_that_is_none(share, got):
    optimizer, params = create_optimizer(RecipeOptions(optimizer="adam")), {"w": jnp.ones(2)}
    with pytest.raises(TypeError, match=rf"share must be a floating scalar in \[0, 1\], got {got}.*: pass which share"):
        jax.jit(optimizer.update)(params, optimizer.init(params), params, share=share)


def test_parameters_are_needed():
    optimizer, params = create_optimizer(RecipeOptions()), {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match="params"):
        optimizer.update(params, optimizer.init(params), share=0.5)


@pytest.mark.parametrize("changes", [{}, {"decoupled_weight_decay": True}, {"optimizer": "lars"}], ids=str)
def test_norms_and_biases_of_a_resnet_do_not_decay(changes):
    options = RecipeOptions(
        learning_rate=0.5, warmup=0.0, schedule="constant", momentum=0.0, weight_decay=0.1, **changes
    )
    shapes = nnx.eval_shape(lambda: nnx.state(ResNet(RESNETS["resnet_tiny"], rngs=nnx.Rngs(0)), nnx.Param))
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.float32(1 + random.normal(size=leaf.shape)), nnx.to_pure_dict(shapes))

    @jax.jit
    def after(push):
        gradients = jax.tree.map(lambda leaf: jnp.full((1, *leaf.shape), push), params)
        return jax.tree.map(lambda leaf: leaf[0], trajectory(options, params, gradients, jnp.zeros(1)))

    ranks = set()
    leaves = (jax.tree.leaves_with_path(params), jax.tree.leaves(after(0.0)), jax.tree.leaves(after(1.0)))
    for (path, before), still, pushed in zip(*leaves, strict=True):
        name = jax.tree_util.keystr(path)
        ranks.add(before.ndim)
        if before.ndim == 1:
            assert "kernel" not in name
            np.testing.assert_array_equal(still, before)
            np.testing.assert_allclose(pushed, before - 0.5, rtol=1e-5, atol=1e-6)  # nor is there a trust ratio
        else:
            assert "kernel" in name
            factor = 0.001 if options.optimizer == "lars" else 0.1
            np.testing.assert_allclose(still, before - 0.5 * factor * before, rtol=1e-5)
    assert ranks == {1, 2, 4}
