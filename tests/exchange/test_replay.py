"""A recorded run, executed again in one process, gives the same bits."""

import contextlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import ranks
from ledger.constructed import END, call, consensus, exchange, meet, offset, start, write

from wagma_jax.exchange.replay import replay
from wagma_jax.ledger.entries import GlobalMean


@pytest.mark.parametrize(
    ("clock", "quorum", "group_size", "sync_period", "rounds", "weighting", "late_merge"),
    [
        ("round", 1, 2, 7, 24, "equal", "average"),
        ("step", 1, 3, None, 16, "equal", "average"),
        ("round", 1, 3, 7, 24, "equal", "add"),
    ]
    + [
        pytest.param(*settings, 40, *rules, marks=pytest.mark.long)
        for settings in (
            ("step", 1, 2, 7),
            ("step", 2, 2, 7),
            ("round", 1, 2, 7),
            ("round", 2, 2, 7),
            ("step", 2, 4, 7),
            ("step", 1, 3, None),
            ("round", 1, 1, 5),
        )
        for rules in (("equal", "average"), ("steps", "average"), ("equal", "add"))
    ],
)
def test_replay_gives_the_same_bits(tmp_path, clock, quorum, group_size, sync_period, rounds, weighting, late_merge):
    pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)
    skips = clock == "round" or quorum == 2
    settings = (str(tmp_path), clock, quorum, group_size, sync_period, rounds, skips, weighting, late_merge)
    (calls, late, nonfinite, _), *_ = ranks.run("replay_rounds.run", *settings)
    assert calls > rounds
    assert (nonfinite > 0) == skips
    assert late > 0 or clock == "round" or quorum > 1
    if clock == "step":
        assert_a_part_is_missed(tmp_path)


def without_a_call(folder, rank):
    """A copy of the ledgers without a call in the middle of one."""
    copy = Path(shutil.copytree(folder, folder.with_name(f"{folder.name}-without-a-call")))
    path = copy / f"ledger-{rank}.jsonl"
    lines = path.read_text().splitlines()
    found = [json.loads(line) for line in lines]
    calls = [i for i, entry in enumerate(found) if entry["kind"] == "call" and not entry.get("nonfinite")]
    path.write_text("\n".join(lines[: calls[3]] + lines[calls[3] + 1 :]) + "\n")
    return copy


@pytest.mark.parametrize(
    ("clock", "start", "sync_period", "rounds"),
    [("round", "solo", 4, 10), pytest.param("step", "majority", 7, 16, marks=pytest.mark.long)],
)
def test_replay_of_increments_gives_the_same_bits(tmp_path, clock, start, sync_period, rounds):
    pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)
    body = "replay_rounds.run_increments"
    (calls, late), *_ = ranks.run(body, str(tmp_path), clock, start, sync_period, rounds, num_ranks=2)
    assert calls > rounds
    assert late > 0
    with pytest.raises(ValueError, match="pass the ledgers of a whole run"):
        replay(without_a_call(tmp_path, 1), {"w": np.zeros(3, np.float32)}, lambda rank, call, params: params)
    lines = (tmp_path / "ledger-1.jsonl").read_text().splitlines()
    lost = next(i for i, line in enumerate(lines) if json.loads(line)["kind"] == "call")
    (tmp_path / "ledger-1.jsonl").write_text("\n".join(lines[:lost] + lines[-2:]) + "\n")
    with pytest.raises(ValueError, match="go on where others end"):
        replay(tmp_path, {"w": np.zeros(3, np.float32)}, lambda rank, call, params: params)


@pytest.mark.parametrize(("clock", "skips"), [("step", False), ("round", True)])
def test_replay_of_pairs_gives_the_same_bits(tmp_path, clock, skips):
    pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)
    (calls, _, nonfinite, swaps), *_ = ranks.run("replay_rounds.run_pairs", str(tmp_path), clock, 24, skips)
    assert calls > 24
    assert (nonfinite > 0) == skips
    assert swaps > 8
    with pytest.raises(ValueError, match="pass the ledgers of a whole run"):
        replay(without_a_call(tmp_path, 1), {"w": np.zeros(3, np.float32)}, lambda rank, call, params: params)
    lines = (tmp_path / "ledger-1.jsonl").read_text().splitlines()
    lost = next(i for i, line in enumerate(lines) if json.loads(line)["kind"] == "swap")
    (tmp_path / "ledger-1.jsonl").write_text("\n".join(lines[:lost] + lines[lost + 1 :]) + "\n")
    with pytest.raises(ValueError, match=r"the ledgers lack (swap|version)"):
        replay(tmp_path, {"w": np.zeros(3, np.float32)}, lambda rank, call, params: params)


