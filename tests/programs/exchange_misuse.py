"""Bodies for two MPI ranks: misuse is explained on all ranks, and ends nobody."""

import dataclasses
import math
import threading
import warnings
from typing import Any

import exchange_small
import jax
import numpy as np
from exchange_small import FAR_MORE, START, a_run_goes_well, expect, open_small, step, tell, told, train, wait_until
from mpi4py import MPI

from wagma_jax.exchange import GroupExchange
from wagma_jax.schedule import GroupSchedule


def other_trees(comm):
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
            GroupExchange(comm, tree if comm.rank == 1 else {"a": a, "b": b}, group_size=2)
    with expect(ValueError, "the tree is PyTreeDef((*, *)) there, and PyTreeDef([*, *]) on rank 0"):
        GroupExchange(comm, (a, b) if comm.rank == 1 else [a, b], group_size=2)
    with expect(ValueError, "the leaf ['a'] is float32[3] (keep) there"):
        GroupExchange(comm, {"a": a}, group_size=2, policy=lambda path, leaf: "keep" if comm.rank == 1 else "mean")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class WithFunction:
    """A tree with a function that is no leaf; its address is another one in every process."""

    w: Any
    activation: Any = dataclasses.field(metadata={"static": True})


def functions_in_static_fields(comm):
    unused = [object() for _ in range(1000 * comm.rank)]  # so that addresses differ
    start = WithFunction(np.zeros(3, np.float32), lambda x: x)
    addresses = comm.allgather(hex(id(start.activation)))
    assert len(set(addresses)) == comm.size, f"{addresses}: nothing is tried"
    with GroupExchange(comm, start, group_size=2, sync_period=1) as exchange:
        mean, _ = exchange.average(dataclasses.replace(start, w=np.full(3, comm.rank, np.float32)))
    np.testing.assert_array_equal(mean.w, 0.5)
    del unused


def other_settings(comm):
    settings = {
        "group_size": 2,
        "sync_period": 10,
        "rotate": True,
        "quorum": 1,
        "clock": "step",
        "on_nonfinite": "share",
        "weighting": "equal",
        "late_merge": "average",
    }
    others = {
        "group_size": 1,
        "sync_period": None,
        "rotate": False,
        "quorum": 2,
        "clock": "round",
        "on_nonfinite": "skip",
        "weighting": "steps",
        "late_merge": "add",
    }
    for name, value in others.items():
        here = settings | ({name: value} if comm.rank == 1 else {})
        word = "schedule" if name in ("group_size", "sync_period", "rotate") else name
        with expect(ValueError, f"rank 1 and rank 0 differ: {word} is ", f"{value}", f"{settings[name]}"):
            GroupExchange(comm, START, **here)
    with expect(ValueError, "rank 1 and rank 0 differ: quorum_seconds is ", "0.5", "None"):
        GroupExchange(comm, START, group_size=2, quorum=2, quorum_seconds=0.5 if comm.rank == 1 else None)


