"""Reading files: what a crash left behind is read as far as it goes, and what does not fit together is refused."""

import pytest
from ledger.constructed import END, ONE, OTHER, call, line, meet, offset, simulate, start, write
from numpy import full

from wagma_jax import ledger


def changed(entries, at, **values):
    return [line(entry) | values if i == at else entry for i, entry in enumerate(entries)]


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
        ([ONE, [*OTHER[:2], "[1]", *OTHER[2:]]], r"line 3: .*unknown kind None"),
        ([ONE, changed(OTHER, 2, kind="clal")], r"line 3: .*unknown kind 'clal'"),
        ([ONE, changed(OTHER, 2, taken=0.5)], "line 3: .*do not ascend"),
        ([ONE, changed(OTHER, 2, merge="none")], "line 3: .*in the field 'merge', got 'none'"),
        ([ONE, changed(OTHER, 2, round=None)], "line 3: expected an entry of a ledger"),
        (
            [ONE, changed(OTHER, 0, version=7)],
            r"ledger-1\.jsonl, line 1: expected a ledger of format 6, got format 7: read it with the wagma_jax that",
        ),
        ([ONE, changed(OTHER, 0, group_size=9)], "group_size must be between 1 and num_workers=2"),
        ([ONE, OTHER[1:]], "expected a start first"),
        ([ONE, ['{"kind":"st']], "got no entries"),
        ([ONE, changed(OTHER, 1, contributed=[0, -1])], "these are ledgers of different runs"),
        ([ONE, changed(OTHER, 1, contributed=[0, 1])], "group and contributed do not fit"),
        ([ONE, [*OTHER[:3], OTHER[1], OTHER[2]]], "expected rounds in ascending order, got 0 after 0: two runs"),
        ([ONE, [*OTHER[:3], OTHER[2]]], "expected calls in ascending order, got 0 after 0: two runs"),
        ([ONE, [*OTHER[:3], call(1, 0.5, 2.0, 2.0, 2.0)]], "begins at 0.5 before 1.1"),
        ([ONE, [*OTHER[:3], meet(1.05, 2.0)]], "begins at 1.05 before 1.1"),
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


def test_all_entries_are_there_and_other_files_are_not_read(tmp_path):
    folder = write(tmp_path / "run", ONE, OTHER)
    (folder / "ledger-before.jsonl").write_text("?")
    for own, entries in zip(ledger.read(folder), (ONE, OTHER), strict=True):
        (segment,) = own.segments
        assert (segment.start, segment.entries) == (entries[0], tuple(entries[1:3]))
        assert (segment.offset, segment.ended) == (offset(2.0), True)


def test_a_run_that_failed_is_read_as_far_as_it_got(tmp_path):
    entries = simulate(full((2, 12), 0.01))
    ranks = [entries[0][:-2], [*entries[1][:-6], '{"kind":"round","round":']]
    summary = ledger.summarize(ledger.read(write(tmp_path / "run", *ranks)))
    assert summary.incomplete == (0, 1)
    assert summary.lost == 0
    words = ledger.text(summary)
    assert "Not ended: ranks 0, 1" in words
    assert "measured at the start only" in words


def test_a_line_that_a_crash_cut_off_does_not_end_a_resumed_ledger(tmp_path):
    cut = '{"kind":"call","rou'
    ranks = [[*entries[:3], cut, start(rank), offset(3.0), END] for rank, entries in enumerate((ONE, OTHER))]
    for own in ledger.read(write(tmp_path / "run", *ranks)):
        assert [len(segment.entries) for segment in own.segments] == [2, 0]
        assert [segment.ended for segment in own.segments] == [False, True]