def test_what_goes_on_from_models_of_each_rank_is_not_executed_again(tmp_path):
    settings = {"num_workers": 1, "group_size": 1, "method": "pairs", "options": {"graph": "ring", "seed": "0"}}
    folder = write(tmp_path / "run", [start(0, **settings), END, start(0, first_round=4, **settings), END])
    params = {"w": np.zeros(3, np.float32)}
    assert replay(folder, params, lambda rank, call, params: params, segment=0) == [params]
    with pytest.raises(ValueError, match="goes on from a model of each rank, which no ledger has, got segment=1"):
        replay(folder, params, lambda rank, call, params: params, segment=1)


def assert_a_part_is_missed(folder):
    """What is recorded but for one round that some model is made of cannot be replayed."""
    lines = (folder / "ledger-2.jsonl").read_text().splitlines()
    taken = {json.loads(line).get("source") for line in lines if json.loads(line)["kind"] == "call"}
    lost = next(
        i for i, line in enumerate(lines) if json.loads(line)["kind"] == "round" and json.loads(line)["round"] in taken
    )
    (folder / "ledger-2.jsonl").write_text("\n".join(lines[:lost] + lines[lost + 1 :]) + "\n")
    with pytest.raises(ValueError, match="ledger"):
        replay(folder, {"w": np.zeros(3, np.float32)}, lambda rank, call, params: params)


def test_meetings_change_no_values(tmp_path):
    """Two ranks: a mean, a late merge, a call without a new sum, and a consensus; worked by hand."""

    def entries(rank, *, meetings):
        calls = [
            call(0, 1.0, 1.0, 1.5, 1.5),
            call(1, 2.0, 2.0, 2.5, 2.5, None, "late" if rank else "sum"),
            call(2, 4.0, 4.0, 4.5, 4.5, None, "own"),
            consensus(6.0, 6.0, 7.0, 7.0, 2),
        ]
        if meetings:
            calls[3:] = [meet(4.6, 4.8), calls[3], meet(7.5, 8.0)]
            calls[1:1] = [meet(1.6, 1.8)]
        rounds = [
            exchange(0, [0, 1], [0, 0], 1.0, 1.5),
            exchange(1, [0, 1], [1, 0], 2.0, 2.5),
            exchange(2, [0, 1], [2, 2], 4.0, 4.5),
            GlobalMean(2, 6.0, 7.0),
        ]
        return [start(rank), *rounds, *calls, offset(9.0), END]

    seen = {}
    for meetings in (False, True):
        folder = write(tmp_path / str(meetings), *(entries(rank, meetings=meetings) for rank in range(2)))
        seen[meetings] = []
        with jax.set_mesh(jax.make_mesh((2,), ("x",))) if meetings else contextlib.nullcontext():  # nor does a mesh
            final = replay(
                folder,
                {"w": np.zeros(2, np.float32)},
                lambda rank, call, params: {"w": np.asarray(params["w"]) + np.float32(2 + 4 * rank)},
                observe=lambda rank, call, params, at=seen[meetings]: at.append(
                    (rank, call, float(np.asarray(params["w"])[0]))
                ),
            )
        np.testing.assert_allclose([tree["w"] for tree in final], (8 + 40 / 3) / 2, rtol=1e-6)
    # steps add 2 and 6. Round 0: (2 + 6) / 2. Round 1: W' is 6 and 10, rank 1 has contributed its 6 of round 0, and
    # merges (6 + 6 + 10) / 3. Round 2: nothing is merged.
    by_hand = {(0, 0): 4, (1, 0): 4, (0, 1): 6, (1, 1): 22 / 3, (0, 2): 8, (1, 2): 40 / 3}
    assert {(rank, call): pytest.approx(float(value)) for rank, call, value in seen[True]} == by_hand
    assert seen[True] == seen[False]
