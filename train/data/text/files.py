"""Reads parallel text files: one sentence a line, the translation in the same line of another file."""

import dataclasses
import gzip
import lzma
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from train.data.text import Pairs

READERS = {".gz": gzip.open, ".xz": lzma.open}


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many pairs were read, and how many of them were left out.

    Attributes:
        read: Pairs of lines.
        left_out: By reason.
    """

    read: int
    left_out: Mapping[str, int]

    @property
    def kept(self) -> int:
        """Pairs that remain."""
        return self.read - sum(self.left_out.values())

    def __add__(self, other: "Counts") -> "Counts":
        """The counts of a further filter, which has read what this one kept."""
        assert other.read == self.kept
        return Counts(self.read, {**self.left_out, **other.left_out})

    def describe(self) -> str:
        """For people: "980 of 1,000 pairs (left out: 15 empty, 5 not UTF-8)"."""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.items() if count)
        whole = f"{self.kept:,} of {self.read:,} pairs"
        return f"{whole} (left out: {reasons})" if reasons else f"{self.read:,} pairs"


def read(source: Path, target: Path) -> tuple[Pairs, Counts]:
    """Reads two parallel files.

    Lines end with a line feed. White space around a line does not count. A pair is left out, and counted, if one of its
    lines is empty, is not valid UTF-8, or equals the other.

    Args:
        source: Plain text, or packed as ``.gz`` or ``.xz``.
        target: As many lines.

    Raises:
        ValueError: A file is missing or damaged, or they have different numbers of lines.
    """
    pairs, left_out = Pairs([], []), {"not UTF-8": 0, "empty": 0, "source equals target": 0}
    lines, others = _without_mark(_lines(source)), _without_mark(_lines(target))
    number = 0
    for number, line in enumerate(lines, 1):
        other = next(others, None)
        if other is None:
            _raise_unequal(source, number + sum(1 for _ in lines), target, number - 1)
        assert other is not None
        try:
            texts = _text(line), _text(other)
        except UnicodeDecodeError:
            left_out["not UTF-8"] += 1
            continue
        if not all(texts):
            left_out["empty"] += 1
        elif texts[0] == texts[1]:
            left_out["source equals target"] += 1
        else:
            pairs.source.append(texts[0])
            pairs.target.append(texts[1])
    if next(others, None) is not None:
        _raise_unequal(source, number, target, number + 1 + sum(1 for _ in others))
    return pairs, Counts(number, left_out)


def read_sentences(path: Path) -> list[str]:
    """The lines of one file, those that are empty too.

    Raises:
        ValueError: The file is missing or damaged, or a line is not valid UTF-8.
    """
    return decoded(_lines(path), str(path))


def decoded(lines: Iterator[bytes], name: str) -> list[str]:
    """Lines of text.

    Raises:
        ValueError: A line is not valid UTF-8; the message calls the file ``name``.
    """
    texts = []
    for number, line in enumerate(_without_mark(lines), 1):
        try:
            texts.append(_text(line))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"line {number} of {name} is not valid UTF-8 ({error.reason} at byte {error.start}): convert the file, "
                "with iconv for example"
            ) from None
    return texts


def _without_mark(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Lines without the encoding's mark at their beginning."""
    for number, line in enumerate(lines):
        yield line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file."""
    try:
        with READERS.get(path.suffix, open)(path, "rb") as file:
            yield from file
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(f"{path} cannot be read ({reason}): give a text file, plain or packed as .gz or .xz") from None


def _text(line: bytes) -> str:
    return " ".join(line.decode().split())


def _raise_unequal(source: Path, lines: int, target: Path, others: int) -> None:
    raise ValueError(
        f"parallel files must have as many lines, got {lines:,} in {source} and {others:,} in {target}: line n of the "
        "one must translate line n of the other"
    )
