"""Bodies for ranks that average in pairs, at any time."""

import gc
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
from exchange_common import bits, tree
from exchange_small import FAR_MORE, expect, tell, told

from wagma_jax.exchange import ExchangeError, PairwiseExchange
from wagma_jax.exchange.gathering import Gathering


def opened(comm, params=None, **options):
    params = tree(1.0) if params is None else params
    return PairwiseExchange(comm, params, **{"timeout_seconds": FAR_MORE} | options)


def kicked(params, kick):
    """W': every floating leaf moves by ``kick``."""
    return {
        name: value if name == "steps" else value + np.asarray(kick, value.dtype)
        for name, value in ((name, np.asarray(value)) for name, value in params.items())
    }


def kicks(worker, number):
    """Those of one worker: multiples of 1/64, so that few sums are rounded."""
    return np.random.default_rng(worker).integers(-64, 65, number) / 64


def mean_is_preserved(comm, steps, dtype, tolerance, clock="step"):
    """Random delays, unequal numbers of steps: the consensus is the mean of the start and all steps."""
    with jax.enable_x64(dtype == np.float64):
        _mean_is_preserved(comm, steps, dtype, tolerance, clock)


def _mean_is_preserved(comm, steps, dtype, tolerance, clock):
    number = max(1, steps - 7 * comm.rank)
    delays = np.random.default_rng(100 + comm.rank)
    with opened(comm, tree(1.0, dtype), clock=clock, seed=3) as exchange:
        params, partners = exchange.params, []
        for t, kick in enumerate(kicks(comm.rank, number)):
            if delays.random() < 0.3:
                time.sleep(delays.exponential(2e-3))
            params, info = exchange.average(kicked(params, kick))
            assert (info.round, info.waited_seconds) == (t, 0.0) or clock == "round"
            partners += info.partners
            elements = [np.asarray(params["large"], np.float64)[1:] - np.asarray(params["large"], np.float64)[:-1]]
            if dtype == np.float32:  # all elements have moved alike: nothing is torn
                np.testing.assert_allclose(elements[0], np.diff(tree(1.0)["large"]), atol=2e-5)
        mean = exchange.consensus(params)
        rounds = comm.allgather(exchange.round)
        partners = comm.allgather(partners)
    assert len(set(comm.allgather(bits(mean)))) == 1
    total = comm.allreduce(float(kicks(comm.rank, number).sum())) / comm.size
    expected = kicked(tree(1.0, dtype), 0)
    for name in ("scalar", "matrix", "large"):
        wanted = np.asarray(expected[name], np.float64) + total
        np.testing.assert_allclose(np.asarray(mean[name], np.float64), wanted, rtol=tolerance, atol=tolerance)
    assert mean["steps"] == 3
    assert len(set(rounds)) == 1, "all stand at the same round"
    assert rounds[0] == steps - 1 or clock == "round"
    for rank, of_rank in enumerate(partners):
        assert set(of_rank) <= set(exchange.schedule.neighbours(rank))


def whole(comm, floats, steps):
    """All elements move alike: a model that was torn, or whose memory was used too early, would have unequal ones."""
    kept = []
    with opened(comm, {"w": np.zeros(floats, np.float32)}) as exchange:
        params = exchange.params
        for t, kick in enumerate(kicks(comm.rank, steps)):
            params, _ = exchange.average(kicked(params, kick))
            assert np.ptp(np.asarray(params["w"])) == 0
            kept = [*kept[-2:], (params, float(params["w"][0]))]
            assert all(np.ptp(np.asarray(old["w"])) == 0 and old["w"][0] == value for old, value in kept)
            if t % 9 == 5:
                exchange.meet()
        mean = exchange.consensus(params)["w"]
    assert np.ptp(np.asarray(mean)) == 0
    total = comm.allreduce(float(kicks(comm.rank, steps).sum())) / comm.size
    np.testing.assert_allclose(mean[0], total, rtol=1e-5, atol=1e-5)


def nobody_waits(comm):
    """An active worker trains on while its partner computes; a passive one that rests serves."""
    with opened(comm) as exchange:
        params = exchange.params
        if comm.rank == 1:  # its engine answers
            while not told(comm, 0):
                time.sleep(0.01)
            params, info = exchange.average(kicked(params, 1))
            assert set(info.partners) == {0}
        else:
            swapped = 0
            begin = time.perf_counter()
            while swapped < 3:
                params, info = exchange.average(kicked(params, 0))
                swapped += len(info.partners)
                assert time.perf_counter() - begin < FAR_MORE
            tell(comm, 1)
        mean = exchange.consensus(params)
    np.testing.assert_allclose(mean["large"], tree(1.0)["large"] + 1 / 2, rtol=1e-6, atol=1e-6)


