"""Bodies for two MPI ranks: an exchange as a link of an optax chain, and random keys in what is exchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from exchange_small import expect
from flax import nnx
from jax import lax

import wagma_jax as wagma
from train.transports.group import MpiGroup
from wagma_jax.exchange.barrier import barrier

RATE = 0.25


def open_exchange(comm, params, **options):
    settings = {"group_size": 2, "sync_period": 2, "quorum": 2, "timeout_seconds": 60} | options
    return wagma.GroupExchange(comm, params, **settings)


def stepping(optimizer):
    """A jitted step on a quadratic: the gradient is w - target."""

    @jax.jit
    def step(params, state, target):
        grads = jax.tree.map(lambda w: w - jnp.asarray(target, w.dtype), params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def accumulation(comm):
    """MultiSteps inside and every=k: a round for each emitted step, as if the mean gradient had come at once."""
    k, targets = 4, np.arange(8.0)[:, None] + np.array([0.0, 100.0])  # [micro-steps, rank]
    start, widths = {"h": jnp.ones(3, jnp.bfloat16), "w": jnp.ones(3)}, {"h": 1e-2, "w": 1e-6}
    with open_exchange(comm, start) as exchange:
        optimizer = optax.chain(optax.MultiSteps(optax.sgd(RATE), k), exchange.as_transformation(every=k))
        step, params, state = stepping(optimizer), start, optimizer.init(start)
        expected = np.ones(2)
        for micro in range(8):
            params, state = step(params, state, targets[micro, comm.rank])
            jax.effects_barrier()
            assert exchange.round == (micro + 1) // k - 1
            if (micro + 1) % k == 0:
                expected -= RATE * (expected - targets[micro + 1 - k : micro + 1].mean(0))
                expected[:] = expected.mean()
            for name, width in widths.items():
                assert params[name].dtype == start[name].dtype
                np.testing.assert_allclose(np.asarray(params[name], float), expected[comm.rank], rtol=width)
        assert step._cache_size() == 1


def accumulation_around(comm):
    """MultiSteps around is refused while tracing; what else throws averages away, once it is seen to."""
    start = {"w": jnp.zeros(3)}
    with open_exchange(comm, start) as exchange:
        link = exchange.as_transformation()
        for every_k in (4, lambda step: 1 + step):
            around = optax.MultiSteps(optax.chain(optax.sgd(RATE), link), every_k)
            with expect(ValueError, "a round of every micro-step", "as_transformation(every=k)"):
                stepping(around)(start, around.init(start), 1.0)
        assert exchange.round == -1
        once = optax.MultiSteps(optax.chain(optax.sgd(RATE), link), 1)  # emits every step
        params, state = start, once.init(start)
        for _ in range(3):
            params, state = stepping(once)(params, state, comm.rank + 1.0)
        jax.block_until_ready(params)
        assert exchange.round == 2

        link = exchange.as_transformation()
        state = link.init(start)
        for _ in range(2):
            link.update(start, state, start)  # the second time, as after a step that was run to compile it
        with expect(jax.errors.JaxRuntimeError, "averages are thrown away", "keep what it returns"):
            jax.block_until_ready(link.update(start, state, start))
        assert exchange.round == 4

        for wrong in (0, 1.5, True):
            with expect(ValueError, "every must be"):
                exchange.as_transformation(every=wrong)
        counting = exchange.as_transformation(every=2)
        anew = jax.jit(lambda params: counting.update(params, counting.init(params), params)[0])
        with expect(ValueError, "every=2 counts updates", "make the state once"):
            anew(start)
        with expect(ValueError, "state must be an ExchangeState, got EmptyState"):
            counting.update(start, optax.EmptyState(), start)


def trees(comm):
    """Another tree than the constructor's is refused while tracing, by the name of the leaf."""
    start = {"a": {"b": jnp.zeros((2, 3)), "n": jnp.arange(2)}, "w": jnp.zeros(4)}
    with open_exchange(comm, start) as exchange:
        link = exchange.as_transformation()

        @jax.jit
        def step(params, updates):
            return link.update(updates, link.init(params), params)[0]

        a, w = start["a"], start["w"]
        cases = [
            ({"a": a}, "the leaf ['w'] is missing"),
            ({"a": a, "w": w, "z": w}, "the leaf ['z'] is new"),
            ({"a": a, "w": w[:3]}, "['w'] must be float32[4] as in params, got float32[3]"),
            ({"a": a, "w": w.astype(jnp.float16)}, "['w'] must be float32[4] as in params, got float16[4]"),
            ({"a": a | {"n": jnp.arange(3)}, "w": w}, "['a']['n'] must be int32[2] as in params, got int32[3]"),
            ({"a": a, "w": optax.MaskedNode()}, "['w'] is masked, but the exchange averages it"),
            ([a, w], "the leaf ['a']['b'] is missing"),
            ({"a": a, "w": w, "empty": ()}, "its containers are"),
        ]
        for params, words in cases:
            with expect(ValueError, words):
                step(params, params)
        with expect(ValueError, "['w'] must have an update of shape [4], as in params, got [3, 4]"):
            step(start, start | {"w": jnp.zeros((3, 4))})
        assert exchange.round == -1
        updates = step(start, start | {"w": jnp.full(4, float(comm.rank))})
        np.testing.assert_array_equal(updates["w"], 0.5)
        assert exchange.round == 0


