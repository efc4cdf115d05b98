"""Bodies for three MPI ranks, which fail again and again, each time in another way, and live on."""

import contextlib
import ctypes
import time

import jax
import jax.numpy as jnp
import numpy as np
from exchange_small import FAR_MORE, START, a_run_goes_well, expect, open_small, tell, told, train

from wagma_jax.exchange import ExchangeError, GroupExchange

SHORT = 0.7  # timeout_seconds of those who are to lose patience, once all stand at the same place


def around(comm):
    """The user handles an exception around the whole; the others hear of it in average and in meet. All begin again."""
    kind, words = (LookupError, "") if comm.rank == 1 else (ExchangeError, "rank 1 ended with LookupError: ")
    with expect(kind, f"{words}no more data"), open_small(comm) as exchange:
        params = train(exchange, exchange.params, 2)
        if comm.rank == 1:
            raise LookupError("no more data")
        train(exchange, params, 2) if comm.rank == 0 else exchange.meet()
    for name in ("average", "consensus"):
        with expect(RuntimeError, "closed"):
            getattr(exchange, name)(START)
    a_run_goes_well(comm)


def consensus_against_close(comm):
    words = [f"rank {rank} called {'close' if rank == 1 else 'consensus'}()" for rank in range(comm.size)]
    with (
        expect(
            ExchangeError,
            "consensus() and meet() must be called equally often and in the same order",
            *words,
        ),
        open_small(comm) as exchange,
    ):
        params = train(exchange, exchange.params, 1)
        if comm.rank != 1:
            exchange.consensus(params)


def stops(comm, impatient, *words, rounds=1, at="round 1", busy=lambda: time.sleep(0.05), **options):
    """Rank 1 is busy until ``impatient`` has lost its patience and said so, and then hears of it as all others do."""
    with open_small(comm, **options) as exchange:
        params = train(exchange, exchange.params, rounds)
        comm.barrier()
        if comm.rank == impatient:
            exchange.timeout_seconds = SHORT
        if comm.rank == 1:
            while not told(comm, impatient):
                busy()
            with expect(ExchangeError, f"rank {impatient} ended with TimeoutError: {at} has waited for ", *words):
                train(exchange, params, 1)
            return
        told_by = "" if impatient == comm.rank else f"rank {impatient} ended with TimeoutError: "
        with expect(ExchangeError if told_by else TimeoutError, f"{told_by}{at} has waited for ", *words):
            {"close()": exchange.close, "meet()": exchange.meet}.get(at, lambda: train(exchange, params, 1))()
        if impatient == comm.rank:
            tell(comm, 1)


def asleep(comm):
    """Rank 2 must ask rank 0 for whom it waits."""
    stops(comm, 2, "rank 1 has not arrived at round 1: it has computed for ")


def computing(comm):
    long = jax.jit(lambda x: jax.lax.fori_loop(0, 300_000_000, lambda i, x: x * 1.0000001 + 1e-9, x))
    stops(
        comm,
        0,
        "rank 1 has not arrived at round 1: it has computed for ",
        busy=lambda: long(jnp.float32(1)).block_until_ready(),
    )


def holding_the_lock(comm):
    hold = ctypes.PyDLL(None).usleep  # keeps the GIL, unlike CDLL

    def busy():
        hold(3_000_000)  # microseconds: longer than SHORT, and a second in which it might answer
        time.sleep(0.5)  # what was promised is kept, and rank 2 gets on

    stops(
        comm,
        2,
        "rank 1 does not answer: it is gone, or stuck in code that holds Python's GIL",
        busy=busy,
    )


def short_of_a_quorum(comm):
    stops(comm, 0, "rank 1 has not arrived at round 1: it has computed for ", group_size=3, sync_period=None, quorum=3)


def never_meeting(comm):
    stops(comm, 2, "rank 1 has not arrived at round 1: it has computed for ", at="meet()")


def never_closing(comm):
    stops(comm, 2, "rank 1 has not arrived at round 1: it has computed for ", at="close()")


def alternately(comm):
    """Two exchanges at once, with groups of 2 and 3, against a computation of all models in one process."""
    rng = np.random.default_rng(0)
    kicks = rng.normal(size=(2, 6, comm.size)).astype(np.float32)
    with contextlib.ExitStack() as stack:
        exchanges = [
            stack.enter_context(
                GroupExchange(
                    comm, {"w": np.float32(0)}, group_size=size, quorum=size, sync_period=5, timeout_seconds=FAR_MORE
                )
            )
            for size in (2, 3)
        ]
        params = [exchange.params for exchange in exchanges]
        models = np.zeros((2, comm.size))
        for t in range(6):
            for i, exchange in enumerate(exchanges):
                params[i], info = exchange.average({"w": params[i]["w"] + kicks[i, t, comm.rank]})
                models[i] += kicks[i, t]
                schedule = exchange.schedule
                groups = [tuple(range(comm.size))] if schedule.is_sync(t) else schedule.groups(t)
                for group in groups:
                    models[i, list(group)] = models[i, list(group)].mean()
                assert (info.round, info.late) == (t, False)
                np.testing.assert_allclose(params[i]["w"], models[i, comm.rank], rtol=1e-5, atol=1e-6)
