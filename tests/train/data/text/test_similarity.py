"""Similar sentences, and the LibreOffice help pages."""

import numpy as np
import pytest

from train import help_pages
from train.data.text import similarity
from train.help_pages import Pair

ENGLISH = """<html><body><p>no id</p><h1 id="h">Saving <b>all</b> files<br>now</h1>
<p id="p1">Choose <span><span hidden="true" id="MACx" class="MAC">Preferences</span><span
 hidden="true" id="defaultx">Tools &gt; Options</span></span>. Then wait. <script>ignored()</script></p>
<p id="p2">OPEN</p><p id="p3">a = 1 + 2;</p>
<div><p id="p4">One. Two sentences</p><p id="p5">Not closed</div></body></html>"""
GERMAN = """<h1 id="h">Alle Dateien jetzt speichern</h1><p id="p1">Wählen Sie Extras. Dann warten Sie.</p>
<p id="p2">OPEN</p><p id="p3">a = 1 + 2; x</p><p id="p4">Nur einer</p><p id="p6">Nur hier</p>"""


def test_the_nearest_sentence():
    others = ["the red house", "The blue house .", "a horse"]
    which, similar = similarity.nearest(["the red horse", "THE BLUE HOUSE", "nothing", ""], others)
    assert which.tolist() == [0, 1, 0, 0]
    # the, red, the red of {the, red, horse, the red, red horse} and {the, red, house, the red, red house}
    assert similar.tolist() == pytest.approx([3 / 7, 5 / 7, 0, 0])


def test_texts_of_a_page():
    texts = help_pages.page_texts(ENGLISH)
    assert texts["h"] == "Saving all files now"
    assert texts["p1"] == "Choose Tools > Options. Then wait."
    assert (texts["p4"], texts["p5"]) == ("One. Two sentences", "Not closed")


def test_pairs_of_pages(tmp_path):
    for language, text in (("en", ENGLISH), ("de", GERMAN)):
        for page in ("a/x.html", "y.html", f"only-{language}.html"):
            path = tmp_path / language / page
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    found = help_pages.pairs((tmp_path / "en", tmp_path / "de"))
    assert {pair.page for pair in found} == {"a/x.html"}  # each pair once
    assert {pair.texts for pair in found} == {
        ("Saving all files now", "Alle Dateien jetzt speichern"),
        ("Choose Tools > Options.", "Wählen Sie Extras."),
        ("Then wait.", "Dann warten Sie."),
        ("One. Two sentences", "Nur einer"),
    }
    assert len(help_pages.pairs((tmp_path / "en", tmp_path / "de"), max_words=3)) == 2


def test_the_test_set_is_new():
    rng = np.random.default_rng(0)
    words = np.array([f"w{number}" for number in range(400)])
    sentence = lambda: " ".join(rng.choice(words, 6))
    pairs = [Pair(f"page {number % 60}", (sentence(), sentence())) for number in range(300)]
    sets = help_pages.split(pairs)
    pages = [{pair.page for pair in chosen} for chosen in sets]
    assert not pages[0] & pages[1]
    assert len(pages[1]) == 3
    kept = len(sets.test)
    # a test pair's target again, on a page of the training set
    copy = Pair(sets.train[0].page, ("another source altogether", sets.test[0].texts[1]))
    again = help_pages.split([*pairs, copy])
    assert len(again.test) == kept - 1
    assert sets.test[0] not in again.test
    small = help_pages.split(pairs, max_train=50, max_test=4)
    assert 45 < len(small.train) <= 50
    assert len(small.test) == 4
    content = help_pages.files(small)
    assert content["test.en"].decode().splitlines() == [pair.texts[0] for pair in small.test]
