"""One rank of a run that fails, or that survives misuse: the first argument names how. See test_failures.py."""

import contextlib
import ctypes
import gc
import math
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpi4py import MPI

from wagma_jax.exchange import ExchangeError, GroupExchange

WORLD = MPI.COMM_WORLD
RANK, SIZE = WORLD.rank, WORLD.size
START = {"b": np.zeros(2, np.float32), "w": np.arange(4, dtype=np.float32)}
FAR_MORE = 60.0  # seconds: what nobody waits for in a run that ends well
SHORT = 2.0  # timeout_seconds of those who are to lose patience


def say(text):
    os.write(1, f"{text}\n".encode())


def ends_now():
    say(f"ends at {time.time()}")


def step(params):
    return {"b": params["b"] + np.float32(1), "w": params["w"] + np.float32(RANK)}


def train(exchange, params, rounds):
    for _ in range(rounds):
        params, _ = exchange.average(step(params))
    return params


@contextlib.contextmanager
def expect(kind, *words):
    """The body must raise ``kind`` with all these words in its message."""
    with pytest.raises(kind) as caught:
        yield
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"


def tell(*ranks):
    for rank in ranks:
        WORLD.send(None, rank, tag=1)


def told(source):
    """Whether ``tell`` was called; without waiting."""
    return WORLD.improbe(source, tag=1)


def wait_until(condition):
    end = time.monotonic() + FAR_MORE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def open_small(**options):
    """An exchange with as little to compile as possible: each round is a sync round, unless asked for otherwise."""
    settings = {"group_size": 1, "sync_period": 1, "timeout_seconds": FAR_MORE} | options
    return GroupExchange(WORLD, START, **settings)


def a_run_goes_well(**options):
    """That the processes and their communicator are still good for something."""
    with open_small(**options) as exchange:
        mean = train(exchange, exchange.params, 2)
        np.testing.assert_allclose(mean["w"], START["w"] + 2 * (SIZE - 1) / 2, rtol=1e-6)
        np.testing.assert_allclose(mean["b"], 2)


# --- Runs that die ---


def exception():
    """Rank 1 fails, while rank 0 waits for a round and rank 2 computes."""
    with open_small() as exchange:
        params = train(exchange, exchange.params, 2)
        if RANK == 2:
            time.sleep(FAR_MORE)
        if RANK == 1:
            time.sleep(0.5)
            ends_now()
            raise LookupError("no more data")
        train(exchange, params, 2)


def exit_while_others_wait():
    with open_small() as exchange:
        params = train(exchange, exchange.params, 2)
        if RANK == 1:
            ends_now()
            sys.exit(3)
        train(exchange, params, 2)


def exit_while_others_compute():
    """Rank 1 is asked to end while it waits."""
    with open_small() as exchange:
        params = train(exchange, exchange.params, 2)
        if RANK == 0:
            time.sleep(FAR_MORE)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        ends_now()
        train(exchange, params, 1)


def sigterm():
    with open_small() as exchange:
        params = train(exchange, exchange.params, 2)
        if RANK == 1:
            ends_now()
            os.kill(os.getpid(), signal.SIGTERM)
        train(exchange, params, 2)


def forgotten():
    """Rank 1 ends well but for close(); nothing in its program refers to the exchange any more."""
    exchange = open_small()
    params = train(exchange, exchange.params, 2)
    if RANK == 1:
        ends_now()
        return
    train(exchange, params, 2)


def stuck():
    """Rank 1 holds Python's lock for ever."""
    with open_small(group_size=2, sync_period=None, timeout_seconds=SHORT) as exchange:
        params = train(exchange, exchange.params, 2)
        WORLD.barrier()
        if RANK == 1:
            ctypes.PyDLL(None).usleep(int(FAR_MORE * 1e6))
        ends_now()
        train(exchange, params, 2)


def inside():
    """Rank 1's engine fails when rank 0's is inside their exchange, where nothing can be told it."""
    with open_small() as exchange:
        params = train(exchange, exchange.params, 2)
        if RANK == 1:

            def broken(*arguments):
                ends_now()
                raise MemoryError("no room for the sum")

            exchange._engine.wire.exchange = broken
        train(exchange, params, 2)