def agreed(comm):
    """Both partners of a swap have the same bits, and what the trainer gets are copies."""
    with opened(comm) as exchange:
        params = exchange.params
        for rank in (1, 0):  # who asks comes last
            if comm.rank == rank:
                params, _ = exchange.average(kicked(params, comm.rank))
            comm.barrier()
        exchange.meet()
        after, info = passive_first(comm, exchange, params)
        assert info.partners == (1 - comm.rank,)
        assert len(set(comm.allgather(bits(after)))) == 1
        np.testing.assert_allclose(after["large"], tree(1.0)["large"] + 0.5, rtol=1e-5, atol=1e-6)
        exchange.meet()
        kept = bits(after)
        for _ in range(3):
            exchange.average(jax.tree.map(lambda leaf: leaf, kicked(after, 1)))
        assert bits(after) == kept


def passive_first(comm, exchange, params):
    """A step of all in which no live model is averaged before its trainer has taken it: active ranks, who ask, wait."""
    if comm.rank % 2 == 0:
        comm.barrier()
    result = exchange.average(params)
    if comm.rank % 2:
        comm.barrier()
    return result


def resumed(comm):
    """A run that goes on from a meeting has the live model that the first would have handed out next."""
    with opened(comm, seed=5) as exchange:
        params = exchange.params
        for kick in kicks(comm.rank, 4):
            params, _ = exchange.average(kicked(params, kick))
        exchange.meet()
        state = exchange.state()
        begun = state["swaps"]
        expected, _ = passive_first(comm, exchange, params)
        exchange.meet()
        assert exchange.state()["round"] == 4
    with opened(comm, params, seed=5, state=jax.tree.map(np.asarray, state)) as exchange:
        assert exchange.round == 3
        assert bits(exchange.params) == bits(params)
        assert exchange._engine.state.begun == begun
        again, info = passive_first(comm, exchange, params)
        assert (info.round, bits(again)) == (4, bits(expected))
    usual = Gathering._wait

    def late(gathering, done, **options):  # listens before each step is over, when the other one may have failed
        looks = itertools.count()
        usual(gathering, lambda: (next(looks) > 5 or time.sleep(0.02)) and done(), **options)

    if comm.rank:
        Gathering._wait = late
    try:
        for wrong, words in (({}, "state must be what"), (dict(state, swaps=9), "state must be what")):
            with expect(ValueError, words):
                opened(comm, params, state=wrong)
    finally:
        Gathering._wait = usual


def policies(comm):
    """Kept leaves stay, "sync" ones are averaged by consensus alone."""
    policy = lambda path, leaf: {"k": "keep", "s": "sync", "m": "mean"}[path[0].key]
    start = {name: np.zeros(3, np.float32) for name in "kms"}
    with opened(comm, start, policy=policy) as exchange:
        params, _ = passive_first(comm, exchange, {name: np.full(3, comm.rank, np.float32) for name in "kms"})
        exchange.meet()
        params, _ = passive_first(comm, exchange, params)
        assert [float(params[name][0]) for name in "kms"] == [comm.rank, 0.5, comm.rank]
        params = exchange.consensus(params)
        assert [float(params[name][0]) for name in "kms"] == [comm.rank, 0.5, 0.5]


def nonfinite(comm):
    """A step to a model that is not finite is dropped."""
    with opened(comm, {"w": np.zeros(4, np.float32)}, on_nonfinite="skip") as exchange:
        params, info = exchange.average({"w": np.full(4, np.nan, np.float32)} if comm.rank else {"w": np.ones(4)})
        assert info.nonfinite == bool(comm.rank)
        assert np.isfinite(params["w"]).all()
        mean = exchange.consensus({"w": np.full(4, np.inf, np.float32)} if comm.rank else params)
        np.testing.assert_allclose(mean["w"], 0.5)


def a_rank_fails(comm, failing, resting):
    """Whoever trains or rests hears of it, and all processes go on with a new exchange."""
    own = comm.rank == failing
    text = f"rank {failing} ended with LookupError: no more data"
    with expect(LookupError if own else ExchangeError, "no more data" if own else text), opened(comm) as exchange:
        params = exchange.params
        for t in itertools.count():
            params, _ = exchange.average(kicked(params, 1))
            if own and t == 20:
                raise LookupError("no more data")
            if resting and not own and t == 3:
                exchange.meet()
            time.sleep(1e-3)
    mean_is_preserved(comm, 5, np.float32, 1e-6)


def never_meeting(comm):
    """Whoever meets waits for those who still train, no longer than it was told to, and says for whom."""
    words = "meet() has waited for", "rank 1 has not arrived at round 1: it has computed for"
    with opened(comm) as exchange:
        params, _ = exchange.average(exchange.params)
        comm.barrier()
        if comm.rank == 1:
            while not told(comm, 0):
                time.sleep(0.02)
            with expect(ExchangeError, f"rank 0 ended with TimeoutError: {words[0]}"):
                exchange.average(params)
            return
        exchange.timeout_seconds = 0.5
        with expect(TimeoutError, *words):
            exchange.meet()
        tell(comm, 1)


