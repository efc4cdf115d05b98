"""Tests of PPO: advantages of rollouts worked by hand, the loss against its equations, and whole sequences."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from models.policy import Policy, PolicyConfig
from train import ppo
from train.ppo import PPOOptions

PLAIN = PPOOptions(value_clip=None, normalize_advantages=False)


def column(*values):
    """One environment's values, [time, 1]."""
    return jnp.asarray(values, jnp.float32)[:, None]


def flags(*values):
    return jnp.asarray(values, bool)[:, None]


def advantages_of(done, truncated, **changes):
    arguments = {
        "reward": column(1, 2, 3),
        "value": column(10, 20, 30),
        "final_value": column(500, 500, 500),
        "last_value": jnp.array([40.0]),
        "discount": 0.5,
        "decay": 0.5,
    }
    found, returns = ppo.gae(**{**arguments, **changes}, done=done, truncated=truncated)
    np.testing.assert_allclose(returns, found + changes.get("value", arguments["value"]), rtol=1e-6)
    return found[:, 0].tolist()


NO = flags(0, 0, 0)


def test_advantages_within_an_episode():
    # delta = 1 + 10 - 10, 2 + 15 - 20, 3 + 20 - 30
    assert advantages_of(NO, NO) == [1 + (-3 + -7 / 4) / 4, -3 + -7 / 4, -7]


def test_an_episode_that_is_done_has_no_future():
    # delta = 1 + 10 - 10, 2 - 20, 3 + 20 - 30: the second step ends an episode
    assert advantages_of(flags(0, 1, 0), NO) == [1 + -18 / 4, -18, -7]
    assert advantages_of(flags(0, 0, 1), NO)[2] == 3 - 30


def test_an_episode_that_is_cut_is_worth_what_would_have_followed():
    # delta = 1 + 10 - 10, 2 + 250 - 20, 3 + 20 - 30: nothing of the next episode, but the final value of this one
    assert advantages_of(NO, flags(0, 1, 0)) == [1 + 232 / 4, 232, -7]
    assert advantages_of(NO, flags(0, 0, 1))[2] == 3 + 250 - 30


def test_done_counts_where_the_limit_is_reached_at_the_same_step():
    assert advantages_of(flags(0, 1, 0), flags(0, 1, 0)) == advantages_of(flags(0, 1, 0), NO)


def test_final_values_are_read_where_an_episode_was_cut_only():
    nan = column(np.nan, np.nan, np.nan)
    assert advantages_of(flags(0, 1, 0), NO, final_value=nan) == advantages_of(flags(0, 1, 0), NO)
    assert advantages_of(NO, flags(0, 1, 0), final_value=column(np.nan, 500, np.nan)) == advantages_of(
        NO, flags(0, 1, 0)
    )


def test_extremes_of_decay():
    # 1: discounted rewards and the last value; 0: one step
    whole = advantages_of(NO, NO, decay=1.0)
    assert whole == [1 + 2 / 2 + 3 / 4 + 40 / 8 - 10, 2 + 3 / 2 + 40 / 4 - 20, 3 + 40 / 2 - 30]
    assert advantages_of(NO, NO, decay=0.0) == [1, -3, -7]


def test_a_rollout_that_was_cut_short_goes_on_from_its_last_step():
    # as if the third step had never been; whatever stands there
    short, returns = ppo.gae(
        column(1, 2, np.nan), column(10, 20, np.nan), NO, NO, NO * 1.0, jnp.array([40.0]), 0.5, 0.5, flags(1, 1, 0)
    )
    # delta = 1 + 10 - 10, 2 + 20 - 20
    assert short[:, 0].tolist() == [1 + 2 / 4, 2, 0]
    assert returns[:, 0].tolist() == [11.5, 22, 0]