# --- Two processes that live on ---


def misuse():
    other_trees()
    other_settings()
    bad_settings()
    another_tree_later()
    use_after_close()
    states()
    two_threads()
    other_values()


def other_trees():
    f32, f16, i32 = np.float32, np.float16, np.int32
    a, b = np.zeros(3, f32), np.zeros((2, 2), f32)
    cases = [
        ({"a": a, "b": b[0]}, "the leaf ['b'] is float32[2] (mean) there", "['b'], float32[2, 2] (mean)"),
        ({"a": a, "b": b.astype(f16)}, "the leaf ['b'] is float16[2, 2] (mean) there"),
        ({"a": a.astype(i32), "b": b[0]}, "the leaf ['a'] is int32[3] (keep) there"),
        ({"a": a}, "the leaf ['b'] is missing on one of them"),
        ({"a": a, "b": b, "c": a}, "the leaf ['c'] is missing on one of them"),
        ({"a": a, "c": b}, "the leaf ['c'] is float32[2, 2] (mean) there, and on rank 0 it is ['b']"),
    ]
    for tree, *words in cases:
        with expect(ValueError, "rank 1 and rank 0 differ", *words, "pass the same on all ranks"):
            GroupExchange(WORLD, tree if RANK == 1 else {"a": a, "b": b}, group_size=2)
    with expect(ValueError, "the tree is PyTreeDef((*, *)) there, and PyTreeDef([*, *]) on rank 0"):
        GroupExchange(WORLD, (a, b) if RANK == 1 else [a, b], group_size=2)
    with expect(ValueError, "the leaf ['a'] is float32[3] (keep) there"):
        GroupExchange(WORLD, {"a": a}, group_size=2, policy=lambda path, leaf: "keep" if RANK == 1 else "mean")
    say("other trees")


def other_settings():
    settings = {"group_size": 2, "sync_period": 10, "rotate": True, "quorum": 1, "clock": "step"}
    others = {"group_size": 1, "sync_period": None, "rotate": False, "quorum": 2, "clock": "round"}
    for name, value in others.items():
        here = settings | ({name: value} if RANK == 1 else {})
        word = "schedule" if name in ("group_size", "sync_period", "rotate") else name
        with expect(ValueError, f"rank 1 and rank 0 differ: {word} is ", f"{value}", f"{settings[name]}"):
            GroupExchange(WORLD, START, **here)
    say("other settings")


def bad_settings():
    """Wrong on rank 1 alone, so that rank 0 must hear of it."""
    cases = [
        ("group_size", 0, ValueError, "group_size must be between 1 and num_workers=2, got 0"),
        ("group_size", 1.5, ValueError, "group_size must be an integer, got 1.5 (float)"),
        ("sync_period", 0, ValueError, "sync_period"),
        ("quorum", 0, ValueError, "quorum must be between 1 and 2, got 0"),
        ("quorum", 3, ValueError, "quorum must be between 1 and 2, got 3"),
        ("quorum", "many", ValueError, "quorum must be an integer, got 'many' (str)"),
        ("clock", "wall", ValueError, "clock must be 'step' or 'round', got 'wall'"),
        ("timeout_seconds", 0, ValueError, "timeout_seconds must be positive, got 0"),
        ("timeout_seconds", math.nan, ValueError, "timeout_seconds must be positive, got nan"),
        ("timeout_seconds", "long", TypeError, ""),
        ("policy", lambda path, leaf: "never", ValueError, "never"),
    ]
    for name, value, kind, words in cases:
        settings = {"group_size": 2} | ({name: value} if RANK == 1 else {})
        there = f"rank 1 could not build its exchange: {kind.__name__}: " if RANK == 0 else ""
        with expect(ValueError if RANK == 0 else kind, words, there):
            GroupExchange(WORLD, START, **settings)
    for comm in (5, MPI.GROUP_EMPTY):
        with expect(TypeError, "comm must be an mpi4py.MPI.Intracomm or None"):
            GroupExchange(comm, START, group_size=2)
    a_run_goes_well(timeout_seconds=math.inf)
    say("bad settings")


