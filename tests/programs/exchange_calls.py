"""Bodies for two MPI ranks: calls that are left by an exception, ranks that do not come, and limits of waits."""

import contextlib
import signal
import threading
from unittest import mock

import jax.numpy as jnp
import numpy as np
from exchange_small import FAR_MORE, START, a_run_goes_well, expect, open_small, step, tell, told, train, wait_until

from wagma_jax.exchange import ExchangeError, GroupExchange, groups, history, offsets, startup
from wagma_jax.exchange.gathering import Gathering
from wagma_jax.exchange.wire import Wire

SHORT = 1.0  # timeout_seconds of those who are to lose patience


@contextlib.contextmanager
def interrupted_after(seconds):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    with expect(KeyboardInterrupt):
        yield
    signal.signal(signal.SIGALRM, before)


def left(comm):
    """Rank 0 leaves each kind of call, on which rank 1 counts, and goes on as if nothing had happened."""
    calls = {
        "average": lambda exchange: exchange.average(step(START, comm.rank)),
        "consensus": lambda exchange: exchange.consensus(START),
        "meet": lambda exchange: exchange.meet(),
        "close": lambda exchange: exchange.close(),
    }
    for name, call in calls.items():
        exchange = open_small(comm)
        over = f"rank 0's {name}() was left by KeyboardInterrupt"
        if comm.rank == 0:
            with interrupted_after(0.2):
                call(exchange)
            for later in ("average", "consensus"):
                with expect(ExchangeError, f"{later}() was called after the exchange was closed, since {over}: build"):
                    calls[later](exchange)
            exchange.close()
            tell(comm, 1)
        else:
            wait_until(lambda: told(comm, 0))
            with expect(ExchangeError, over):
                call(exchange)
    a_run_goes_well(comm)


def errors(comm):
    """Rank 0 fails inside of a call: before it has published, when nothing is lost, and when it has the result."""
    with open_small(comm) as exchange:
        params = exchange.params
        if comm.rank == 0:
            with mock.patch.object(exchange._staging, "pack", side_effect=MemoryError), expect(MemoryError):
                exchange.average(params)
        params = train(exchange, params, 1)
        np.testing.assert_allclose(params["b"], 1)
        over = "rank 0's average() was left by MemoryError: no room"
        if comm.rank == 0:
            fails = mock.patch.object(exchange._staging, "unpack", side_effect=MemoryError("no room"))
            with fails, expect(MemoryError, "no room"):
                exchange.average(params)
        else:
            with expect(ExchangeError, over):
                train(exchange, params, 2)
        with expect(ExchangeError, f"since {'' if comm.rank == 0 else 'rank 1 ended with ExchangeError: '}{over}"):
            exchange.meet()


def constructor(comm):
    """Rank 1 fails inside of the constructor, at one step after the other; then rank 0 waits for it alone."""
    places = [(Gathering, "duplicate"), (startup, "broadcast"), (groups, "warm_up"), (Wire, "prepare")]
    for place, name in places:
        own = comm.Dup()  # which is of no use if they stop at different steps
        if comm.rank == 1:
            with mock.patch.object(place, name, side_effect=MemoryError("no room")), expect(MemoryError, "no room"):
                open_small(own)
        else:
            with expect(ExchangeError, "rank 1 ended with MemoryError: no room"):
                open_small(own)
    if comm.rank == 0:
        words = "GroupExchange() has waited for ", "of 2 ranks these have not come as far: 1; they are gone, stuck"
        with expect(TimeoutError, *words):
            open_small(comm, timeout_seconds=SHORT)
        tell(comm, 1)
    else:
        wait_until(lambda: told(comm, 0))
        with expect(ExchangeError, "rank 0 ended with TimeoutError: GroupExchange() has waited for "):
            open_small(comm)
    a_run_goes_well(comm)


def closing(comm, folder):
    """All have closed, but rank 1 does not come to the last measurement of its clock."""
    exchange = open_small(comm, ledger=folder, timeout_seconds=SHORT if comm.rank == 0 else FAR_MORE)
    train(exchange, exchange.params, 1)
    if comm.rank == 0:
        with expect(TimeoutError, "close() has waited for ", "of 2 ranks these have not come as far: 1"):
            exchange.close()
        tell(comm, 1)
    else:
        measure = offsets.measure

        def later(gathering):
            wait_until(lambda: told(comm, 0))
            return measure(gathering)

        with mock.patch.object(offsets, "measure", later), expect(ExchangeError, "rank 0 ended with TimeoutError"):
            exchange.close()


def far_behind(comm):
    """Rank 1 comes to a round that is so old that what was exchanged in it is forgotten."""
    with mock.patch.object(history, "REMEMBERED", 3), open_small(comm, group_size=2, sync_period=None) as exchange:
        if comm.rank == 0:
            train(exchange, exchange.params, 6)
            return
        wait_until(lambda: exchange._engine.state.round > 5)
        infos = [exchange.average(START)[1] for _ in range(4)]
        assert [info.late for info in infos] == [True] * 4
        assert [info.staleness for info in infos] == [1, 1, 1, 4]  # round 3 is remembered, which took the start
        assert [len(info.contributed_rounds) for info in infos] == [0, 0, 0, 2]