def test_environments_are_independent():
    rng = np.random.default_rng(0)
    reward, value, final = rng.normal(size=(3, 7, 4)).astype(np.float32)
    done, truncated = rng.random((2, 7, 4)) < 0.25
    last = rng.normal(size=4).astype(np.float32)
    found, _ = ppo.gae(reward, value, done, truncated, final, last)
    for e in range(4):  # by a loop that follows the definition
        expected, following = np.zeros(7), 0.0
        for t in reversed(range(7)):
            after = value[t + 1, e] if t < 6 else last[e]
            after = 0 if done[t, e] else final[t, e] if truncated[t, e] else after
            following = 0 if done[t, e] or truncated[t, e] else following
            expected[t] = following = reward[t, e] + 0.99 * after - value[t, e] + 0.99 * 0.95 * following
        np.testing.assert_allclose(found[:, e], expected, rtol=1e-4, atol=1e-5)


def test_normalized_advantages():
    found = ppo.normalize(jnp.array([[1.0, 2.0], [3.0, 6.0]]))
    np.testing.assert_allclose(found, (np.array([[1, 2], [3, 6]]) - 3) / np.sqrt(3.5), rtol=1e-4)
    some = ppo.normalize(jnp.array([1.0, 3.0, 1e9]), jnp.array([True, True, False]))
    np.testing.assert_allclose(some[:2], [-1, 1], rtol=1e-4)
    assert ppo.normalize(jnp.array([7.0])).tolist() == [0]
    assert abs(ppo.normalize(jnp.full(7, 0.1))).max() < 0.01


def minibatch(**changes):
    found = {
        "action": jnp.array([0, 1, 1]),
        "log_prob": jnp.log(jnp.array([0.5, 0.5, 0.5])),
        "value": jnp.array([1.0, 1.0, 1.0]),
        "advantage": jnp.array([1.0, 1.0, -1.0]),
        "return": jnp.array([2.0, 0.0, 3.0]),
    }
    return {**found, **changes}


# Ratios of new to old probabilities: 1.8, 1.1, 1.5.
LOGITS = jnp.log(jnp.array([[0.9, 0.1], [0.45, 0.55], [0.25, 0.75]]))
VALUE = jnp.array([2.5, 1.1, 1.0])


def test_the_loss_worked_by_hand():
    loss, metrics = ppo.ppo_loss(LOGITS, VALUE, minibatch(), PLAIN)
    # min(1.8, 1.2), min(1.1, 1.1) and min(-1.5, -1.2)
    assert metrics["policy_loss"] == pytest.approx(-(1.2 + 1.1 - 1.5) / 3, rel=1e-5)
    assert metrics["value_loss"] == pytest.approx((0.25 + 1.21 + 4) / 6, rel=1e-5)
    entropies = [-sum(p * np.log(p) for p in row) for row in ([0.9, 0.1], [0.45, 0.55], [0.25, 0.75])]
    assert metrics["entropy"] == pytest.approx(np.mean(entropies), rel=1e-5)
    ratios = np.array([1.8, 1.1, 1.5])
    assert metrics["approximate_kl"] == pytest.approx(np.mean(ratios - 1 - np.log(ratios)), rel=1e-4)
    assert metrics["clip_fraction"] == pytest.approx(2 / 3)
    total = metrics["policy_loss"] + 0.5 * metrics["value_loss"] - 0.01 * metrics["entropy"]
    assert loss == pytest.approx(float(total), rel=1e-6)


def test_clipped_values_take_the_larger_error():
    _, metrics = ppo.ppo_loss(LOGITS, VALUE, minibatch(), replace(PLAIN, value_clip=0.2))
    # values within 0.2 of 1: 1.2, 1.1 and 1.0
    assert metrics["value_loss"] == pytest.approx((0.64 + 1.21 + 4) / 6, rel=1e-5)


def test_gradients_stop_where_the_ratio_is_clipped():
    def policy_loss(logits):
        return ppo.ppo_loss(logits, VALUE, minibatch(), PLAIN)[1]["policy_loss"]

    gradients = jax.grad(policy_loss)(LOGITS)
    # The first is good and already likelier than the clip allows; the third is bad, so it is pushed back all the way.
    assert np.any(gradients, axis=-1).tolist() == [False, True, True]
    assert gradients[2, 1] > 0 > gradients[1, 1]


