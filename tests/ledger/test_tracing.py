"""The trace for ui.perfetto.dev."""

import itertools
import json

import numpy as np
from ledger.constructed import consensus, in_own_time, meet, simulate, write

from wagma_jax import ledger
from wagma_jax.ledger.entries import GlobalMean


def test_trace_events_are_valid_and_on_one_timeline(tmp_path, uneven):
    entries = [list(in_own_time(e, 300.0 * i, 1e-4 * i, 1e-6)) for i, e in enumerate(uneven)]
    entries[0][-2:-2] = [GlobalMean(39, 9.0, 9.1), consensus(8.0, 8.5, 9.1, 9.2, 39), meet(9.5, 9.75)]
    document = ledger.trace(ledger.read(write(tmp_path / "run", *entries)))
    events = json.loads(json.dumps(document))["traceEvents"]
    names = {(e["pid"], e["args"]["name"]) for e in events if e["name"] == "process_name"}
    assert names == {(rank + 1, f"rank {rank} (a)") for rank in range(4)}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert len({thread for _, thread in threads}) == 8
    spans = [e for e in events if e["ph"] == "X"]
    assert {e["name"] for e in spans} >= {
        "starting", "computing", "publishing", "merging", "exchanging", "exchanging, late", "sync",
        "waiting for the exchange", "mean for consensus", "consensus", "meeting",
    }  # fmt: skip
    assert any(e["name"].startswith("waiting for rank") for e in spans)
    assert all(isinstance(e["ts"], int) and e["ts"] >= 0 and e["dur"] > 0 for e in spans)
    (meeting,) = [e for e in spans if e["name"] == "meeting"]
    assert (meeting["ts"], meeting["dur"], threads[meeting["pid"], meeting["tid"]]) == (9_500_000, 250_000, "trainer")
    for thread in threads:
        own = [e for e in spans if (e["pid"], e["tid"]) == thread]
        assert own
        for before, after in itertools.pairwise(own):
            assert before["ts"] + before["dur"] <= after["ts"]
    # one timeline: the ranks are in the exchange of a round at the same time
    syncs = [[e for e in spans if e["name"] == "sync" and e["pid"] == rank + 1] for rank in range(4)]
    for same in zip(*syncs, strict=True):
        assert len({e["args"]["round"] for e in same}) == 1
        assert np.ptp([e["ts"] for e in same]) <= 2
    assert "aligned to within 0.002 ms" in document["otherData"]["alignment"]


def test_a_resumed_run_goes_on_in_the_trace(tmp_path):
    first, second = simulate(np.full((2, 10), 0.01)), simulate(np.full((2, 5), 0.01), first_round=10)
    folder = write(tmp_path / "run", *([*a, *b] for a, b in zip(first, second, strict=True)))
    events = ledger.trace(ledger.read(folder))["traceEvents"]
    (mark, _) = [e for e in events if e["name"] == "resumed at round 10"]
    spans = [e for e in events if e["ph"] == "X" and e["tid"] == 1]
    rounds = [e["args"]["round"] for e in spans if e["name"] == "merging"]
    assert rounds == list(range(15))
    assert all((e["ts"] >= mark["ts"]) == (e["args"]["round"] >= 10) for e in spans if e["name"] == "merging")


def test_starts_alone_are_a_trace(starts):
    assert ledger.trace(starts)["traceEvents"]
