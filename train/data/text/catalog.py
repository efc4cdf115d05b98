"""Parallel text by the names that the command line has for it."""

import collections
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from train.data.text import Pairs, files
from train.data.text.files import Counts

SAMPLE_FOLDER = Path(__file__).parent / "sample"
HELP_FOLDER = Path("data") / "libreoffice-help"
FORMS = "sample or libreoffice-help[:DIR]"

# Without test files, a share of the pairs is kept for the test, but no more than so many.
TEST_SHARE, MOST_TEST = 0.05, 1000


class Corpus(NamedTuple):
    """Parallel text for training and evaluation.

    Attributes:
        name: For people.
        train: Pairs to train on.
        test: Pairs to evaluate on.
        counts: What was read and left out, by the name of the set.
    """

    name: str
    train: Pairs
    test: Pairs
    counts: dict[str, Counts]


def load(
    name: str,
    source: Path | None = None,
    target: Path | None = None,
    test_source: Path | None = None,
    test_target: Path | None = None,
) -> Corpus:
    """Reads parallel text.

    Args:
        name: One of ``FORMS``, unless files are given.
        source: Sentences to train on, one a line; with ``target``.
        target: Their translations.
        test_source: Sentences to evaluate on; with ``test_target``. None: a share of the others is kept for that, which
            the text of each source selects.
        test_target: Their translations.

    Raises:
        ValueError: There is no such text, something is wrong with it, or nothing is left of it.
    """
    for given, other in ((source, target), (target, source)):
        if given is not None and other is None:
            raise ValueError("--source and --target go together: give two parallel files")
    for given, other in ((test_source, test_target), (test_target, test_source)):
        if given is not None and other is None:
            raise ValueError("--test-source and --test-target go together: give two parallel files")
    if source is not None and target is not None:
        corpus = _of_files(source, target, test_source, test_target)
    elif test_source is not None:
        raise ValueError("--test-source and --test-target are for text of your own: give --source and --target as well")
    else:
        corpus = _named(name)
    for which, pairs in (("training", corpus.train), ("test", corpus.test)):
        if not pairs.source:
            raise ValueError(
                f"no {which} pairs are left of {corpus.name}, {corpus.counts[which].describe()}: check the files"
            )
    return corpus


def _named(name: str) -> Corpus:
    kind, _, where = name.partition(":")
    if name == "sample":
        folder, ending = SAMPLE_FOLDER, ".xz"
    elif kind == "libreoffice-help":
        folder, ending = Path(where) if where else HELP_FOLDER, ".gz"
        if not folder.is_dir():
            option = f" --folder {folder}" if where else ""
            raise ValueError(
                f"{folder}, where --dataset {name} should be, does not exist: run "
                f"`python -m train.fetch libreoffice-help{option}`"
            )
    else:
        raise ValueError(f"--dataset must be {FORMS}, got {name!r}: or give --source and --target")
    packed = [folder / f"{part}.{language}{ending}" for part in ("train", "test") for language in ("en", "de")]
    found = [path if path.is_file() else path.with_suffix("") for path in packed]  # also where they were unpacked
    train, test = found[:2], found[2:]
    corpus = _of_files(*train, *test)
    return corpus._replace(name=name)


def _chosen(sources: Sequence[str]) -> set[str]:
    """The sources whose pairs are kept for the test: chosen by their text, so that equal ones are all on one side."""
    left = min(MOST_TEST, max(1, round(TEST_SHARE * len(sources))))
    copies, chosen = collections.Counter(sources), set()
    for text in sorted(copies, key=lambda text: hashlib.sha256(text.encode()).digest()):
        if copies[text] <= left:
            chosen.add(text)
            left -= copies[text]
    return chosen


def _of_files(source: Path, target: Path, test_source: Path | None, test_target: Path | None) -> Corpus:
    train, counts = files.read(source, target)
    if test_source is not None and test_target is not None:
        test, of_test = files.read(test_source, test_target)
        return Corpus(source.name, train, test, {"training": counts, "test": of_test})
    chosen = _chosen(train.source)
    parts = (Pairs([], []), Pairs([], []))
    for one, other in zip(*train, strict=True):
        part = parts[one in chosen]
        part.source.append(one)
        part.target.append(other)
    kept = Counts(counts.read, {**counts.left_out, "kept for the test": len(parts[1].source)})
    return Corpus(source.name, *parts, {"training": kept, "test": Counts(len(parts[1].source), {})})
