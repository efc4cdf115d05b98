"""A recorded run, executed again in one process, gives the same bits."""

import json

import numpy as np
import pytest
from ledger.constructed import END, call, consensus, exchange, meet, offset, start, write
from processes import ROOT, run_ranks

from wagma_jax.exchange.replay import replay
from wagma_jax.ledger.entries import GlobalMean


@pytest.mark.timeout(120)
def test_replay_gives_the_same_bits(tmp_path):
    status, output = run_ranks(4, ROOT / "tests/programs/replay_rounds.py", tmp_path, timeout=110)
    assert status == 0, output
    for settings in ("step 1", "step 2", "round 1", "round 2"):
        assert f"replayed {settings}" in output

    # what was recorded is not whole
    folder = tmp_path / "step-1"
    lines = (folder / "ledger-2.jsonl").read_text().splitlines()
    taken = {json.loads(line).get("source") for line in lines if json.loads(line)["kind"] == "call"}
    lost = next(i for i, line in enumerate(lines) if json.loads(line).get("kind") == "round")
    while json.loads(lines[lost])["round"] not in taken:
        lost += 1
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
        final = replay(
            folder,
            {"w": np.zeros(2, np.float32)},
            lambda rank, call, params: {"w": params["w"] + np.float32(2 + 4 * rank)},
            observe=lambda rank, call, params, meetings=meetings: seen[meetings].append((rank, call, params["w"][0])),
        )
        np.testing.assert_allclose([tree["w"] for tree in final], (8 + 40 / 3) / 2, rtol=1e-6)
    # steps add 2 and 6. Round 0: (2 + 6) / 2. Round 1: W' is 6 and 10, rank 1 has contributed its 6 of round 0, and
    # merges (6 + 6 + 10) / 3. Round 2: nothing is merged.
    by_hand = {(0, 0): 4, (1, 0): 4, (0, 1): 6, (1, 1): 22 / 3, (0, 2): 8, (1, 2): 40 / 3}
    assert {(rank, call): pytest.approx(float(value)) for rank, call, value in seen[True]} == by_hand
    assert seen[True] == seen[False]