def nonfinite(comm):
    """Rank 0's models are not finite but for the first: its publications take their places."""
    model = lambda value, other=0: {"b": np.float32([value, 1]), "h": np.full(3, other, jnp.bfloat16)}
    options = {"group_size": 2, "quorum": 2, "sync_period": 3, "on_nonfinite": "skip", "timeout_seconds": FAR_MORE}
    options["policy"] = lambda path, leaf: "sync" if path[0].key == "h" else "mean"
    with expect(ValueError, "params must be finite with on_nonfinite='skip', got NaN or infinity: start from others"):
        GroupExchange(comm, model(np.nan), **options)
    with GroupExchange(comm, model(0), **options) as exchange:
        bad = model(5, np.inf), model(np.nan), model(-np.inf), model(np.nan)
        # publications 1 and 3, 1 and 5, 1 and 7 (a sync round), the mean of these and 8
        for own, theirs, expected, version in ((1, 3, 2, 0), (bad[0], 5, 3, 0), (bad[1], 7, 4, 0), (bad[2], 8, 6, 2)):
            skips = comm.rank == 0 and own != 1
            params, info = exchange.average(model(theirs) if comm.rank else own if skips else model(own))
            assert info.nonfinite == skips
            assert info.contributed_rounds == (version, info.round)
            assert (info.late, info.staleness) == (
                (True, info.round - version) if skips and info.round != 2 else (False, 0)
            )
            np.testing.assert_allclose(params["b"], [expected, 1])
            np.testing.assert_array_equal(params["h"], 0)
        np.testing.assert_allclose(exchange.consensus(model(10) if comm.rank else bad[3])["b"], [7, 1])


def deferred(comm):
    """What only sync rounds average is packed for them alone, and as it is newest where a worker rests in one."""
    start = {"s": np.zeros(3, np.float32), "w": np.zeros(2, np.float32)}
    options = {"group_size": 2, "quorum": 2, "sync_period": 3, "timeout_seconds": FAR_MORE}
    options["policy"] = lambda path, leaf: "sync" if path[0].key == "s" else "mean"
    model = lambda value: {name: jnp.full(leaf.shape, value, leaf.dtype) for name, leaf in start.items()}
    with GroupExchange(comm, start, **options) as exchange:
        packed, pack = [], exchange._staging._packed
        exchange._staging._packed = lambda leaves, chosen: (packed.append(len(chosen)), pack(leaves, chosen))[1]
        for t in range(3):
            params, _ = exchange.average(model(comm.rank + t))
            np.testing.assert_array_equal(params["w"], 0.5 + t)
            np.testing.assert_array_equal(params["s"], comm.rank + t if t < 2 else 2.5)
        assert packed == [1, 1, 2]
        # rank 0 rests at sync rounds; where its leaves are gone, what it had at the last one stands for them
        for gone, mean in ((None, 30), ("donated", 35), ("overwritten", 30)):
            exchange.average(model(comm.rank))
            newest = model(20)
            if gone == "overwritten":
                newest["s"] = np.full(3, 20, np.float32)
            exchange.average(newest)
            if comm.rank == 0:
                if gone == "donated":
                    newest["s"].delete()
                if gone == "overwritten":
                    newest["s"][:] = np.nan
                exchange.meet()
                continue
            params, info = exchange.average(model(40))
            assert info.is_sync
            np.testing.assert_array_equal(params["w"], 30)
            np.testing.assert_array_equal(params["s"], mean)
            exchange.meet()


def untaken(comm):
    """Rank 1 comes late, while an exchange overwrites the sum that it has not taken: it waits for the new one."""
    with open_small(comm, group_size=2, sync_period=None) as exchange:
        params = exchange.params
        if comm.rank == 0:
            comm.barrier()
            train(exchange, params, 2)
            return
        exchanges, inside, goes_on = exchange._engine.wire.exchange, threading.Event(), threading.Event()

        def slow(group, divisor, header, *buffers):
            if header[0] == 1:
                inside.set()
                goes_on.wait(FAR_MORE)
            return exchanges(group, divisor, header, *buffers)

        exchange._engine.wire.exchange = slow
        comm.barrier()
        assert inside.wait(FAR_MORE)
        threading.Timer(0.2, goes_on.set).start()
        mine = {"b": params["b"] + 30, "w": params["w"]}
        merged, info = exchange.average(mine)
        assert goes_on.is_set()
        assert (info.round, info.late, info.base) == (0, True, 1)
        # rank 0 has published 0 + 1 at round 0, whose mean with this rank's 0 is 0.5, and 1.5 at round 1
        np.testing.assert_allclose(merged["b"], (1.5 + 0 + 30) / 3)