def test_advantages_are_normalized_if_wanted():
    batch = minibatch(advantage=jnp.array([5.0, 7.0, 9.0]))
    _, metrics = ppo.ppo_loss(LOGITS, VALUE, batch, replace(PLAIN, normalize_advantages=True))
    a = np.sqrt(1.5)
    assert metrics["policy_loss"] == pytest.approx(-(-1.8 * a + 0 + 1.2 * a) / 3, rel=1e-4)


@pytest.mark.parametrize("options", [PPOOptions(), PPOOptions(value_clip=0.2)])
def test_a_single_transition_gives_finite_gradients(options):
    batch = jax.tree.map(lambda leaf: leaf[:1], minibatch())
    gradients = jax.jit(jax.grad(lambda *outputs: ppo.ppo_loss(*outputs, batch, options)[0], (0, 1)))
    by_logits, by_value = gradients(LOGITS[:1], jnp.array([1.1]))
    assert np.isfinite(by_logits).all()
    assert by_value == pytest.approx(0.5 * (1.1 - 2.0))


def test_steps_that_were_not_taken_do_not_count():
    nan = jnp.full(1, np.nan)
    batch = minibatch(valid=jnp.array([True, True, False]), log_prob=jnp.log(jnp.array([0.5, 0.5, 1e-38])))
    options = PPOOptions(value_clip=0.2)
    found = ppo.ppo_loss(LOGITS, VALUE, {**batch, "return": jnp.concatenate([batch["return"][:2], nan])}, options)
    expected = ppo.ppo_loss(LOGITS[:2], VALUE[:2], jax.tree.map(lambda leaf: leaf[:2], minibatch()), options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)
    batch = {**batch, "return": jnp.full(3, np.nan), "valid": jnp.zeros(3, bool)}
    loss = jax.jit(jax.value_and_grad(lambda *outputs: ppo.ppo_loss(*outputs, batch, options)[0], (0, 1)))
    nothing, gradients = loss(LOGITS, VALUE)
    assert nothing == 0
    assert not any(np.any(leaf) for leaf in gradients)


