"""Fetches data sets that do not come with a package: ``python -m train.fetch fashion-mnist``."""

import dataclasses
import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import tyro
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from train.data.images import arrays

console = Console()


class FetchError(RuntimeError):
    """A data set could not be fetched; the message says why."""


class Source(Protocol):
    """A place where a data set is published."""

    def get(self, names: Iterable[str], folder: Path) -> None:
        """Brings the files ``NAME.gz`` into a folder; FetchError says why it cannot."""
        ...


@dataclasses.dataclass(frozen=True)
class DebianPackage:
    """A package of Debian and what derives from it; it is unpacked, not installed, which needs no rights.

    Attributes:
        package: Its name.
        folder: Where it holds the files, relative to the root.
        time_limit: Seconds for each command.
    """

    package: str
    folder: str
    time_limit: float = 600

    def __str__(self) -> str:
        return f"Debian's package {self.package}"

    def get(self, names: Iterable[str], folder: Path) -> None:
        """Brings the files ``NAME.gz`` into a folder; FetchError says why it cannot."""
        for tool in ("apt-get", "dpkg"):
            if shutil.which(tool) is None:
                raise FetchError(f"{tool} is not installed")
        with tempfile.TemporaryDirectory(dir=folder) as work:
            self._download(work)
            archives = list(Path(work).glob("*.deb"))
            if len(archives) != 1:
                raise FetchError(f"apt-get download left {len(archives)} packages, not one")
            self._run(["dpkg", "-x", archives[0].name, "unpacked"], work)
            for name in names:
                path = Path(work, "unpacked", self.folder, f"{name}.gz")
                if not path.is_file():
                    raise FetchError(f"the package does not hold {self.folder}/{name}.gz")
                shutil.copyfile(path, folder / path.name)

    def _download(self, work: str) -> None:
        command = ["apt-get", "download", self.package]
        try:
            self._run(command, work)
        except FetchError as error:
            # A fresh container has no lists of packages at all; only root can get them.
            if "Unable to locate package" not in str(error) or os.geteuid() != 0:
                raise
            self._run(["apt-get", "update"], work)
            self._run(command, work)

    def _run(self, command: list[str], work: str) -> None:
        """Runs a command; FetchError with the last line of its errors if it fails."""
        shown = " ".join(command[:2])
        try:
            with console.status(f"{shown} ({self.package}) ..."):
                done = subprocess.run(
                    command,
                    cwd=work,
                    env=os.environ | {"LC_ALL": "C"},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    timeout=self.time_limit,
                )
        except subprocess.TimeoutExpired:
            raise FetchError(f"{shown} took more than {self.time_limit:g} seconds") from None
        except OSError as error:
            raise FetchError(f"{shown} cannot be run: {error}") from None
        if done.returncode:
            lines = [line for line in done.stdout.splitlines() if line.strip()] or ["no output"]
            errors = [line for line in lines if line.startswith(("E:", "dpkg"))] or lines[-1:]
            raise FetchError(f"{shown} failed with status {done.returncode}: {' '.join(errors)}")


@dataclasses.dataclass(frozen=True)
class Address:
    """A folder on a web server.

    Attributes:
        address: Of the folder.
        idle_limit: Seconds to wait for the server at any time.
        time_limit: Seconds for each file.
    """

    address: str
    idle_limit: float = 30
    time_limit: float = 1800

    def __str__(self) -> str:
        return self.address

    def get(self, names: Iterable[str], folder: Path) -> None:
        """Brings the files ``NAME.gz`` into a folder; FetchError says why it cannot."""
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=console) as progress:
            for name in names:
                try:
                    self._download(f"{name}.gz", folder, progress)
                except urllib.error.HTTPError as error:
                    error.close()
                    raise FetchError(f"{name}.gz: the server says {error.code} {error.reason}") from None
                except urllib.error.URLError as error:
                    raise FetchError(f"{name}.gz: {error.reason}") from None
                except (OSError, http.client.HTTPException, ValueError) as error:
                    raise FetchError(f"{name}.gz: {error or type(error).__name__}") from None

    def _download(self, name: str, folder: Path, progress: Progress) -> None:
        end = time.monotonic() + self.time_limit
        url = f"{self.address.rstrip('/')}/{name}"
        with urllib.request.urlopen(url, timeout=self.idle_limit) as answer, (folder / name).open("wb") as file:
            length = answer.headers.get("Content-Length")
            task = progress.add_task(name, total=int(length) if length else None)
            # read1 returns what has arrived, so that a slow server cannot hold up the check of the time
            while chunk := answer.read1(1 << 16):
                file.write(chunk)
                progress.update(task, advance=len(chunk))
                if time.monotonic() > end:
                    raise FetchError(f"{name} took more than {self.time_limit:g} seconds")
            if length and file.tell() != int(length):
                raise FetchError(f"{name}: the server broke off after {file.tell()} of {length} bytes")


@dataclasses.dataclass(frozen=True)
class Download:
    """A data set that can be fetched.

    Attributes:
        folder: Where it goes unless asked otherwise.
        sources: Where it comes from; the first that has it.
        sha256: Of each file, unpacked: packed, the files differ from source to source.
    """

    folder: Path
    sources: tuple[Source, ...]
    sha256: Mapping[str, str]


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
    )
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


def _try_sources(name: str, sources: Iterable[Source], expected: Mapping[str, str], work: Path) -> Path:
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


def _wrong_files(folder: Path, expected: Mapping[str, str]) -> list[str]:
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
        if got != sha256:
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
