"""Bodies for MPI ranks: what exchanges do beside averaging: tallies, meetings and states."""

import pickle
import time
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from exchange_common import bits, local_step, tree, wait_for
from exchange_small import START, expect, open_small, train

import wagma_jax as wagma
from wagma_jax.exchange.barrier import barrier


def tallies(comm):
    """What is counted between sync rounds adds up exactly; a worker that rests adds nothing."""
    start, big = {"w": np.zeros(3, np.float32)}, (1 << 63) - 1
    with wagma.GroupExchange(comm, start, group_size=2, sync_period=3, timeout_seconds=60) as exchange:
        counted, params = 0, start
        for t in range(6):
            counted += 10**comm.rank
            params, info = exchange.average(params, (counted, big, -1)[: comm.rank + 1])
            assert (info.tally == ()) == ((t + 1) % 3 != 0), info
            if info.tally:
                sums = (3 * sum(10**rank for rank in range(comm.size)), (comm.size - 1) * big, 2 - comm.size)
                assert info.tally == sums[: comm.size], info
                counted = 0
        for bad, words in ((1 << 63,), "at most 64 bits"), ((0.5,), "integers"), (7, "integers"), ("ab", "integers"):
            with pytest.raises(ValueError, match=words):
                exchange.average(params, bad)
            with pytest.raises(ValueError, match=words):
                exchange.meet(bad)
        if comm.rank == 0:
            assert exchange.meet((5,)) == (5, 7 * (comm.size - 1))
        else:
            for _ in range(3):
                _, info = exchange.average(params, (1,))
            assert info.tally == (comm.size - 1,), info
            assert exchange.meet((0, 7)) == (5, 7 * (comm.size - 1))
        assert exchange.round == 8
        assert exchange.meet(np.arange(3)) == (0, comm.size, 2 * comm.size)


def meetings(comm, sync_period, clock):
    """Nobody leaves a meeting before all have come; all stand at the same round then, and nothing else has happened."""
    start = {"w": np.zeros(3, np.float32)}
    options = {"group_size": 2, "sync_period": sync_period, "clock": clock, "timeout_seconds": 60}
    came = []
    with wagma.GroupExchange(comm, start, **options) as exchange:
        params = start
        for epoch in range(3):
            for _ in range(1 + 3 * ((comm.rank + epoch) % 2)):
                params, _ = exchange.average({"w": params["w"] + np.float32(comm.rank)})
            time.sleep(0.05 * (comm.rank == epoch))
            came.append(time.monotonic())
            number, rounds = exchange.meet((1,)), exchange.round
            came[-1] = came[-1], time.monotonic()
            assert number == (comm.size,)
            newest = exchange._engine.models.inbox.newest  # before allgather(), after which others may have gone on
            assert newest is None or newest.round <= rounds
            assert len(set(comm.allgather(rounds))) == 1, rounds
    everyone = comm.allgather(came)
    for times in zip(*everyone, strict=True):
        assert max(entered for entered, _ in times) <= min(left for _, left in times) + 1e-3, times


def interrupted(comm, sync_period, stops):
    """A run that is interrupted at a meeting, and goes on in a new exchange, has the same bits as one that is not."""
    group_size, rounds, quorum = 2, 10, 1
    schedule = wagma.GroupSchedule(comm.size, group_size, sync_period)
    rng = np.random.default_rng(comm.size)
    late = np.zeros((rounds, comm.size), bool)
    for t in range(rounds):
        for group in schedule.groups(t):
            late[t, rng.permutation(group)[min(quorum, len(group)) :]] = not schedule.is_sync(t)

    def run(stops):
        """Stops after these rounds; all that is known at its end."""
        start = {name: jnp.asarray(leaf) for name, leaf in tree(1.0).items()}
        start["half"] = jnp.linspace(-1, 1, 99, dtype=jnp.bfloat16)
        policy = dict.fromkeys(start, "mean") | {"matrix": "sync", "steps": "keep"}
        options = {"group_size": group_size, "sync_period": sync_period, "quorum": quorum}
        options |= {"policy": lambda path, leaf: policy[path[0].key], "timeout_seconds": 60}
        history, params, state = [], start, None
        begin = 0
        for end in (*stops, rounds):
            with wagma.GroupExchange(comm, params, state=state, **options) as exchange:
                params = exchange.params
                assert exchange.round == begin - 1
                for t in range(begin, end):
                    moved = local_step(params, comm.rank, t) | {"half": params["half"] * (1 + comm.rank)}
                    moved = {name: jnp.asarray(leaf, params[name].dtype) for name, leaf in moved.items()}
                    if late[t, comm.rank]:
                        wait_for(lambda t=t: exchange._engine.state.round > t)
                    params, info = exchange.average(moved)
                    assert info.late == late[t, comm.rank], (t, info)
                    history.append((info._replace(waited_seconds=0.0), bits(params)))
                    comm.barrier()
                if end != rounds:
                    exchange.meet()
                    state = pickle.loads(pickle.dumps(exchange.state()))
                    assert state["round"] == end - 1
                    assert ("published" in state) != schedule.is_sync(end - 1), state.keys()
            begin = end
        return history

    whole, parts = run(()), run(stops)
    for t, (expected, came) in enumerate(zip(whole, parts, strict=True)):
        assert expected == came, (t, expected[0], came[0])
    assert late.any()


