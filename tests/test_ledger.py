"""Reading ledgers: numbers worked by hand, clocks that run apart, runs that were resumed or broke off, views."""

import itertools
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from processes import ROOT, run_all

from wagma_jax import ledger
from wagma_jax.commands.main import main
from wagma_jax.schedule import GroupSchedule

START = {
    "kind": "start", "version": 1, "rank": 0, "num_workers": 2, "group_size": 2, "sync_period": None, "rotate": True,
    "quorum": 1, "clock": "step", "first_round": 0, "host": "a", "time": 0.0, "offset": 0.0, "error": 0.0,
}  # fmt: skip
END = {"kind": "end"}


def start(rank=0, **settings):
    return START | {"rank": rank} | settings


def call(t, enter, ready, taken, leave, waits=None, merge="sum", source=None):
    source = t if source is None and merge != "own" else source
    return {
        "kind": "call", "round": t, "enter": enter, "ready": ready, "taken": taken, "leave": leave, "merge": merge,
        "source": source, "base": t, "waits": waits or {},
    }  # fmt: skip


def exchange(t, group, contributed, begin, end):
    return {"kind": "round", "round": t, "group": group, "contributed": contributed, "begin": begin, "end": end}


def clock(time, offset=0.0, error=0.0):
    return {"kind": "clock", "time": time, "offset": offset, "error": error}


def consensus(enter, ready, taken, leave, version):
    return {"kind": "consensus", "enter": enter, "ready": ready, "taken": taken, "leave": leave, "version": version}


