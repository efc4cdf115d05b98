"""The summary as text."""

import dataclasses
import re

from ledger.constructed import END, ONE, OTHER, call, consensus, exchange, offset, start, write

from wagma_jax import ledger


def test_text_says_it(two):
    words = ledger.text(ledger.summarize(two))
    assert "2 ranks, groups of 2, no sync rounds: 3 rounds (0 syncs) in 5.6 s on 1 machine; clock=step" in words
    assert re.search(r"rank 0 +0\.550 +0\.550\n", words)
    assert re.search(r"caused +0\.200 +0\.550 +0\.750\n", words)
    assert re.search(r"on time +3 +2 +5 +83\.3%", words)
    assert re.search(r"1 round +0 +1 +1 +16\.7%", words)
    assert "Times of the ranks: aligned to within 0 ms; measured at the start and at the end" in words
    assert max(map(len, words.splitlines())) <= 130


def test_models_that_were_not_finite_are_counted(tmp_path):
    def entries(rank):
        skipped = call(0, 1.0, 1.0, 1.1, 1.1)._replace(nonfinite=rank == 1)
        rested = consensus(1.2, 1.2, 1.3, 1.3, 0)._replace(nonfinite=rank == 1)
        round_ = exchange(0, [0, 1], [0, -1], 1.0, 1.1)
        return [start(rank, on_nonfinite="skip"), round_, skipped, rested, offset(2.0), END]

    words = ledger.text(ledger.summarize(ledger.read(write(tmp_path / "run", entries(0), entries(1)))))
    assert "Models that were not finite, with earlier ones in their places: rank 1 2.\n" in words
    assert "not finite" not in ledger.text(ledger.summarize(ledger.read(write(tmp_path / "good", ONE, OTHER))))


def test_settings_of_groups_are_in_the_title(two):
    first = two[0].segments[0]
    options = {"weighting": "equal", "late_merge": "add", "quorum_seconds": "0.0125"}
    segments = (dataclasses.replace(first, start=first.start._replace(options=options)),)
    words = ledger.text(ledger.summarize([dataclasses.replace(two[0], segments=segments), *two[1:]]))
    assert "groups of 2, late workers add their steps, no sync rounds" in words
    assert "clock=step, quorum=2 within 12.5 ms\n" in words


def test_many_ranks_fit(many):
    words = ledger.text(ledger.summarize(many))
    assert "the longest of 380 pairs" in words
    assert max(map(len, words.splitlines())) <= 130


def test_starts_alone_are_a_ledger(starts):
    words = ledger.text(ledger.summarize(starts))
    assert "nobody waited" in words
    assert "no ordinary rounds" in words
