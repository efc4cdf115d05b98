"""Fetches data sets that do not come with the project: ``python -m train.fetch fashion-mnist``."""

import dataclasses
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from train.data.images import arrays
from train.data.text import catalog
from train.fetching import Address, DebianPackage, FetchError, Source
from train.help_pages import HelpPages


@dataclasses.dataclass(frozen=True)
class Download:
    """A data set that can be fetched.

    Attributes:
        folder: Where it goes unless asked otherwise.
        sources: Where it comes from; the first that has it.
        sha256: Of each file, unpacked: packed, the files differ from source to source. None where it depends on the
            version of a package.
    """

    folder: Path
    sources: tuple[Source, ...]
    sha256: Mapping[str, str | None]


DOWNLOADS = {
    "fashion-mnist": Download(
        folder=arrays.DEFAULT_FOLDER,
        sources=(
            DebianPackage("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist"),
            Address("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"),
        ),
        sha256={
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
    ),
    "libreoffice-help": Download(
        folder=catalog.HELP_FOLDER,
        sources=(HelpPages(),),
        sha256=dict.fromkeys(("train.en", "train.de", "test.en", "test.de")),
    ),
}

if TYPE_CHECKING:
    DatasetName = str
else:
    DatasetName = Literal[tuple(sorted(DOWNLOADS))]


def fetch(name: str, folder: Path | None = None, address: str | None = None) -> bool:
    """Fetches a data set, unless it is there already. An interrupted fetch leaves no file that is not whole and right.

    Args:
        name: A key of DOWNLOADS.
        folder: Where to; None: the data set's own folder. Files in it stay as they are, missing ones are added.
        address: The only place to fetch from; None: the data set's sources, one after another.

    Returns:
        Whether anything had to be fetched.

    Raises:
        FetchError: The folder holds other files under these names, it cannot be written, or no source has the data set.
    """
    download = DOWNLOADS[name]
    folder = download.folder if folder is None else folder
    sources = download.sources if address is None else (Address(address),)
    if folder.exists() and not folder.is_dir():
        raise FetchError(f"{folder} is not a folder: choose another one with --folder")
    missing = [file for file in download.sha256 if arrays.stored_file(folder, file) is None]
    wrong = _wrong_files(folder, {file: sha for file, sha in download.sha256.items() if file not in missing})
    if wrong:
        raise FetchError(
            f"{folder} holds files that are not those of {name}, and they are not overwritten:\n"
            + "\n".join(f"  {line}" for line in wrong)
            + "\nremove them, or choose another folder with --folder"
        )
    if not missing:
        return False
    expected = {file: download.sha256[file] for file in missing}
    try:
        exists = folder.is_dir()
        # Only within one file system does anything move in one piece, and a folder that exists may be one by itself.
        place = folder if exists else folder.parent
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place, prefix=f".{folder.name}-") as work:
            arrived = _try_sources(name, sources, expected, Path(work))
            if exists:
                for file in arrived.iterdir():
                    os.replace(file, folder / file.name)
            else:
                os.replace(arrived, folder)
    except OSError as error:
        raise FetchError(f"{folder} cannot be written ({error}): choose another folder with --folder") from None
    return True


def _try_sources(name: str, sources: Iterable[Source], expected: Mapping[str, str | None], work: Path) -> Path:
    """A new folder with the files of the first source whose files are right."""
    failures = []
    for number, source in enumerate(sources):
        folder = work / str(number)
        folder.mkdir()
        try:
            source.get(expected, folder)
            if not (wrong := _wrong_files(folder, expected)):
                return folder
            failures.append((source, "; ".join(wrong)))
        except FetchError as error:
            failures.append((source, str(error)))
    raise FetchError(
        f"{name} could not be fetched; tried:\n"
        + "\n".join(f"  {source}: {reason}" for source, reason in failures)
        + "\ncheck the network, or name a copy of the files with --address"
    )


def _wrong_files(folder: Path, expected: Mapping[str, str | None]) -> list[str]:
    """What is wrong with each file of the folder that is not as expected (name: SHA-256 of the unpacked file)."""
    wrong = []
    for name, sha256 in expected.items():
        path = arrays.stored_file(folder, name)
        if path is None:
            wrong.append(f"{name} is missing")
            continue
        try:
            got = hashlib.sha256(arrays.read_unpacked(path)).hexdigest()
        except ValueError as error:
            wrong.append(f"{path.name}: {str(error).removeprefix(f'{path}: ')}")
            continue
        if sha256 is not None and got != sha256:
            wrong.append(f"{path.name}: expected SHA-256 {sha256} unpacked, got {got}")
    return wrong


@dataclasses.dataclass(frozen=True)
class Options:
    """Fetch a data set, check it, and put it where training finds it.

    Attributes:
        dataset: Which one.
        folder: Where to; None: data/DATASET.
        address: Web address of a folder with the files, to fetch from there alone; None: the usual places.
    """

    dataset: tyro.conf.Positional[DatasetName]
    folder: Path | None = None
    address: str | None = None


def main() -> None:
    """The command line."""
    options = tyro.cli(Options, prog="python -m train.fetch", description=str(Options.__doc__).partition("\n")[0])
    folder = options.folder or DOWNLOADS[options.dataset].folder
    try:
        fetched = fetch(options.dataset, folder, options.address)
    except FetchError as error:
        sys.exit(f"train.fetch: {error}")
    print(f"{options.dataset}: {'fetched into' if fetched else 'already in'} {folder}, all files are right")


if __name__ == "__main__":
    main()
