"""Schedules of the learning rate at their corners, and the options of a recipe."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tyro

from train.recipe import RecipeOptions, learning_rate_schedule


def rates(options, shares, jit=True):
    schedule = learning_rate_schedule(options)
    return (jax.jit(schedule) if jit else schedule)(jnp.asarray(shares, jnp.float32))


@pytest.mark.parametrize(("warmup", "total"), [(0.0, 7), (0.1, 300), (0.25, 1000), (0.5, 10)])
def test_the_cosine_is_that_of_optax(warmup, total):
    options = RecipeOptions(learning_rate=0.4, warmup=warmup)
    steps = np.arange(total + 5)
    theirs = optax.warmup_cosine_decay_schedule(0.0, 0.4, round(warmup * total), total)
    np.testing.assert_allclose(rates(options, steps / total), jax.jit(jax.vmap(theirs))(steps), atol=1e-6)
    assert rates(options, 0.0) == (0.0 if warmup else np.float32(0.4))
    assert rates(options, 1.0) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_a_linear_fall(warmup):
    options = RecipeOptions(learning_rate=2.0, warmup=warmup, schedule="linear")
    shares = np.linspace(0, 1, 17)
    expected = np.where(shares < warmup, 2 * shares / max(warmup, 1e-9), 2 * (1 - shares) / (1 - warmup))
    np.testing.assert_allclose(rates(options, shares), expected, atol=1e-6)


def test_the_inverse_square_root_is_that_of_vaswani():
    """Of its 1,000 steps 40 are warm-up; 0.001 at its end."""
    options = RecipeOptions(learning_rate=0.001, warmup=0.04, schedule="inverse-sqrt")
    steps = np.arange(1, 1001)
    expected = 0.001 * math.sqrt(40) * np.minimum(steps**-0.5, steps * 40**-1.5)
    np.testing.assert_allclose(rates(options, steps / 1000), expected, rtol=1e-5)
    assert rates(options, 0.0) == 0
    assert np.argmax(rates(options, steps / 1000)) == 39
    assert rates(options, 1.0) == pytest.approx(0.001 * math.sqrt(0.04))


@pytest.mark.parametrize("epoch", [1, 1001, 5005])
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_steps_of_the_rate_fall_on_whole_epochs(epoch, jit):
    options = RecipeOptions(learning_rate=8.0, warmup=0.0, schedule="step", step_factor=0.5)
    boundaries = epoch * np.array([30, 60, 80])
    steps = np.array([0, *np.stack([boundaries - 1, boundaries]).T.ravel(), 90 * epoch])
    total = np.float32(90 * epoch)
    # shares as they are rounded: of a whole run, and of the second half of one
    resumed = np.float32(0.25) + np.float32(0.75) * (np.float32(steps - 22.5 * epoch) / np.float32(67.5 * epoch))
    for shares in (np.float32(steps) / total, np.float32(steps / (90 * epoch)), resumed):
        for rounding in (-np.inf, np.inf):
            nearby = np.nextafter(shares, np.float32(rounding))
            np.testing.assert_array_equal(rates(options, nearby, jit), [8, 8, 4, 4, 2, 2, 1, 1])


def test_steps_of_the_rate_come_after_the_warmup():
    options = RecipeOptions(learning_rate=1.0, warmup=0.2, schedule="step", step_boundaries=(0.5,))
    expected = [0, 0.5, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    np.testing.assert_allclose(rates(options, np.arange(11) / 10), expected, rtol=1e-6)


def test_a_constant_rate_after_the_warmup():
    options = RecipeOptions(learning_rate=2.0, warmup=0.5, schedule="constant")
    np.testing.assert_allclose(rates(options, np.arange(9) / 8), [0, 0.5, 1, 1.5, 2, 2, 2, 2, 2], rtol=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "step", "constant", "inverse-sqrt"])
@pytest.mark.parametrize("warmup", [0.0, 0.3])
def test_every_rate_is_finite_and_keeps_its_shape(schedule, warmup):
    if schedule == "inverse-sqrt" and warmup == 0:
        warmup = 1e-3
    options = RecipeOptions(warmup=warmup, schedule=schedule)
    options.check()
    shares = np.linspace(0, 1, 12).reshape(3, 4)
    for jit in (False, True):
        several, one = rates(options, shares, jit), rates(options, 0.5, jit)
        assert (several.shape, one.shape) == ((3, 4), ())
        assert several.dtype == one.dtype == jnp.float32
        assert ((several >= 0) & (several <= np.float32(0.1))).all()  # which holds for no NaN
        # a share may come out of a rounded sum
        np.testing.assert_array_equal(rates(options, [-1e-7, 1 + 1e-7], jit), rates(options, [0, 1], jit))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({name: -0.1}, f"{flag} must be in \\[0, ") for name, flag in (
            ("learning_rate", "--learning-rate"), ("warmup", "--warmup"), ("momentum", "--momentum"),
            ("weight_decay", "--weight-decay"),
            ("beta1", "--beta1"), ("beta2", "--beta2"),
        )),
        *(({name: 1.0}, f"must be in \\[0, 1\\), got 1.0: the default is {default}") for name, default in (
            ("warmup", 0.1), ("momentum", 0.9), ("weight_decay", 0.0001),
            ("beta1", 0.9), ("beta2", 0.999),
        )),
        *(({name: math.nan}, "got nan") for name in (
            "learning_rate", "warmup", "step_factor", "momentum", "weight_decay", "beta1", "beta2",
            "epsilon",
        )),
        *(({name: math.inf}, "got inf") for name in (
            "learning_rate", "warmup", "step_factor", "momentum", "weight_decay", "beta1", "beta2",
            "epsilon",
        )),
        ({"step_factor": 0.0}, r"--step-factor must be in \(0, 1\], got 0.0"),
        ({"step_factor": 1.5}, r"--step-factor must be in"),
        ({"step_boundaries": (0.5, 0.5)}, r"--step-boundaries must increase strictly within \(0, 1\), got \(0.5"),
        ({"step_boundaries": (0.0, 0.5)}, r"--step-boundaries must increase"),
        ({"step_boundaries": (0.5, 1.0)}, r"--step-boundaries must increase"),
        ({"step_boundaries": (0.5, math.nan, 0.7)}, r"--step-boundaries must increase"),
        ({"schedule": "step", "warmup": 0.4}, r"--step-boundaries must lie after the --warmup of 0.4"),
        ({"schedule": "inverse-sqrt", "warmup": 0.0}, r"--schedule inverse-sqrt falls .* got --warmup 0.0: "),
        ({"epsilon": 0.0}, r"--epsilon must be above 0 and finite, got 0.0: the default is 1e-8"),
        ({"epsilon": -1e-8}, r"--epsilon must be above 0 and finite, got -1e-08"),
        ({"schedule": "square"}, r"one of cosine, linear, step, constant, inverse-sqrt, got 'square'"),
        ({"optimizer": "adagrad"}, r"--optimizer must be one of sgd, lars, adam, adamw, got 'adagrad'"),
        ({"optimizer": "lars", "decoupled_weight_decay": True}, r"-decay must be off .* lars, .* both: drop one"),
        ({"optimizer": "adam", "decoupled_weight_decay": True}, r"-decay must be off .* both: use --optimizer adamw"),
        *(({"optimizer": name, "momentum": 0.8}, f"--momentum is for --optimizer sgd and lars, got 0.8 .* {name}:")
          for name in ("adam", "adamw")),
        *(({"optimizer": name, option: 0.5}, f"--{option} is for --optimizer adam and adamw, got 0.5 .* {name}:")
          for name in ("sgd", "lars") for option in ("beta1", "beta2", "epsilon")),
    ],
)  # fmt: skip
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        RecipeOptions(**options).check()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"learning_rate": 0.0, "warmup": 0.0, "momentum": 0.0, "weight_decay": 0.0},
        {"schedule": "step", "step_boundaries": ()},
        {"schedule": "cosine", "warmup": 0.4},
        {"optimizer": "lars"},
        {"optimizer": "adam", "beta1": 0.0, "beta2": 0.98, "epsilon": 1e-9, "nesterov": False},
        {"optimizer": "adamw", "decoupled_weight_decay": True, "schedule": "inverse-sqrt"},
        {"schedule": "linear", "warmup": 0.0},
        {"decoupled_weight_decay": True, "step_factor": 1.0},
    ],
)
def test_good_options(options):
    RecipeOptions(**options).check()


def test_options_come_from_the_command_line():
    arguments = ["--schedule", "step", "--step-boundaries", "0.5", "0.75", "--optimizer", "lars", "--no-nesterov"]
    expected = RecipeOptions(schedule="step", step_boundaries=(0.5, 0.75), optimizer="lars", nesterov=False)
    assert tyro.cli(RecipeOptions, args=arguments) == expected
    arguments = ["--schedule", "inverse-sqrt", "--optimizer", "adamw", "--beta2", "0.98", "--epsilon", "1e-9"]
    expected = RecipeOptions(schedule="inverse-sqrt", optimizer="adamw", beta2=0.98, epsilon=1e-9)
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