def another_tree_later():
    wrong = [
        ({"b": START["b"]}, "the tree must be built like params"),
        ({"b": START["b"], "w": START["w"][:3]}, "['w'] must be float32[4] as in params, got float32[3]"),
        ({"b": START["b"].astype(np.int32), "w": START["w"]}, "['b'] must be float32[2] as in params, got int32[2]"),
    ]
    with open_small() as exchange:
        params = train(exchange, exchange.params, 1)
        sent = exchange._engine.mailbox.sent
        WORLD.barrier()
        for tree, words in wrong if RANK == 1 else []:
            for call in (exchange.average, exchange.consensus):
                with expect(ValueError, words):
                    call(tree)
        assert exchange._engine.mailbox.sent == sent
        assert exchange.round == 0
        WORLD.barrier()
        mean, info = exchange.average(step(params))
        assert info.round == 1
        np.testing.assert_allclose(mean["b"], 2)
        assert exchange.consensus(mean)["w"].tolist() == mean["w"].tolist()
    say("another tree later")


def use_after_close():
    exchange = open_small()
    params = train(exchange, exchange.params, 1)
    with expect(RuntimeError, "gone after the first call of average()"):
        _ = exchange.params
    exchange.close()
    for name, arguments in {"average": [params], "consensus": [params], "meet": [], "state": []}.items():
        with expect(RuntimeError, f"{name}() was called after the exchange was closed"):
            getattr(exchange, name)(*arguments)
    exchange.close()
    assert exchange._control == exchange._data == MPI.COMM_NULL
    say("use after close")


