"""Variables of Open MPI in the user's environment: which of them do not fit the MPI that is installed."""

import itertools
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from wagma_jax.commands.launch.mpi import Mpi

_PREFIXES = ("OPAL_PREFIX", "PRTE_PREFIX", "PMIX_PREFIX")
_FRAMEWORKS = ("pml", "btl", "mtl", "osc", "coll")
_LOCAL = {"sm", "vader"}  # two names of what moves messages between ranks of a host
# How Open MPI's messages name the kind of component that it could not start.
_FAILED = re.compile(rb"(?:in the|Framework:) +(pml|btl|mtl|osc|coll)\b|(BTL)s attempted")


def misfits(mpi: Mpi, environment: Mapping[str, str], ranks_per_host: int) -> dict[str, str]:
    """The variables that do not fit, each with the reason.

    Args:
        mpi: What is installed.
        environment: Where the variables are.
        ranks_per_host: Ranks on the host that has most of them.
    """
    if not mpi.is_open_mpi:
        return {}
    found = {}
    prefix = Path(mpi.mpirun).parent.parent
    for name in _PREFIXES:
        if (value := environment.get(name)) and os.path.realpath(value) != os.path.realpath(prefix):
            found[name] = f"is {value}, but this MPI is in {prefix}"
    for framework in _FRAMEWORKS:
        name = f"OMPI_MCA_{framework}"
        if value := environment.get(name):
            if missing := _missing(mpi, framework, value):
                found[name] = f"names {', '.join(missing)}, which this MPI does not have"
            elif framework == "btl" and ranks_per_host > 1 and not _takes(value, _LOCAL):
                found[name] = f"is {value}, without sm, which moves messages between ranks of a host"
            elif framework == "btl" and not _takes(value, {"self"}):
                found[name] = f"is {value}, without self, which every rank needs"
    return found


def _takes(value: str, names: set[str]) -> bool:
    """Whether a list of components, or of those that are left out, leaves one of these in."""
    given = set(value.lstrip("^").split(","))
    return not given & names if value.startswith("^") else bool(given & names)


def _missing(mpi: Mpi, framework: str, value: str) -> list[str]:
    """Components that are asked for and not there."""
    if value.startswith("^"):
        return []
    try:
        command = [str(Path(mpi.mpirun).with_name("ompi_info")), "--parsable"]
        found = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    known = set(re.findall(rf"^mca:{framework}:(\w+):version", found.stdout, re.MULTILINE))
    aliases = _LOCAL if framework == "btl" else set()
    return [name for name in value.split(",") if known and name and name not in known | aliases]


def frameworks(environment: Mapping[str, str]) -> list[str]:
    """The variables that say which components are taken."""
    return [name for kind in _FRAMEWORKS if (name := f"OMPI_MCA_{kind}") in environment]


class Failures:
    """Watches what is written for Open MPI's messages about components that do not start."""

    def __init__(self, environment: Mapping[str, str]):
        self._given = {name: environment[name] for name in frameworks(environment)}
        self._found: set[str] = set()

    def feed(self, data: bytes) -> None:
        """A part of the output."""
        if self._given:
            for kind, btl in _FAILED.findall(data):
                self._found.add(f"OMPI_MCA_{(kind or btl).decode().lower()}")

    def found(self) -> list[str]:
        """The user's variables, as NAME=VALUE, that Open MPI's messages are about."""
        return [f"{name}={value}" for name, value in self._given.items() if name in self._found]


def sets_btl(mpi: Mpi, mpirun_args: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether the user says by which components messages move: in a variable, an option or a file of parameters."""
    if "OMPI_MCA_btl" in environment:
        return True
    options = [word.lstrip("-") for word in mpirun_args]
    if any(option in ("tune", "am") for option in options):  # name files, too
        return True
    if any(one.endswith("mca") and two == "btl" for one, two in itertools.pairwise(options)):
        return True
    files = [Path(mpi.mpirun).parent.parent / "etc" / name for name in ("openmpi-mca-params.conf",)]
    if home := environment.get("HOME"):
        files.append(Path(home) / ".openmpi" / "mca-params.conf")
    for file in files:
        try:
            if re.search(r"^\s*btl\s*=", file.read_text(errors="replace"), re.MULTILINE):
                return True
        except OSError:
            continue
    return False