def write(folder, *ranks):
    """Writes the entries of each rank (lines that are strings already as they are)."""
    folder.mkdir(exist_ok=True)
    for rank, entries in enumerate(ranks):
        lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
        (folder / f"ledger-{rank}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


TIMES = ("time", "begin", "end", "enter", "ready", "taken", "leave")


def by_clock(entries, offset, drift, error):
    """The entries as a rank writes them whose clock shows ``t * (1 + drift) - offset`` at t of rank 0's."""

    def own(t):
        return t * (1 + drift) - offset

    for entry in entries:
        times = {name: own(entry[name]) for name in TIMES if name in entry}
        if "offset" in entry:
            times |= {"offset": entry["time"] - own(entry["time"]), "error": error}
        yield entry | times


def simulate(computation, group_size=2, sync_period=10, first_round=0, exchange_seconds=0.002, **settings):
    """What each rank would write, by one clock: a round begins with its first arrival anywhere.

    Args:
        computation: [num_workers, rounds] Seconds of each step.
    """
    num_workers, rounds = computation.shape
    schedule = GroupSchedule(num_workers, group_size, sync_period)
    settings |= {"group_size": group_size, "sync_period": sync_period, "first_round": first_round}
    entries = [[start(rank, num_workers=num_workers, **settings)] for rank in range(num_workers)]
    free, left = np.zeros(num_workers), np.full(num_workers, 0.5)
    published = [[(-np.inf, first_round - 1)] for _ in range(num_workers)]
    for i in range(rounds):
        t = first_round + i
        enter = left + computation[:, i]
        ready = enter + 1e-4
        for rank in range(num_workers):
            published[rank].append((ready[rank], t))
        is_sync = schedule.is_sync(t)
        for group in (tuple(range(num_workers)),) if is_sync else schedule.groups(t):
            members = list(group)
            begin = max(ready.max() if is_sync else ready.min(), free[members].max()) + 1e-5
            end = begin + exchange_seconds
            versions = [max(v for when, v in published[rank] if when <= begin) for rank in group]
            for rank in group:
                entries[rank].append(exchange(t, members, versions, begin, end))
            free[members] = end
            if is_sync:
                for rank in group:
                    published[rank] = [(end, t)]
        taken = np.maximum(ready, free)
        left = taken + 2e-4
        for rank in range(num_workers):
            go = {"0": taken[rank] - exchange_seconds - ready[rank]} if is_sync and rank else {}
            merge = "mean" if is_sync else "sum"
            entries[rank].append(call(t, enter[rank], ready[rank], taken[rank], left[rank], go, merge))
        published = [of_rank[-20:] for of_rank in published]
    for of_rank in entries:
        of_rank += [clock(left.max() + 0.1), END]
    return entries


@pytest.fixture
def two(tmp_path):
    """Rank 1 takes 3 s for its second step; rank 0 waits for it 0.5 s at round 1 (say, with quorum 2)."""
    return write(
        tmp_path / "two",
        [
            start(0, quorum=2),
            exchange(0, [0, 1], [0, 0], 1.2, 1.3), call(0, 1.0, 1.1, 1.3, 1.4, {"1": 0.05}),
            exchange(1, [0, 1], [1, 0], 2.9, 3.0), call(1, 2.4, 2.4, 3.0, 3.0, {"1": 0.5}),
            exchange(2, [0, 1], [2, 2], 5.0, 5.5), call(2, 5.0, 5.0, 5.5, 5.5),
            clock(6.0), END,
        ],
        [
            start(1, quorum=2),
            exchange(0, [0, 1], [0, 0], 1.2, 1.3), call(0, 1.2, 1.2, 1.3, 1.3),
            exchange(1, [0, 1], [1, 0], 2.9, 3.0), call(1, 4.3, 4.4, 4.4, 4.5, {}, "late"),
            exchange(2, [0, 1], [2, 2], 5.0, 5.5), call(2, 4.8, 4.8, 5.5, 5.6, {"0": 0.2}),
            clock(6.0), END,
        ],
    )  # fmt: skip


def test_waits_staleness_and_computation_by_hand(two):
    summary = ledger.summarize(ledger.read(two))
    np.testing.assert_allclose(summary.waits, [[0, 0.55], [0.2, 0]])
    assert summary.staleness.tolist() == [[3, 0], [2, 1]]
    assert (summary.rounds, summary.syncs, summary.lost, summary.incomplete) == (3, 0, 0, ())
    zero, one = summary.ranks
    assert zero[:1] + zero[2:3] == (0, 3)
    np.testing.assert_allclose([zero.mean, zero.median, zero.longest], [1.5, 1.5, 2.0])  # 1.4 to 2.4, 3.0 to 5.0
    np.testing.assert_allclose([one.mean, one.median, one.longest], [1.65, 1.65, 3.0])  # 1.3 to 4.3, 4.5 to 4.8
    np.testing.assert_allclose([zero.late_fraction, one.late_fraction], [0, 1 / 3])
    np.testing.assert_allclose([zero.waited, zero.caused, one.waited, one.caused], [0.55, 0.2, 0.2, 0.55])
    np.testing.assert_allclose([zero.exchanging, one.exchanging], [1.3 - 0.55, 0.8 - 0.2])
    np.testing.assert_allclose([zero.copying, one.copying], [0.2, 0.3])
    assert summary.seconds == 5.6


def test_text_says_it(two):
    summary = ledger.summarize(ledger.read(two))
    words = ledger.text(summary)
    assert "2 ranks, groups of 2, no sync rounds: 3 rounds (0 syncs) in 5.6 s on 1 machine" in words
    assert re.search(r"rank 0 +0\.550 +0\.550\n", words)
    assert re.search(r"caused +0\.200 +0\.550 +0\.750\n", words)
    assert re.search(r"on time +3 +2 +5 +83\.3%", words)
    assert re.search(r"1 round +0 +1 +1 +16\.7%", words)
    assert "measured at the start and at the end" in words
    assert max(map(len, words.splitlines())) <= 130


def test_many_ranks_fit_into_text_and_picture(tmp_path):
    computation = np.random.default_rng(0).exponential(0.01, (20, 40))
    folder = write(tmp_path / "run", *simulate(computation, group_size=4))
    ledgers = ledger.read(folder)
    words = ledger.text(ledger.summarize(ledgers))
    assert "the longest of 380 pairs" in words
    assert max(map(len, words.splitlines())) <= 130


# clocks


def test_clocks_with_offset_and_drift_become_one(tmp_path):
    computation = np.full((4, 40), 0.01)
    computation[3] = 0.03
    straight = simulate(computation)
    crooked = [
        list(by_clock(entries, 1000.0 * rank, 1e-3 * rank, 2e-5 * rank)) for rank, entries in enumerate(straight)
    ]
    expected = ledger.align(ledger.read(write(tmp_path / "straight", *straight)))
    aligned = ledger.align(ledger.read(write(tmp_path / "crooked", *crooked)))
    for one, other in zip(expected, aligned, strict=True):
        for record, reference in zip(one.segments[0].records, other.segments[0].records, strict=True):
            for name in set(TIMES) & set(record._fields):
                assert getattr(record, name) == pytest.approx(getattr(reference, name), abs=1e-8)
    reference, summary = (ledger.summarize(ledger.read(tmp_path / name)) for name in ("straight", "crooked"))
    np.testing.assert_allclose(summary.waits, reference.waits, atol=1e-8)
    assert summary.alignment.error == pytest.approx(2 * 2e-5 + 3 * 2e-5)  # of ranks 2 and 3
    assert summary.alignment.contradiction == 0
    assert summary.alignment.measured_twice
    # rank 3's clock is fast by 3e-3 of the time between its measurements
    assert summary.alignment.drift == pytest.approx(3e-3 * (straight[3][-2]["time"] - 0.0), rel=1e-6)


def test_a_contradiction_between_clocks_is_told(tmp_path):
    entries = simulate(np.full((2, 8), 0.01))
    entries[1] = [
        entry | {name: entry[name] + 0.5 for name in TIMES if name in entry and entry["kind"] != "start"}
        for entry in entries[1]
    ]
    summary = ledger.summarize(ledger.read(write(tmp_path / "run", *entries)))
    assert summary.alignment.contradiction == pytest.approx(0.5 - 0.002)
    assert "aligned to within 498 ms at best" in ledger.alignment_text(summary.alignment)


# sync rounds


def test_waits_at_a_sync_are_shared_among_those_who_are_missing():
    ready = np.array([0.0, 1.0, 3.0, 7.0])
    waits = ledger.sync_waits(ready, np.full(4, 8.0))
    # in the first second three are missing, then two for 2 s, then one for 4 s
    expected = [[0, 1 / 3, 1 / 3 + 1, 1 / 3 + 1 + 4], [0, 0, 1, 1 + 4], [0, 0, 0, 4], [0, 0, 0, 0]]
    np.testing.assert_allclose(waits, expected)
    # by clocks that are not aligned well, rank 0 went on before the last arrived: it has waited 5 s and no more
    taken = np.array([5.0, 8.0, 8.0, 8.0])
    np.testing.assert_allclose(ledger.sync_waits(ready, taken).sum(1), [5, 6, 4, 0])
    # who rests has arrived, and does not wait
    ready, taken = np.array([0.0, -np.inf, 3.0, 2.0]), np.array([4.0, -np.inf, 4.0, -np.inf])
    expected = np.zeros((4, 4))
    expected[0, 2], expected[0, 3] = 1 + 1, 1
    np.testing.assert_allclose(ledger.sync_waits(ready, taken), expected)


def test_the_waits_of_a_sync_round_come_from_arrivals(tmp_path):
    sync = {"num_workers": 3, "group_size": 1, "sync_period": 2}
    everyone = [0, 1, 2]
    ranks = []
    for rank, ready in enumerate([2.0, 4.0, 7.0]):
        ranks.append([
            start(rank, **sync),
            exchange(0, [rank], [0], 1.0, 1.1), call(0, 1.0, 1.0, 1.1, 1.1),
            exchange(1, everyone, [1, 1, 1], 7.0, 7.5),
            call(1, ready, ready, 7.5, 7.5, {"0": 5.0} if rank else {"1": 3.5, "2": 1.5}, "mean"),
            clock(9.0), END,
        ])  # fmt: skip
    summary = ledger.summarize(ledger.read(write(tmp_path / "run", *ranks)))
    np.testing.assert_allclose(summary.waits, [[0, 1, 1 + 3], [0, 0, 3], [0, 0, 0]])
    assert summary.waited_for == 2
    assert "rank 2 was waited for most, in 88% of the time waited" in ledger.text(summary)


def test_a_rank_that_rests_counts_as_arrived(tmp_path):
    sync = {"num_workers": 3, "group_size": 1, "sync_period": 1}
    everyone = [0, 1, 2]
    first = call(0, 1.0, 1.0, 1.5, 1.5, merge="mean"), exchange(0, everyone, [0, 0, 0], 1.0, 1.5)
    second = exchange(1, everyone, [1, 0, 1], 5.0, 5.5)
    ranks = [
        [start(0, **sync), *first, second, call(1, 2.0, 2.0, 5.5, 5.5, {}, "mean"), consensus(6.0, 6.0, 7.0, 7.0, 1)],
        [start(1, **sync), *first, second, consensus(3.0, 3.0, 7.0, 7.0, 1)],  # no call for round 1
        [start(2, **sync), *first, second, call(1, 5.0, 5.0, 5.5, 5.5, {}, "mean"), consensus(6.0, 6.0, 7.0, 7.0, 1)],
    ]
    summary = ledger.summarize(ledger.read(write(tmp_path / "consensus", *ranks)))
    np.testing.assert_allclose(summary.waits, [[0, 0.5, 0.5 + 2], [0, 0, 0], [0, 0, 0]])
    assert summary.ranks[1].resting == 4
    ranks[1].pop()  # it has closed instead: since when is not known
    summary = ledger.summarize(ledger.read(write(tmp_path / "close", *ranks)))
    np.testing.assert_allclose(summary.waits, [[0, 0, 3], [0, 0, 0], [0, 0, 0]])


# segments


def test_rounds_that_were_done_again_count_once(tmp_path):
    computation = np.full((2, 30), 0.01)
    computation[1, 15:] = 0.5  # is done again without
    first, second = simulate(computation), simulate(np.full((2, 15), 0.01), first_round=15)
    broken = [entries[:-2] for entries in first]
    late = [list(by_clock(entries, 5000.0 + rank, 0, 1e-6)) for rank, entries in enumerate(second)]
    folder = write(tmp_path / "run", *([*a, '{"kind":"call","rou', *b] for a, b in zip(broken, late, strict=True)))
    ledgers = ledger.read(folder)
    assert [len(own.segments) for own in ledgers] == [2, 2]
    assert [len(part.rounds) for part in ledgers[0].segments] == [30, 15]  # as written
    assert [len(part.rounds) for part in ledgers[0].kept()] == [15, 15]
    summary = ledger.summarize(ledgers)
    assert (summary.rounds, summary.resumed, summary.lost, summary.incomplete) == (30, (15,), 0, ())
    assert summary.ranks[1].calls == 30
    assert summary.ranks[1].longest == pytest.approx(0.01)
    words = ledger.text(summary)
    assert "Resumed at round 15" in words
    assert "measured at the start only" in words
    segments = ledger.align(ledgers)[0].segments
    end = max(r.leave for own in ledger.align(ledgers) for r in own.segments[0].calls)
    assert segments[1].start.time >= end
    assert summary.seconds < 3


def test_a_run_that_failed_is_read_as_far_as_it_got(tmp_path):
    entries = simulate(np.full((2, 12), 0.01))
    ranks = [entries[0][:-2], [*entries[1][:-6], '{"kind":"round","round":']]
    summary = ledger.summarize(ledger.read(write(tmp_path / "run", *ranks)))
    assert summary.incomplete == (0, 1)
    assert summary.lost == 0
    words = ledger.text(summary)
    assert "Not ended: ranks 0, 1" in words
    assert "measured at the start only" in words


def test_entries_that_were_lost_are_told(tmp_path):
    entries = simulate(np.full((2, 12), 0.01))
    entries[1] = [entry for entry in entries[1] if entry.get("round") not in (3, 4)]
    assert "2 records of rounds" in ledger.text(ledger.summarize(ledger.read(write(tmp_path / "run", *entries))))


def test_starts_alone_are_a_ledger(tmp_path):
    ledgers = ledger.read(write(tmp_path / "run", [start(0)], [start(1)]))
    summary = ledger.summarize(ledgers)
    words = ledger.text(summary)
    assert "nobody waited" in words
    assert "no ordinary rounds" in words
    ledger.plot(ledgers, tmp_path / "empty.png")
    assert ledger.trace(ledgers)["traceEvents"]


# errors


def changed(entries, at, **values):
    return [entry | values if i == at else entry for i, entry in enumerate(entries)]


ONE = [start(0), exchange(0, [0, 1], [0, 0], 1.0, 1.1), call(0, 1.0, 1.0, 1.1, 1.1), clock(2.0), END]
OTHER = [start(1), *ONE[1:]]


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ([], "expected files ledger-RANK.jsonl in .*, got none: pass the folder"),
        ([ONE], "expected the ledgers of 2 ranks .*, got 1; missing: ledger-1.jsonl: copy"),
        ([ONE, OTHER, [start(2), *ONE[1:]]], r"got also ledger-2\.jsonl"),
        ([ONE, ONE], "expected the ledger of rank 1, got that of rank 0: do not rename"),
        (
            [ONE, changed(OTHER, 0, group_size=1)],
            "expected group_size=2 at start 1 of rank 1.* got 1: keep the ledgers",
        ),
        ([ONE, [*OTHER, start(1)]], "expected as many starts on rank 1 as on rank 0, got 2 and 1"),
        (
            [ONE, [OTHER[0], '{"kind":"call","rou', *OTHER[1:]]],
            r"line 2: expected an entry.*no JSON.*the file is damaged",
        ),
        ([ONE, changed(OTHER, 2, kind="clal")], r"line 3: .*unknown kind 'clal'"),
        ([ONE, changed(OTHER, 2, taken=0.5)], "do not ascend"),
        ([ONE, changed(OTHER, 2, merge="none")], "unknown merge"),
        ([ONE, changed(OTHER, 2, round=None)], "line 3: expected an entry of a ledger"),
        ([ONE, changed(OTHER, 0, version=7)], "format 7 instead of 1: use the wagma_jax that wrote it"),
        ([ONE, changed(OTHER, 0, group_size=9)], "group_size must be between 1 and num_workers=2"),
        ([ONE, OTHER[1:]], "expected a start first"),
        ([ONE, ['{"kind":"st']], "got no entries"),
        ([ONE, changed(OTHER, 1, contributed=[0, -1])], "these are ledgers of different runs"),
        ([ONE, changed(OTHER, 1, contributed=[0, 1])], "group and contributed do not fit"),
        ([ONE, [*OTHER[:3], OTHER[1], OTHER[2]]], "expected rounds in ascending order, got 0 after 0: two runs"),
        ([ONE, [*OTHER[:3], call(1, 0.5, 2.0, 2.0, 2.0)]], "begins at 0.5 before 1.1"),
        ([[*ONE, start(0, num_workers=4)], [*OTHER, start(1, num_workers=4)]], "expected the ledgers of 4 ranks"),
    ],
)
def test_errors_say_what_to_do(tmp_path, ranks, message):
    with pytest.raises(ValueError, match=message):
        ledger.read(write(tmp_path / "run", *ranks))