def steps_in_flight(comm):
    """Calls that follow a step which JAX has only dispatched come after it."""
    start = {"w": jnp.zeros(4)}
    with open_exchange(comm, start, sync_period=None) as exchange:
        optimizer = optax.chain(optax.sgd(RATE), exchange.as_transformation())
        step, params, state, expected = stepping(optimizer), start, optimizer.init(start), 0.0

        @jax.jit
        def slowly(target):  # JAX goes on before it is computed, and so does a step that takes it
            return target + 0 * lax.fori_loop(0, 1000, lambda i, x: jnp.tanh(x @ x), jnp.eye(100)).sum()

        for call in (jax.block_until_ready, exchange.consensus, exchange.average, lambda params: exchange.meet()):
            barrier(comm)
            before = exchange.round
            params, state = step(params, state, slowly(comm.rank + 1.0))
            call(params)
            expected -= RATE * (expected - 1.5)
            assert exchange.round == before + 1 + (call == exchange.average)
            np.testing.assert_allclose(params["w"], expected, rtol=1e-6)


def keys(comm):
    """Random keys stay each rank's own, bit for bit, and never leave a step."""
    key = jax.random.key(comm.rank)
    start = {"key": key, "keys": jax.random.split(key, (3, 2)), "raw": jax.random.PRNGKey(comm.rank), "w": jnp.zeros(2)}
    names = ("key", "keys", "raw")

    def check(tree):
        for name in names:
            assert tree[name].dtype == start[name].dtype
            np.testing.assert_array_equal(*(numbers(one[name]) for one in (tree, start)))

    with open_exchange(comm, start) as exchange:
        params = exchange.params | {"w": jnp.full(2, float(comm.rank))}
        check(params)
        new, _ = exchange.average(params)
        check(new)
        check(exchange.consensus(new))
        link = exchange.as_transformation()
        masked = optax.masked(link, {name: name == "w" for name in start})
        for one in (link, masked):
            updates = dict.fromkeys(names) | {"w": jnp.full(2, 1.0)}

            @jax.jit
            def step(params, updates, one=one):
                updates, _ = one.update(updates, one.init(params), params)
                return params | {"w": params["w"] + updates["w"]}

            new = step(params, updates)
            check(new)
            np.testing.assert_array_equal(new["w"], 1.5)
    group = MpiGroup(comm)
    mean = group.mean({"key": key, "w": jnp.full(2, float(comm.rank))})
    np.testing.assert_array_equal(numbers(mean["key"]), numbers(key))
    np.testing.assert_array_equal(mean["w"], 0.5)
    group.close()


def numbers(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def dropout(comm):
    """Ranks that build one model draw the same masks, until the rank is folded into its keys."""
    graph, start = nnx.split(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    masks = []
    with open_exchange(comm, {"state": start, "w": jnp.zeros(2)}) as exchange:
        for params in (exchange.params, wagma.fold_in(exchange.params, exchange.rank)):
            params, _ = exchange.average(params)
            masks.append(np.asarray(nnx.merge(graph, params["state"])(jnp.ones(64))))
    return masks