def bad_settings(comm):
    """Wrong on rank 1 alone, so that rank 0 must hear of it."""
    cases = [
        ("group_size", 0, ValueError, "group_size must be between 1 and num_workers=2, got 0"),
        ("group_size", 1.5, ValueError, "group_size must be an integer, got 1.5 (float)"),
        ("sync_period", 0, ValueError, "sync_period"),
        ("quorum", 0, ValueError, "quorum must be between 1 and 2, got 0"),
        ("quorum", 3, ValueError, "quorum must be between 1 and 2, got 3"),
        ("quorum", "many", ValueError, "quorum must be an integer, got 'many' (str)"),
        ("on_nonfinite", "drop", ValueError, "on_nonfinite must be 'share' or 'skip', got 'drop'"),
        ("weighting", "size", ValueError, "weighting must be 'equal' or 'steps', got 'size'"),
        ("late_merge", "sum", ValueError, "late_merge must be 'average' or 'add', got 'sum'"),
        ("quorum_seconds", 0, ValueError, "quorum_seconds must be above 0, or None for as long as it takes, got 0"),
        ("quorum_seconds", math.inf, ValueError, "quorum_seconds must be above 0, or None"),
        ("quorum_seconds", "long", ValueError, "quorum_seconds must be above 0, or None"),
        ("quorum_seconds", 0.1, ValueError, "quorum_seconds=0.1 needs a quorum of at least 2, got quorum=1"),
        ("clock", "wall", ValueError, "clock must be 'step' or 'round', got 'wall'"),
        ("timeout_seconds", 0, ValueError, "timeout_seconds must be positive, got 0"),
        ("timeout_seconds", math.nan, ValueError, "timeout_seconds must be positive, got nan"),
        ("timeout_seconds", "long", TypeError, ""),
        ("policy", lambda path, leaf: "never", ValueError, "never"),
    ]
    for name, value, kind, words in cases:
        settings = {"group_size": 2} | ({name: value} if comm.rank == 1 else {})
        there = f"rank 1 could not build its exchange: {kind.__name__}: " if comm.rank == 0 else ""
        with expect(ValueError if comm.rank == 0 else kind, words, there):
            GroupExchange(comm, START, **settings)
    schedule = GroupSchedule(2, 2, 5, rotate=False)
    for options, kind, words in [
        ({}, ValueError, "expected group_size or schedule, got neither"),
        ({"schedule": 2}, TypeError, "schedule must be a GroupSchedule, got 2"),
        ({"schedule": GroupSchedule(3, 2)}, ValueError, "schedule must be for the 2 ranks of comm"),
        (
            {"schedule": schedule, "group_size": 1},
            ValueError,
            "group_size must be that of schedule, got 1 beside Group",
        ),
        ({"schedule": schedule, "sync_period": None}, ValueError, "sync_period must be that of schedule, got None"),
        ({"schedule": schedule, "sync_period": 10}, ValueError, "sync_period must be that of schedule, got 10"),
        ({"schedule": schedule, "rotate": True}, ValueError, "rotate must be that of schedule, got True"),
    ]:
        with expect(kind, words):
            GroupExchange(comm, START, **options)
    with GroupExchange(comm, START, schedule=schedule, sync_period=5, timeout_seconds=FAR_MORE) as exchange:
        assert exchange.schedule is schedule
    for wrong in (5, MPI.GROUP_EMPTY):
        with expect(TypeError, "comm must be an mpi4py.MPI.Intracomm or None"):
            GroupExchange(wrong, START, group_size=2)
    a_run_goes_well(comm, timeout_seconds=math.inf)


def another_tree_later(comm):
    wrong = [
        ({"b": START["b"]}, "the tree must be built like params"),
        ({"b": START["b"], "w": START["w"][:3]}, "['w'] must be float32[4] as in params, got float32[3]"),
        ({"b": START["b"].astype(np.int32), "w": START["w"]}, "['b'] must be float32[2] as in params, got int32[2]"),
    ]
    with open_small(comm) as exchange:
        params = train(exchange, exchange.params, 1)
        sent = exchange._engine.mailbox.sent
        comm.barrier()
        for tree, words in wrong if comm.rank == 1 else []:
            for call in (exchange.average, exchange.consensus):
                with expect(ValueError, words):
                    call(tree)
        assert exchange._engine.mailbox.sent == sent
        assert exchange.round == 0
        comm.barrier()
        mean, info = exchange.average(step(params, comm.rank))
        assert info.round == 1
        np.testing.assert_allclose(mean["b"], 2)
        assert exchange.consensus(mean)["w"].tolist() == mean["w"].tolist()


def use_after_close(comm):
    exchange = open_small(comm)
    params = train(exchange, exchange.params, 1)
    with expect(RuntimeError, "gone after the first call of average()"):
        _ = exchange.params
    exchange.close()
    for name, arguments in {"average": [params], "consensus": [params], "meet": [], "state": []}.items():
        with expect(RuntimeError, f"{name}() was called after the exchange was closed"):
            getattr(exchange, name)(*arguments)
    exchange.close()
    assert exchange._control == exchange._data == MPI.COMM_NULL


def two_threads(comm):
    with open_small(comm) as exchange:
        params = step(exchange.params, comm.rank)
        if comm.rank == 1:
            wait_until(lambda: told(comm, 0))
            train(exchange, params, 1)
        else:
            results = []
            thread = threading.Thread(target=lambda: results.append(exchange.average(params)))
            thread.start()
            wait_until(exchange._call.lock.locked)
            for name, arguments in {"average": [params], "consensus": [params], "meet": [], "close": []}.items():
                with expect(RuntimeError, f"{name}() was called from two threads at once"):
                    getattr(exchange, name)(*arguments)
            tell(comm, 1)
            thread.join(FAR_MORE)
            ((_, info),) = results
            assert info.round == 0


def other_values(comm):
    """Ranks that start from values of their own are warned, unless they take exchange.params."""
    mine = {"b": START["b"] + comm.rank, "w": START["w"]}
    for own, use in ((mine, False), (mine, True), (START, False)):
        with (
            GroupExchange(comm, own, group_size=2, sync_period=None, timeout_seconds=FAR_MORE) as exchange,
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
        if own is mine and not use and comm.rank == 1:
            assert len(texts) == 1, texts
            assert "params of this rank differed from rank 0's" in texts[0]
            assert caught[0].filename == exchange_small.__file__, "it must name the line that calls average()"
        else:
            assert not texts, texts