def test_a_rank_is_there_once(tmp_path):
    folder = write(tmp_path / "run", ONE, OTHER)
    (folder / "ledger-01.jsonl").write_text((folder / "ledger-1.jsonl").read_text())
    with pytest.raises(ValueError, match="expected one ledger of each rank"):
        ledger.read(folder)


# views


def test_slow_ranks(tmp_path):
    random = np.random.default_rng(1)
    computation = 0.01 * random.uniform(0.9, 1.1, (4, 60))
    even = ledger.summarize(ledger.read(write(tmp_path / "even", *simulate(computation, sync_period=None))))
    assert (even.slow, even.waited_for) == ((), None)
    assert "none stands out" in ledger.text(even)
    computation[2] *= 4
    slow = ledger.summarize(ledger.read(write(tmp_path / "slow", *simulate(computation))))
    assert (slow.slow, slow.waited_for) == ((2,), 2)
    assert slow.ranks[2].late_fraction > 0.8
    assert re.search(
        r"rank 2 computes for [34]\d\.\d ms a step \(median\), (3\.[89]|4\.\d) times as long", ledger.text(slow)
    )
    computation[2] /= 4
    computation[1, ::6] = 0.2
    at_times = ledger.summarize(ledger.read(write(tmp_path / "times", *simulate(computation))))
    assert at_times.slow == ()
    assert "rank 1 is slow at times" in ledger.text(at_times)


