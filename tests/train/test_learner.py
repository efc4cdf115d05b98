"""What a task gives to training is checked while its step is traced."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train.toy import WORKLOAD, Options, Toy
from train import run
from train.learner import Learner
from train.task import Gradients, Mean

ONE = jnp.ones(())


def traced(change, optimizer=None):
    """Traces a step of the toy, whose gradients are changed."""

    class Changed(Toy):
        def gradients(self, model, carry, batch, key):
            return change(super().gradients(model, carry, batch, key))

    task = Changed(Options())
    learner = Learner(task, optimizer or optax.sgd(0.1), "models", 0)
    state = learner.optimizer_state(task.init(0))
    worker = np.int32(0)
    carry = jax.eval_shape(lambda: learner.carry(worker, 0))
    return jax.eval_shape(
        learner.before, task.like, state, carry, task.batch_shapes[0], np.int32(0), worker, np.float32(0)
    )


def metrics(**new):
    return lambda made: made._replace(metrics={**made.metrics, **new})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (metrics(each=Mean(jnp.ones(3), ONE)), r"the Mean of scalars, .* got \[\[3\], \[\]\] for 'each'"),
        (metrics(plain=ONE), "the Mean of scalars, .* for 'plain': give each number a name"),
        (metrics(step=Mean(ONE, ONE)), "a metric cannot be called 'step', as every row has its own"),
        (lambda made: made._replace(metrics={}), "have the loss among them, got none: add it"),
        (
            lambda made: made._replace(stats={"mean": made.stats["mean"].astype(jnp.bfloat16)}),
            r"must return stats like what came in, got \[\[\], 'bfloat16'\] at \['mean'\], where \[\[\], 'float32'\]",
        ),
        (lambda made: made._replace(stats={}), r"must return stats like .* got nothing at \['mean'\]"),
        (lambda made: made._replace(carry=()), r"must return carry like .* got nothing at \.steps"),
        (
            lambda made: made._replace(grads={"w": made.grads["w"][None]}),
            r"must return grads like what came in, got \[1, 5\] at \['w'\], where \[5\] came in",
        ),
    ],
)
def test_what_a_step_returns_is_like_what_came_in(change, message):
    with pytest.raises(ValueError, match=message):
        traced(change)


def test_an_optimizer_without_a_schedule_needs_no_share():
    sent, *_ = traced(lambda made: made, optax.adam(0.1))
    assert sent["params"]["w"].shape == (5,)


def test_an_optimizer_of_ones_own_gets_the_share():
    seen = []

    def update(grads, state, params=None, *, share=None):
        seen.append(share)
        return grads, state

    traced(lambda made: made, optax.GradientTransformation(lambda params: (), update))
    assert seen[0] is not None


def test_a_step_is_checked_before_anything_is_made(tmp_path):
    class Wrong(Toy):
        def gradients(self, model, carry, batch, key):
            return super().gradients(model, carry, batch, key)._replace(stats={"mean": 0.5, "more": 1})

    with pytest.raises(ValueError, match=r"must return stats like .* at \['more'\], where nothing came in"):
        run.prepare(dataclasses.replace(WORKLOAD, create=Wrong), Options(out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_gradients_may_be_narrower():
    traced(lambda made: Gradients({"w": made.grads["w"].astype(jnp.bfloat16)}, *made[1:]))
