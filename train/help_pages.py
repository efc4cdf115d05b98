"""Makes parallel text, English and German, of the help pages of LibreOffice: ``python -m train.help_pages``.

Debian packs the pages of each language (libreoffice-help-en-us, libreoffice-help-de), under MPL-2.0. Elements with the
same id on the same page translate each other. They are cut into sentences where both sides have equally many. Training
and test set are cut by page, and pairs of the test set that resemble one of the training set are left out.
"""

import dataclasses
import hashlib
import lzma
import re
import sys
import tempfile
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import tyro

from train.data.text import similarity
from train.fetching import FetchError, unpack

PACKAGES = ("libreoffice-help-en-us", "libreoffice-help-de")
FOLDERS = ("usr/share/libreoffice/help/en-US/text", "usr/share/libreoffice/help/de/text")
LANGUAGES = ("en", "de")
TEST_SHARE = 0.05  # of all pages
TEST_WORDS = (3, 40)  # of a source
SIMILAR = 0.5  # as ``train.data.text.similarity`` has it, of source or target

_BLOCKS = frozenset(("p", "h1", "h2", "h3", "h4", "h5", "h6"))
_VOID = frozenset(("br", "hr", "img", "input", "link", "meta", "source", "wbr"))
_SENTENCE_END = re.compile(r"(?<=[a-zäöüß)\"”“\]][.!?]) (?=[A-ZÄÖÜ„“\"(])")


class Pair(NamedTuple):
    """Two sentences of a page that translate each other."""

    page: str
    texts: tuple[str, str]


class Sets(NamedTuple):
    """Training and test set."""

    train: list[Pair]
    test: list[Pair]


class _Page(HTMLParser):
    """Collects the text of elements with an id. Of what differs by system, the default remains."""

    def __init__(self):
        super().__init__()
        self.texts: dict[str, str] = {}
        self._open: list[tuple[str, bool, bool]] = []  # (tag, begins a text, hidden)
        self._id: str | None = None
        self._parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID:
            self._parts.append(" ")
            return
        values = dict(attrs)
        name = values.get("id") or ""
        hidden = self._hidden() or tag in ("script", "style")
        hidden = hidden or (tag == "span" and "hidden" in values and not name.startswith("default"))
        begins = self._id is None and tag in _BLOCKS and bool(name)
        if begins:
            self._id, self._parts = name, []
        self._open.append((tag, begins, hidden))

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID or all(tag != name for name, _, _ in self._open):
            return
        while True:  # elements that are not closed end with the one around them
            name, began, _ = self._open.pop()
            if began and self._id is not None:
                self.texts.setdefault(self._id, " ".join("".join(self._parts).split()))
                self._id = None
            if name == tag:
                return

    def handle_data(self, data: str) -> None:
        if self._id is not None and not self._hidden():
            self._parts.append(data)

    def _hidden(self) -> bool:
        return bool(self._open) and self._open[-1][2]


def page_texts(html: str) -> dict[str, str]:
    """The text of each heading and paragraph of a page, by its id."""
    page = _Page()
    page.feed(html)
    page.close()
    return page.texts


def pairs(folders: tuple[Path, Path], max_words: int | None = None) -> list[Pair]:
    """All pairs of sentences of two folders of pages, each pair once.

    Args:
        folders: The pages of the two languages.
        max_words: Of each sentence.
    """
    found: dict[tuple[str, str], Pair] = {}
    for path in sorted(folders[0].rglob("*.html")):
        page = path.relative_to(folders[0]).as_posix()
        if not (folders[1] / page).is_file():
            continue
        english, german = (page_texts((folder / page).read_text("utf-8")) for folder in folders)
        for name in english.keys() & german.keys():
            for texts in _sentences(english[name], german[name]):
                if _is_language(texts) and (max_words is None or max(len(t.split()) for t in texts) <= max_words):
                    found.setdefault(texts, Pair(page, texts))
    return sorted(found.values())