def test_trace_events_are_valid_and_on_one_clock(tmp_path):
    computation = np.random.default_rng(0).exponential(0.01, (4, 40))
    entries = [list(by_clock(e, 300.0 * i, 1e-4 * i, 1e-6)) for i, e in enumerate(simulate(computation))]
    entries[0][-2:-2] = [{"kind": "mean", "version": 39, "begin": 9.0, "end": 9.1}, consensus(8.0, 8.5, 9.1, 9.2, 39)]
    document = ledger.trace(ledger.read(write(tmp_path / "run", *entries)))
    events = json.loads(json.dumps(document))["traceEvents"]
    names = {(e["pid"], e["args"]["name"]) for e in events if e["name"] == "process_name"}
    assert names == {(rank + 1, f"rank {rank} (a)") for rank in range(4)}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert len({thread for _, thread in threads}) == 8
    spans = [e for e in events if e["ph"] == "X"]
    assert {e["name"] for e in spans} >= {
        "starting", "computing", "publishing", "merging", "exchanging", "exchanging, late", "sync",
        "waiting for the exchange", "mean for consensus", "consensus",
    }  # fmt: skip
    assert any(e["name"].startswith("waiting for rank") for e in spans)
    assert all(isinstance(e["ts"], int) and e["ts"] >= 0 and e["dur"] > 0 for e in spans)
    for thread in threads:
        own = [e for e in spans if (e["pid"], e["tid"]) == thread]
        assert own
        for before, after in itertools.pairwise(own):
            assert before["ts"] + before["dur"] <= after["ts"]
    # one clock: the ranks are in the exchange of a round at the same time
    syncs = [[e for e in spans if e["name"] == "sync" and e["pid"] == rank + 1] for rank in range(4)]
    for same in zip(*syncs, strict=True):
        assert len({e["args"]["round"] for e in same}) == 1
        assert np.ptp([e["ts"] for e in same]) <= 2
    assert "aligned to within 0.002 ms" in document["otherData"]["clocks"]


