"""A recorded run, executed again in one process, gives the same bits."""

import json

import numpy as np
import pytest
from processes import ROOT, run_ranks

from wagma_jax.exchange.replay import replay


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