def test_each_epoch_takes_every_environment_once():
    options = PPOOptions(epochs=3, minibatches=2)
    order = np.asarray(ppo.minibatch_order(jax.random.key(0), 8, options))
    assert order.shape == (6, 4)
    epochs = order.reshape(3, 8)
    assert np.sort(epochs).tolist() == [list(range(8))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    with pytest.raises(ValueError, match=r"--ppo\.minibatches must divide the environments of a worker, got 2 and 5"):
        ppo.minibatch_order(jax.random.key(0), 5, options)


def test_sequences_are_taken_whole_with_the_states_that_they_begin_with():
    time, environments = np.meshgrid(np.arange(5), np.arange(4), indexing="ij")
    rollout = {
        "observation": {"depth": jnp.asarray(10 * time + environments)[..., None] + jnp.arange(2) / 10},
        "start": jnp.asarray(time == environments),
        "recurrent": (jnp.arange(4.0)[:, None], jnp.arange(4.0)[:, None] + 100),
    }
    taken = ppo.take_environments(rollout, jnp.array([2, 0]))
    np.testing.assert_allclose(taken["observation"]["depth"][:, :, 1], 10 * time[:, :2] + [2, 0] + 0.1, rtol=1e-6)
    assert taken["start"].tolist() == [[t == 2, t == 0] for t in range(5)]
    assert [leaf[:, 0].tolist() for leaf in taken["recurrent"]] == [[2, 0], [102, 100]]


def learn_to_remember(forget):
    """Shares of right answers, [iterations]: a bit is shown at the first of 4 steps, and to be said at the last.

    Rollouts of 10 steps cut episodes at changing places. With ``forget`` (bool []), the state is reset at every step.
    """
    environments, options = 32, PPOOptions(discount=0.9)
    config = PolicyConfig((2,), 2, hidden=16, embedding=4)
    graph, params = nnx.split(Policy(config, rngs=nnx.Rngs(0)))
    optimizer = optax.adam(1e-2)

    def observe(clock, bit):
        shown = jax.nn.one_hot(bit, 2) * (clock == 0)[:, None]
        return {"depth": shown, "goal": jnp.stack([clock / 4, jnp.zeros(environments)], axis=1)}

    def act(params, at, key):
        clock, bit, previous, state = at
        seen, start = observe(clock, bit), (clock == 0) | forget
        output, state = nnx.merge(graph, params).step(seen, previous, start, state)
        for_action, for_bit = jax.random.split(key)
        action = jax.random.categorical(for_action, output.logits).astype(jnp.int32)
        done = clock == 3
        step = {"observation": seen, "previous_action": previous, "start": start, "action": action, "done": done}
        step |= {"value": output.value, "log_prob": ppo.log_probabilities(output.logits, action)}
        step["reward"] = (done & (action == bit)).astype(jnp.float32)
        bit = jnp.where(done, jax.random.randint(for_bit, (environments,), 0, 2), bit)
        return (jnp.where(done, 0, clock + 1), bit, jnp.where(done, 2, action), state), step

    def iterate(carry, key):
        params, optimizer_state, begin = carry
        *keys, for_order = jax.random.split(key, 12)
        end, steps = jax.lax.scan(lambda at, key: act(params, at, key), begin, jnp.stack(keys[:10]))
        no, zero = jnp.zeros_like(steps["done"]), jnp.zeros_like(steps["value"])
        last = act(params, end, keys[10])[1]["value"]
        advantage, returns = ppo.gae(steps["reward"], steps["value"], steps["done"], no, zero, last, 0.9)
        rollout = steps | {"advantage": advantage, "return": returns, "recurrent": begin[3]}

        def update(at, which):
            params, optimizer_state = at
            taken = ppo.take_environments(rollout, which)
            inputs = (taken[name] for name in ("observation", "previous_action", "start", "recurrent"))

            def loss(params):
                output, _ = nnx.merge(graph, params).unroll(*inputs)
                return ppo.ppo_loss(output.logits, output.value, taken, options)[0]

            updates, optimizer_state = optimizer.update(jax.grad(loss)(params), optimizer_state)
            return (optax.apply_updates(params, updates), optimizer_state), None

        order = ppo.minibatch_order(for_order, environments, options)
        at, _ = jax.lax.scan(update, (params, optimizer_state), order)
        return (*at, end), steps["reward"].sum() / steps["done"].sum()

    zeros = jnp.zeros(environments, jnp.int32)
    begin = (zeros, jnp.arange(environments) % 2, zeros + 2, nnx.merge(graph, params).initial_state(environments))
    keys = jax.random.split(jax.random.key(0), 20)
    return jax.lax.scan(iterate, (params, optimizer.init(params), begin), keys)[1]


def test_a_recurrent_policy_learns_to_remember():
    learn = jax.jit(learn_to_remember)
    assert np.mean(learn(False)[-4:]) > 0.95
    assert np.mean(learn(True)[-4:]) < 0.65  # without memory: half


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("clip", 0, "--ppo.clip must be above 0, got 0: the usual"),
        ("value_clip", -1.0, "--ppo.value-clip must be above 0, got -1.0: the usual"),
        ("entropy_weight", -0.1, "--ppo.entropy-weight must be at least 0, got -0.1: 0 leaves"),
        ("discount", 1.5, r"--ppo.discount must be in \[0, 1\], got 1.5: usual"),
        ("decay", float("nan"), r"--ppo.decay must be in \[0, 1\], got nan: usual"),
        ("epochs", 0, "--ppo.epochs must be an integer of at least 1, got 0: 1 takes"),
    ],
)
def test_errors_name_the_option(field, value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        replace(PLAIN, **{field: value}).check()
    PLAIN.check()
