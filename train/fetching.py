"""Where data sets come from: packages of Debian, and web servers."""

import dataclasses
import http.client
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

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
        with tempfile.TemporaryDirectory(dir=folder) as work:
            root = unpack(self.package, Path(work), self.time_limit)
            for name in names:
                path = root / self.folder / f"{name}.gz"
                if not path.is_file():
                    raise FetchError(f"the package does not hold {self.folder}/{name}.gz")
                shutil.copyfile(path, folder / path.name)


def unpack(package: str, work: Path, time_limit: float = 600) -> Path:
    """Downloads a package of Debian and unpacks it, which needs no rights.

    Args:
        package: Its name.
        work: A folder for what is needed on the way; made if it is missing.
        time_limit: Seconds for each command.

    Returns:
        The folder that stands for the root of the file system.

    Raises:
        FetchError: That cannot be done.
    """
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise FetchError(f"{tool} is not installed")
    work.mkdir(parents=True, exist_ok=True)
    command = ["apt-get", "download", package]
    try:
        _run(command, package, work, time_limit)
    except FetchError as error:
        # A fresh container has no lists of packages at all; only root can get them.
        if "Unable to locate package" not in str(error) or os.geteuid() != 0:
            raise
        _run(["apt-get", "update"], package, work, time_limit)
        _run(command, package, work, time_limit)
    archives = list(work.glob("*.deb"))
    if len(archives) != 1:
        raise FetchError(f"apt-get download left {len(archives)} packages, not one")
    _run(["dpkg", "-x", archives[0].name, "unpacked"], package, work, time_limit)
    return work / "unpacked"


def _run(command: list[str], package: str, work: Path, time_limit: float) -> None:
    """Runs a command; FetchError with the last line of its errors if it fails."""
    shown = " ".join(command[:2])
    try:
        with console.status(f"{shown} ({package}) ..."):
            done = subprocess.run(
                command,
                cwd=work,
                env=os.environ | {"LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=time_limit,
            )
    except subprocess.TimeoutExpired:
        raise FetchError(f"{shown} took more than {time_limit:g} seconds") from None
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