def states():
    """Where a state can be had, and what is no good one."""
    with open_small(group_size=SIZE, quorum=SIZE, sync_period=3) as exchange:
        assert exchange.state() == {"round": -1, "base": -1, "version": -1}
        params = train(exchange, exchange.params, 2)
        with expect(RuntimeError, "state() was called while others may be training"):
            exchange.state()
        exchange.meet()
        between = exchange.state()
        assert between.keys() == {"round", "base", "version", "published"}
        assert [leaf.shape for leaf in between["published"]] == [START["b"].shape, START["w"].shape]
        params = train(exchange, params, 1)
        at_sync = exchange.state()
        assert at_sync == {"round": 2, "base": 2, "version": 2}
        exchange.consensus(params)
        assert exchange.state() == at_sync
        WORLD.barrier()
    with expect(RuntimeError, "state() was called after the exchange was closed"):
        exchange.state()
    first, *others = between["published"]
    cases = [
        ({}, "state must be what GroupExchange.state() returned, got {}"),
        (at_sync | {"round": 1}, "state must be what GroupExchange.state() returned"),
        (at_sync | {"round": "2"}, "state['round'] must be an integer, got '2' (str)"),
        (between | {"published": others}, "expected 2 arrays, one for each averaged leaf of params, got 1"),
        (between | {"published": [first[:1], *others]}, "['b'] must be float32[2] as in params, got float32[1]"),
        (None, "rank 1 and rank 0 differ: first_round is 0 there, and 3 on rank 0"),
        (between, "rank 1 and rank 0 differ: first_round is 2 there, and 3 on rank 0"),
    ]
    for state, words in cases:
        with expect(ValueError, words):
            open_small(state=state if RANK == 1 else at_sync)
    with expect(ValueError, "first_round is 7, but state goes on with round 3: leave first_round out"):
        open_small(first_round=7, state=at_sync)
    mine = {"b": START["b"], "w": START["w"] + np.float32(RANK)}
    with open_small(first_round=3, state={name: np.asarray(value) for name, value in at_sync.items()}) as exchange:
        np.testing.assert_array_equal(exchange.params["w"], START["w"])
        assert (exchange.round, exchange.info.base) == (2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with GroupExchange(WORLD, mine, group_size=1, state=at_sync) as exchange:
            np.testing.assert_array_equal(exchange.params["w"], mine["w"])
            params, info = exchange.average(mine)
            np.testing.assert_array_equal(params["w"], mine["w"])
            assert info.contributed_rounds == (3,)
    say("states")


def two_threads():
    with open_small() as exchange:
        params = step(exchange.params)
        if RANK == 1:
            wait_until(lambda: told(0))
            train(exchange, params, 1)
        else:
            results = []
            thread = threading.Thread(target=lambda: results.append(exchange.average(params)))
            thread.start()
            wait_until(exchange._lock.locked)
            for name, arguments in {"average": [params], "consensus": [params], "meet": [], "close": []}.items():
                with expect(RuntimeError, f"{name}() was called from two threads at once"):
                    getattr(exchange, name)(*arguments)
            tell(1)
            thread.join(FAR_MORE)
            ((_, info),) = results
            assert info.round == 0
    say("two threads")


def other_values():
    """Ranks that start from values of their own are warned, unless they take exchange.params."""
    mine = {"b": START["b"] + RANK, "w": START["w"]}
    for own, use in ((mine, False), (mine, True), (START, False)):
        with (
            GroupExchange(WORLD, own, group_size=2, sync_period=None, timeout_seconds=FAR_MORE) as exchange,
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always")
            params = own
            if use:
                params = exchange.params
                for name, leaf in params.items():
                    assert isinstance(leaf, jax.Array)
                    np.testing.assert_array_equal(leaf, START[name])
            train(exchange, params, 2)
        texts = [str(warning.message) for warning in caught]
        if own is mine and not use and RANK == 1:
            assert len(texts) == 1, texts
            assert "params of this rank differed from rank 0's" in texts[0]
            assert caught[0].filename == __file__, "it must name the line that calls average()"
        else:
            assert not texts, texts
    say("other values")


# --- Three processes that handle all failures, and live on ---


def handled():
    around()
    consensus_against_close()
    asleep()
    computing()
    holding_the_lock()
    short_of_a_quorum()
    never_closing()
    alternately()
    if RANK == 1:
        time.sleep(3.5)  # longer than a process that fails would wait for it
    say("lives on")


def around():
    """The user handles an exception around the whole; and then all begin again."""
    kind, words = (LookupError, "") if RANK == 1 else (ExchangeError, "rank 1 ended with LookupError: ")
    with expect(kind, f"{words}no more data"), open_small() as exchange:
        params = train(exchange, exchange.params, 2)
        if RANK == 1:
            raise LookupError("no more data")
        train(exchange, params, 2)
    for name in ("average", "consensus"):
        with expect(RuntimeError, "closed"):
            getattr(exchange, name)(START)
    a_run_goes_well()
    say("around")


def consensus_against_close():
    words = [f"rank {rank} called {'close' if rank == 1 else 'consensus'}()" for rank in range(SIZE)]
    with (
        expect(
            ExchangeError,
            "consensus() and meet() must be called equally often and in the same order",
            *words,
        ),
        open_small() as exchange,
    ):
        params = train(exchange, exchange.params, 1)
        if RANK != 1:
            exchange.consensus(params)
    say("consensus against close")


def stops(impatient, *words, rounds=1, at="round 1", busy=lambda: time.sleep(0.05), **options):
    """Rank 1 is busy until ``impatient`` has lost its patience and said so, and then hears of it as all others do."""
    timeout = SHORT if impatient == RANK else FAR_MORE
    with open_small(timeout_seconds=timeout, **options) as exchange:
        params = train(exchange, exchange.params, rounds)
        WORLD.barrier()
        if RANK == 1:
            while not told(impatient):
                busy()
            with expect(ExchangeError, f"rank {impatient} ended with TimeoutError: {at} has waited for ", *words):
                train(exchange, params, 1)
            return
        told_by = "" if impatient == RANK else f"rank {impatient} ended with TimeoutError: "
        with expect(ExchangeError if told_by else TimeoutError, f"{told_by}{at} has waited for ", *words):
            if at == "close()":
                exchange.close()
            else:
                train(exchange, params, 1)
        if impatient == RANK:
            tell(1)


def asleep():
    """Rank 2 must ask rank 0 for whom it waits."""
    stops(2, "rank 1 has not arrived at round 1: it has computed for ")
    say("asleep")


def computing():
    long = jax.jit(lambda x: jax.lax.fori_loop(0, 300_000_000, lambda i, x: x * 1.0000001 + 1e-9, x))
    stops(
        0,
        "rank 1 has not arrived at round 1: it has computed for ",
        busy=lambda: long(jnp.float32(1)).block_until_ready(),
    )
    say("computing")


def holding_the_lock():
    hold = ctypes.PyDLL(None).usleep  # keeps Python's lock, unlike CDLL
    stops(
        2, "rank 1 does not answer: it is gone, or stuck in code that holds Python's GIL", busy=lambda: hold(6_000_000)
    )
    say("holding the lock")


def short_of_a_quorum():
    stops(0, "rank 1 has not arrived at round 1: it has computed for ", group_size=3, sync_period=None, quorum=3)
    say("short of a quorum")


def never_closing():
    stops(2, "rank 1 has not arrived at round 1: it has computed for ", at="close()")
    say("never closing")


def alternately():
    """Two exchanges at once, with groups of 2 and 3, against a computation of all models in one process."""
    rng = np.random.default_rng(0)
    kicks = rng.normal(size=(2, 6, SIZE)).astype(np.float32)
    with contextlib.ExitStack() as stack:
        exchanges = [
            stack.enter_context(
                GroupExchange(
                    WORLD, {"w": np.float32(0)}, group_size=size, quorum=size, sync_period=5, timeout_seconds=FAR_MORE
                )
            )
            for size in (2, 3)
        ]
        params = [exchange.params for exchange in exchanges]
        models = np.zeros((2, SIZE))
        for t in range(6):
            for i, exchange in enumerate(exchanges):
                params[i], info = exchange.average({"w": params[i]["w"] + kicks[i, t, RANK]})
                models[i] += kicks[i, t]
                schedule = exchange.schedule
                groups = [tuple(range(SIZE))] if schedule.is_sync(t) else schedule.groups(t)
                for group in groups:
                    models[i, list(group)] = models[i, list(group)].mean()
                assert (info.round, info.late) == (t, False)
                np.testing.assert_allclose(params[i]["w"], models[i, RANK], rtol=1e-5, atol=1e-6)
    say("alternately")


# --- Leaks ---


def leaks():
    """Many exchanges, one after the other, leave nothing behind."""
    interval = sys.getswitchinterval()
    cycles, before = int(sys.argv[2]), {}
    arrays = len(jax.live_arrays())
    for cycle in range(cycles):
        exchange = open_small()
        assert sys.getswitchinterval() < interval
        exchange.consensus(train(exchange, exchange.params, 2))
        exchange.close()
        assert exchange._control == exchange._data == MPI.COMM_NULL
        assert sys.getswitchinterval() == interval
        gc.collect()
        assert len(jax.live_arrays()) <= arrays + 1, "close() frees all models"
        del exchange
        gc.collect()
        if cycle in (4, cycles - 1):
            after = {
                "threads": threading.active_count(),
                "descriptors": len(os.listdir("/proc/self/fd")),
                "executables": len(jax.devices()[0].client.live_executables()),
                "arrays": len(jax.live_arrays()),
                "exchanges": sum(isinstance(thing, GroupExchange) for thing in gc.get_objects()),
                "MiB": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20,
            }
            say(f"{cycle} {after}")
            if before:
                grown = after.pop("MiB") - before.pop("MiB")
                assert after == before, (before, after)
                assert grown < 40, grown
            before = after
    say("no leaks")


say(f"pid {os.getpid()}")
scenarios = (
    exception,
    exit_while_others_wait,
    exit_while_others_compute,
    sigterm,
    forgotten,
    stuck,
    inside,
    misuse,
    handled,
    leaks,
)
{scenario.__name__: scenario for scenario in scenarios}[sys.argv[1]]()
