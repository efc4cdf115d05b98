"""The writer of ledgers: what is added is read again, whatever happens to the run and to the disk."""

import threading
import time

import pytest
from ledger.constructed import END, ONE, OTHER, call, exchange, offset, start

from wagma_jax import ledger
from wagma_jax.exchange import recorder as module
from wagma_jax.exchange.recorder import Recorder
from wagma_jax.ledger.entries import Meet


def lines_of(recorder):
    return recorder.path.read_text().splitlines()


def test_what_is_written_is_read(tmp_path):
    for rank, entries in enumerate((ONE, OTHER)):
        recorder = Recorder(tmp_path / "new" / "folder", rank)
        for entry in (*entries[:3], Meet(enter=1.2, leave=1.5), *entries[3:]):
            recorder.add(entry)
        recorder.close()
    for own, entries in zip(ledger.read(tmp_path / "new" / "folder"), (ONE, OTHER), strict=True):
        (segment,) = own.segments
        assert segment.start == entries[0]
        assert segment.entries == (*entries[1:3], Meet(enter=1.2, leave=1.5))
        assert segment.offset == offset(2.0)
        assert segment.ended


def test_a_resumed_run_goes_on_in_the_file_of_one_that_was_killed(tmp_path):
    for rank, entries in enumerate((ONE, OTHER)):
        recorder = Recorder(tmp_path, rank)
        for entry in entries[:3]:
            recorder.add(entry)
        recorder.close()
        with recorder.path.open("a") as file:
            file.write('{"kind": "call", "rou')
        recorder = Recorder(tmp_path, rank)
        for entry in (start(rank, first_round=1, time=0.5), offset(0.75), END):
            recorder.add(entry)
        recorder.close()
    for own in ledger.read(tmp_path):
        assert [(segment.start.first_round, len(segment.entries)) for segment in own.segments] == [(0, 2), (1, 0)]


def test_lines_are_written_together_or_when_they_have_waited(tmp_path, monkeypatch):
    now = time.perf_counter()
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    recorder = Recorder(tmp_path, 0)
    recorder.add(start(0))
    recorder.write()
    assert lines_of(recorder) == []  # not yet
    recorder.write(everything=True)
    assert len(lines_of(recorder)) == 1
    for t in range(module.FLUSH_ENTRIES - 1):
        recorder.add(exchange(t, [0], [t], t, t))
        recorder.write()
    assert len(lines_of(recorder)) == 1
    recorder.add(call(0, 0.0, 0.0, 0.0, 0.0))
    recorder.write()
    assert len(lines_of(recorder)) == 1 + module.FLUSH_ENTRIES
    recorder.add(END)
    monkeypatch.setattr(module.time, "perf_counter", lambda: now + module.FLUSH_SECONDS)
    recorder.write()
    assert len(lines_of(recorder)) == 2 + module.FLUSH_ENTRIES
    recorder.close()


def test_both_threads_add_while_one_writes(tmp_path):
    recorder = Recorder(tmp_path, 0)
    count = 2000

    def add(first):
        for t in range(first, 2 * count, 2):
            recorder.add(exchange(t, [0], [t], t, t))

    threads = [threading.Thread(target=add, args=(first,)) for first in (0, 1)]
    recorder.add(start(0, num_workers=1, group_size=1))
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        recorder.write(everything=True)
    recorder.close()
    rounds = [line for line in lines_of(recorder) if '"kind": "round"' in line]
    assert len(rounds) == len(set(rounds)) == 2 * count


def test_if_nobody_writes_the_oldest_entries_are_lost(tmp_path):
    recorder = Recorder(tmp_path, 0)
    for t in range(module.MOST_ENTRIES + 10):
        recorder.add(exchange(t, [0], [t], t, t))
    recorder.close()
    lines = lines_of(recorder)
    assert len(lines) == module.MOST_ENTRIES
    assert '"round": 10,' in lines[0]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"the ledger .*ledger-3\.jsonl cannot be written .*: pass another folder"):
        Recorder(tmp_path / "file", 3)


def test_training_goes_on_without_a_ledger_that_cannot_be_written(tmp_path):
    recorder = Recorder(tmp_path, 0)
    recorder._file.close()  # as after a failure
    recorder.add(start(0))
    with pytest.warns(UserWarning, match="ends here: it cannot be written"):
        recorder.write(everything=True)
    recorder.add(END)  # without another warning
    recorder.write(everything=True)
    recorder.close()