def untaken(comm, dtype):
    """A sum that a worker has not taken, since it rests in the round, goes into its state: it is merged later."""
    start = {"w": jnp.arange(5, dtype=dtype), "s": jnp.zeros(2, jnp.float32)}
    options = {"group_size": 2, "sync_period": None, "timeout_seconds": 60}
    options["policy"] = lambda path, leaf: "mean" if path[0].key == "w" else "sync"
    schedule = wagma.GroupSchedule(comm.size, 2, None)
    turns = [(t, rank) for t in range(1, 9) for rank in range(comm.size)]
    alone = lambda rank, t: schedule.group_of(rank, t) == (rank,)
    last, rests = next((t, rank) for t, rank in turns if not alone(rank, t) and alone(rank, t + 1))
    model = lambda value: {**start, "w": jnp.full(5, value, dtype)}
    with wagma.GroupExchange(comm, start, **options) as exchange:
        params = start
        for t in range(last + 1):
            barrier(comm)  # nobody takes what comes later
            if t < last or comm.rank != rests:
                params, _ = exchange.average(model(comm.rank + t))
        exchange.meet()
        state = pickle.loads(pickle.dumps(exchange.state()))
        barrier(comm)
        assert ("sum" in state) == (comm.rank == rests)
        expected, info = exchange.average(model(7))
        assert info.round == last + 1
    with wagma.GroupExchange(comm, params, **options, state=state) as exchange:
        came, _ = exchange.average(model(7))
        if comm.rank == rests:
            assert bits(came) == bits(expected) != bits(model(7))
    if "sum" in state:
        state["sum"] = [part[1:] for part in state["sum"]]
    with expect(ValueError, "state['sum'] does not fit to params"):
        wagma.GroupExchange(comm, params, **options, state=state)


def states(comm):
    """Where a state can be had, and what is no good one."""
    with open_small(comm, group_size=comm.size, quorum=comm.size, sync_period=3) as exchange:
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
        comm.barrier()
    with expect(RuntimeError, "state() was called after the exchange was closed"):
        exchange.state()
    first, *others = between["published"]
    cases = [
        ({}, "state must be what state() of such an exchange returned, got {}"),
        (at_sync | {"round": 1}, "state must be what state() of such an exchange returned"),
        (at_sync | {"round": "2"}, "state['round'] must be an integer, got '2' (str)"),
        (between | {"published": others}, "expected 2 arrays, one for each averaged leaf of params, got 1"),
        (between | {"published": [first[:1], *others]}, "['b'] must be float32[2] as in params, got float32[1]"),
        (None, "rank 1 and rank 0 differ: first_round is 0 there, and 3 on rank 0"),
        (between, "rank 1 and rank 0 differ: first_round is 2 there, and 3 on rank 0"),
    ]
    for state, words in cases:
        with expect(ValueError, words):
            open_small(comm, state=state if comm.rank == 1 else at_sync)
    with expect(ValueError, "first_round is 7, but state goes on with round 3: leave first_round out"):
        open_small(comm, first_round=7, state=at_sync)
    mine = {"b": START["b"], "w": START["w"] + np.float32(comm.rank)}
    with open_small(
        comm, first_round=3, state={name: np.asarray(value) for name, value in at_sync.items()}
    ) as exchange:
        np.testing.assert_array_equal(exchange.params["w"], START["w"])
        assert (exchange.round, exchange.info.base) == (2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with wagma.GroupExchange(comm, mine, group_size=1, state=at_sync) as exchange:
            np.testing.assert_array_equal(exchange.params["w"], mine["w"])
            params, info = exchange.average(mine)
            np.testing.assert_array_equal(params["w"], mine["w"])
            assert info.contributed_rounds == (3,)
