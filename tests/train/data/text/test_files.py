"""Parallel files with every kind of bad line, and what is left of them."""

import gzip
import lzma

import pytest

from train.data.text import catalog, files

SOURCE = b"\xef\xbb\xbfone  two\r\nthree\n\nbad \xff\nsame\nfour\n  \nlast"
TARGET = b"eins zwei\ndrei\nleer\nschlecht\nsame\n\nauch leer\nletzte"


@pytest.fixture
def pair(tmp_path):
    paths = tmp_path / "text.en", tmp_path / "text.de"
    for path, content in zip(paths, (SOURCE, TARGET), strict=True):
        path.write_bytes(content)
    return paths


def test_bad_lines_are_left_out_and_counted(pair):
    pairs, counts = files.read(*pair)
    assert pairs == (["one two", "three", "last"], ["eins zwei", "drei", "letzte"])
    assert counts == files.Counts(8, {"not UTF-8": 1, "empty": 3, "source equals target": 1})
    assert counts.kept == 3
    assert counts.describe() == "3 of 8 pairs (left out: 1 not UTF-8, 3 empty, 1 source equals target)"
    assert files.Counts(1200, {"empty": 0}).describe() == "1,200 pairs"


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_packed_files(pair, tmp_path, ending, pack):
    packed = tmp_path / f"packed{ending}"
    packed.write_bytes(pack(SOURCE))
    assert files.read(packed, pair[1]) == files.read(*pair)
    packed.write_bytes(pack(SOURCE)[:-5])
    with pytest.raises(ValueError, match=rf"packed\{ending} cannot be read \(.*\): give a text file, plain or packed"):
        files.read(packed, pair[1])
    packed.write_bytes(SOURCE)
    with pytest.raises(ValueError, match="cannot be read"):
        files.read(packed, pair[1])


def test_files_that_are_not_parallel(pair, tmp_path):
    with pytest.raises(ValueError, match=r"missing cannot be read \(No such file or directory\)"):
        files.read(tmp_path / "missing", pair[1])
    for lines in (SOURCE + b"\none more\nand more", b"one"):
        pair[0].write_bytes(lines)
        with pytest.raises(ValueError, match=rf"got {lines.count(bytes([10])) + 1} in .*text.en and 8 in .*text.de"):
            files.read(*pair)


def test_a_text_to_translate(pair):
    assert files.read_sentences(pair[1])[-3:] == ["", "auch leer", "letzte"]
    with pytest.raises(ValueError, match=r"line 4 of .*text.en is not valid UTF-8 \(invalid start byte at byte 4\)"):
        files.read_sentences(pair[0])


def test_a_share_is_kept_for_the_test(tmp_path):
    paths = tmp_path / "a.en", tmp_path / "a.de"
    for path, word in zip(paths, ("source", "ziel"), strict=True):
        path.write_text("".join(f"{word} {number // 2}\n" for number in range(100)))
    corpus = catalog.load("sample", *paths)
    assert (len(corpus.train.source), len(corpus.test.source)) == (96, 4)  # 5 % at most: 2 sources, twice each
    assert not set(corpus.train.source) & set(corpus.test.source)
    assert corpus.counts["training"].describe() == "96 of 100 pairs (left out: 4 kept for the test)"
    own = catalog.load("sample", *paths, *paths)
    assert own.train == own.test
    assert len(own.test.source) == 100


def test_texts_that_do_not_exist(pair, tmp_path):
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(ValueError, match="--source and --target go together"):
        catalog.load("sample", source=pair[0])
    with pytest.raises(ValueError, match="--test-source and --test-target go together"):
        catalog.load("sample", *pair, test_target=pair[0])
    with pytest.raises(ValueError, match="are for text of your own: give --source and --target as well"):
        catalog.load("sample", test_source=pair[0], test_target=pair[1])
    with pytest.raises(ValueError, match="no training pairs are left of empty, 0 pairs: check the files"):
        catalog.load("sample", empty, empty)
    with pytest.raises(ValueError, match=r"no test pairs are left of text\.en, 0 pairs"):
        catalog.load("sample", *pair, empty, empty)
    with pytest.raises(ValueError, match=r"run `python -m train.fetch libreoffice-help --folder .*nowhere`"):
        catalog.load(f"libreoffice-help:{tmp_path / 'nowhere'}")
    with pytest.raises(ValueError, match="--dataset must be sample or libreoffice-help"):
        catalog.load("digits")


def test_the_sample():
    corpus = catalog.load("sample")
    assert [len(pairs.source) for pairs in (corpus.train, corpus.test)] == [29_984, 500]
    assert all(counts.kept == counts.read for counts in corpus.counts.values())
    assert not set(corpus.train.source) & set(corpus.test.source)
    assert sum(path.stat().st_size for path in catalog.SAMPLE_FOLDER.iterdir()) < 1_000_000
    assert "Mozilla Public License 2.0" in (catalog.SAMPLE_FOLDER / "README.md").read_text()