def split(found: Iterable[Pair], max_train: int | None = None, max_test: int | None = None) -> Sets:
    """Training and test set, of different pages; the test set has nothing that resembles the training set.

    Pages are taken in the order of their hashes, and so are the test set's pairs.

    Args:
        found: Pairs.
        max_train: Pairs for training, at most; None: all.
        max_test: Pairs for the test, at most; None: all.
    """
    by_page: dict[str, list[Pair]] = {}
    for pair in found:
        by_page.setdefault(pair.page, []).append(pair)
    order = sorted(by_page, key=_hash)
    count = round(TEST_SHARE * len(order))
    test = [pair for page in order[:count] for pair in by_page[page]]
    train: list[Pair] = []
    for page in order[count:]:
        if max_train is not None and len(train) + len(by_page[page]) > max_train:
            break
        train += by_page[page]
    low, high = TEST_WORDS
    test = [pair for pair in test if low <= len(pair.texts[0].split()) <= high]
    for side in (0, 1):
        _, alike = similarity.nearest([pair.texts[side] for pair in test], [pair.texts[side] for pair in train])
        test = [pair for pair, like in zip(test, alike, strict=True) if like < SIMILAR]
    test = sorted(test, key=lambda pair: _hash("\n".join(pair.texts)))[:max_test]
    return Sets(train, sorted(test))


def files(sets: Sets) -> dict[str, bytes]:
    """The content of ``train.en``, ``train.de``, ``test.en`` and ``test.de``."""
    return {
        f"{name}.{language}": "".join(f"{pair.texts[side]}\n" for pair in chosen).encode()
        for name, chosen in zip(("train", "test"), sets, strict=True)
        for side, language in enumerate(LANGUAGES)
    }


@dataclasses.dataclass(frozen=True)
class HelpPages:
    """A source of parallel text; see ``train.fetching.Source``.

    Attributes:
        max_words: Of each sentence; None: no limit.
        max_train: Pairs for training, at most; None: all.
        max_test: Pairs for the test, at most; None: all.
    """

    max_words: int | None = None
    max_train: int | None = None
    max_test: int | None = 1000

    def __str__(self) -> str:
        return f"Debian's packages {' and '.join(PACKAGES)}"

    def content(self, work: Path) -> dict[str, bytes]:
        """The files by name; FetchError says why there are none."""
        roots = [unpack(package, work / package) for package in PACKAGES]
        english, german = (root / folder for root, folder in zip(roots, FOLDERS, strict=True))
        for folder in (english, german):
            if not folder.is_dir():
                raise FetchError(f"the package does not hold {folder.name}")
        return files(split(pairs((english, german), self.max_words), self.max_train, self.max_test))

    def get(self, names: Iterable[str], folder: Path) -> None:
        """Brings the files ``NAME.gz`` into a folder; FetchError says why it cannot."""
        import gzip

        with tempfile.TemporaryDirectory(dir=folder) as work:
            content = self.content(Path(work))
        for name in names:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content[name], mtime=0))


SAMPLE = Path(__file__).parent / "data" / "text" / "sample"
MAKES_SAMPLE = HelpPages(max_words=25, max_train=30_000, max_test=500)


@dataclasses.dataclass(frozen=True)
class Options:
    """Make the sample that comes with the project again, from Debian's packages.

    Attributes:
        folder: Where the files go.
    """

    folder: Path = SAMPLE


def main() -> None:
    """The command line."""
    options = tyro.cli(Options, prog="python -m train.help_pages", description=str(Options.__doc__).partition("\n")[0])
    try:
        with tempfile.TemporaryDirectory() as work:
            content = MAKES_SAMPLE.content(Path(work))
    except FetchError as error:
        sys.exit(f"train.help_pages: {error}")
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, text in content.items():
        path = options.folder / f"{name}.xz"
        path.write_bytes(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
        print(f"{path}: {text.count(bytes([10])):,} lines, {path.stat().st_size:,} bytes")


def _sentences(english: str, german: str) -> list[tuple[str, str]]:
    sides = _SENTENCE_END.split(english), _SENTENCE_END.split(german)
    return list(zip(*sides, strict=True)) if len(sides[0]) == len(sides[1]) else [(english, german)]


def _is_language(texts: tuple[str, str]) -> bool:
    """Whether a pair is neither code nor something that is not translated."""
    letters = [sum(c.isalpha() for c in text) / max(len(text.replace(" ", "")), 1) for text in texts]
    return texts[0] != texts[1] and min(letters) > 0.6


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    main()