def stuck(comm):
    """A failure while a large model is on its way: what was posted is abandoned."""
    large = {"w": np.zeros(1 << 20, np.float32)}
    begin = time.perf_counter()
    with expect(LookupError if comm.rank == 1 else ExchangeError, "now"), opened(comm, large) as exchange:
        params = exchange.params
        for t in itertools.count():
            params, _ = exchange.average(params)
            if comm.rank == 1 and t == 3:
                raise LookupError("now")
    assert time.perf_counter() - begin < FAR_MORE / 2
    gc.collect()


def quadratic(comm, least):
    """No worker knows more than its share of a least-squares problem: alone none can solve it, together all do.

    All go on until each has made ``least`` steps, and has been averaged as often.
    """
    target = np.random.default_rng(0).normal(size=8).astype(np.float32)
    knows = np.arange(8) % comm.size == comm.rank
    with opened(comm, {"w": np.zeros(8, np.float32)}) as exchange:
        params, steps, swaps, enough = exchange.params, 0, 0, None
        delays = np.random.default_rng(comm.rank)
        while enough is None or not enough.Test():
            params, info = exchange.average({"w": params["w"] - np.float32(0.3) * knows * (params["w"] - target)})
            steps, swaps = steps + 1, swaps + len(info.partners)
            if min(steps, swaps) >= least and enough is None:
                enough = comm.Ibarrier()
            time.sleep(delays.exponential(1e-3))
        final = exchange.consensus(params)["w"]
    error = lambda w: float(np.linalg.norm(w - target) / np.linalg.norm(target))
    return error(params["w"]), error(final)


def jitted(comm):
    """As the last link of an optax chain, in a jitted step."""
    import optax

    with opened(comm, {"w": np.zeros(4, np.float32)}) as exchange:
        optimizer = optax.chain(optax.sgd(1.0), exchange.as_transformation())
        params = exchange.params
        state = optimizer.init(params)

        @jax.jit
        def step(params, state):
            updates, state = optimizer.update({"w": jnp.full(4, -1.0 - comm.rank)}, state, params)
            return optax.apply_updates(params, updates), state

        for _ in range(6):
            params, state = step(params, state)
        mean = exchange.consensus(params)
    np.testing.assert_allclose(mean["w"], 6 * (1 + comm.size) / 2, rtol=1e-6)


def alone(comm):
    """One worker: what it hands in comes back, bit for bit."""
    with opened(comm) as exchange:
        params = exchange.params
        for kick in kicks(0, 5):
            stepped = kicked(params, kick * 0.1)
            params, info = exchange.average(stepped)
            assert bits(params) == bits(stepped)
            assert info.partners == ()
        assert bits(exchange.consensus(params)) == bits(params)


def leaks(comm, cycles):
    """Many exchanges, one after the other, leave nothing behind."""
    from wagma_jax.exchange.wire import polled

    before, abandoned = None, len(polled._posted)  # by bodies that have failed
    for cycle in range(cycles):
        with opened(comm, {"w": np.zeros(1000, np.float32)}) as exchange:
            params = exchange.params
            for _ in range(4):
                params, _ = exchange.average(params)
            exchange.consensus(params)
        del exchange, params
        gc.collect()
        assert len(polled._posted) <= abandoned
        if cycle in (1, cycles - 1):
            after = (
                len(jax.live_arrays()),
                len(jax.devices()[0].client.live_executables()),
                sum(isinstance(thing, PairwiseExchange) for thing in gc.get_objects()),
            )
            assert before is None or after == before, (before, after)
            before = after


def slow_worker_jumps(comm):
    """With the clock of rounds a worker that is slow takes fewer steps to the same round."""
    with opened(comm, clock="round") as exchange:
        params, steps = exchange.params, 0
        while exchange.round < 40:
            params, _ = exchange.average(kicked(params, 0))
            steps += 1
            if comm.rank == 0:
                time.sleep(2e-3)  # so that it asks on the way
            else:  # until the other one is some rounds ahead
                end = time.monotonic() + 0.5
                while exchange._engine.state.heard < exchange.round + 4 and time.monotonic() < end:
                    time.sleep(1e-3)
        exchange.meet()
        ends = comm.allgather(exchange.round)
    assert len(set(ends)) == 1
    return steps


def refusals(comm):
    for options, words in (
        ({"graph": "star"}, "graph must be 'exponential' or 'ring', got 'star'"),
        ({"clock": "year"}, "clock must be 'step' or 'round'"),
        ({"seed": comm.rank}, "rank 1 and rank 0 differ: schedule is PairSchedule"),
    ):
        with expect(ValueError, words):
            opened(comm, **options)