def test_a_resumed_run_goes_on_in_the_trace(tmp_path):
    first, second = simulate(np.full((2, 10), 0.01)), simulate(np.full((2, 5), 0.01), first_round=10)
    folder = write(tmp_path / "run", *([*a, *b] for a, b in zip(first, second, strict=True)))
    events = ledger.trace(ledger.read(folder))["traceEvents"]
    (mark, _) = [e for e in events if e["name"] == "resumed at round 10"]
    spans = [e for e in events if e["ph"] == "X" and e["tid"] == 1]
    rounds = [e["args"]["round"] for e in spans if e["name"] == "merging"]
    assert rounds == list(range(15))
    assert all((e["ts"] >= mark["ts"]) == (e["args"]["round"] >= 10) for e in spans if e["name"] == "merging")


def test_pictures_of_runs_that_skip_rounds_and_that_are_long(tmp_path):
    entries = simulate(np.random.default_rng(0).exponential(0.01, (2, 30)))
    entries[1] = [e for e in entries[1] if not (e["kind"] == "call" and e["round"] in (3, 4, 5))]
    long = simulate(np.full((2, 2000), 0.01), sync_period=None)
    for name, ranks in (("skips", entries), ("long", long)):
        ledger.plot(ledger.read(write(tmp_path / name, *ranks)), tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_bins_of_rounds():
    values = np.arange(2.0 * 2000).reshape(2, 2000)
    values[0, :3] = np.nan
    values[1, 0] = np.nan
    bins, size = ledger._binned(values, np.sum, 0)
    assert size == 3
    assert bins.shape == (2, 667)
    assert np.isnan(bins[0, 0])
    assert bins[1, 0] == 2001 + 2002
    assert bins[0, -1] == 1998 + 1999


def test_command(tmp_path, capsys, monkeypatch):
    computation = np.random.default_rng(0).exponential(0.01, (4, 40))
    folder = write(tmp_path / "run", *simulate(computation))
    assert main(["ledger", str(folder)]) == 0
    output = capsys.readouterr().out
    assert "Who waited for whom" in output
    assert str(folder / "trace.json") in output
    assert (folder / "ledger.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "trace.json").read_text())["traceEvents"]
    monkeypatch.setattr(ledger, "plot", lambda ledgers, path, aligned: path.touch())
    assert main(["ledger", str(folder), "--out", str(tmp_path / "a" / "b")]) == 0
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["ledger.png", "trace.json"]
    capsys.readouterr()

    assert main(["ledger", str(tmp_path / "nothing")]) == 1
    assert "wagma ledger: expected files ledger-RANK.jsonl" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["ledger", str(folder), "--", "python"])
    assert "expected nothing after --" in capsys.readouterr().err


def test_text_and_trace_need_neither_matplotlib_nor_jax(tmp_path):
    folder = write(tmp_path / "run", ONE, OTHER)
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({['matplotlib', 'rich', 'mpi4py', 'mpi4jax', 'jax']}));"
        f"from wagma_jax.commands.main import main; sys.exit(main(['ledger', {str(folder)!r}]))"
    )
    ((status, output),) = run_all([[sys.executable, "-c", code]], timeout=60)
    assert status == 1, output
    assert "Who waited for whom" in output
    assert "the picture needs matplotlib, which the extra 'train' brings" in output
    assert (folder / "trace.json").exists()
    assert not (folder / "ledger.png").exists()


def test_other_commands_start_without_it():
    code = "import sys; import wagma_jax.commands.main; sys.exit('wagma_jax.ledger' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
