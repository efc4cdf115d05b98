"""Rows about this machine's installation: versions, and what the probes have found."""

import importlib.metadata
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from wagma_jax.commands.doctor.probes import Outcome
from wagma_jax.commands.doctor.rows import Row
from wagma_jax.commands.launch.mpi import INSTALL, Mpi

REUSED_FAULTS = 8  # page faults that are tolerated in memory that glibc has kept; fresh memory causes thousands


def rows(outcomes: Mapping[str, Outcome]) -> Sequence[Row]:
    """The rows of what the probes have found, by their names."""
    mpi_row, mpi = _judge_mpi(outcomes["MPI"])
    loads = mpi is not None or outcomes["MPI threads"].value is not None
    return (
        mpi_row,
        _judge_threads(outcomes["MPI threads"]) if loads else Row("MPI threads", "skip", "needs MPI"),
        judge_mpi4jax(outcomes["mpi4jax"], mpi) if loads else Row("mpi4jax", "skip", "needs MPI"),
        _judge_memory(outcomes["memory"]),
    )


def versions() -> Row:
    """Whether the installed packages are within the bounds of this one."""
    name = "versions"
    try:
        own = importlib.metadata.version("wagma_jax")
        requirements = importlib.metadata.requires("wagma_jax") or []
    except importlib.metadata.PackageNotFoundError:
        return Row(
            name, "warn", "expected wagma_jax to be installed, but it is only on Python's path", f"run {INSTALL}"
        )
    installed = [f"wagma_jax {own}", f"Python {sys.version.split()[0]}"]
    unfit, wanted = [], []
    for requirement in requirements:
        specification, _, marker = requirement.partition(";")
        match = re.match(r"\s*([\w.-]+)(.*)", specification)
        if not match or ("extra" in marker and "mpi" not in marker):
            continue
        try:
            version = importlib.metadata.version(match[1])
        except importlib.metadata.PackageNotFoundError:
            if not marker:
                unfit.append(f"{match[1]}{match[2]}, which is not installed")
                wanted.append(specification.strip())
            continue  # other rows say whether MPI is there, and from where
        installed.append(f"{match[1]} {version}")
        if not _satisfies(version, match[2]):
            unfit.append(f"{match[1]}{match[2].strip()}, got {version}")
            wanted.append(specification.strip())
    if unfit:
        return Row(name, "fail", f"expected {'; '.join(unfit)}", f"run pip install {shlex.join(wanted)}")
    return Row(name, "pass", ", ".join(installed))


def _satisfies(version: str, specifiers: str) -> bool:
    """Whether a version is within ``>=1.2,<3``; other specifiers are not judged."""

    def numbers(text: str) -> list[int]:
        match = re.match(r"\d+(\.\d+)*", text)
        parts = [int(part) for part in match[0].split(".")] if match else []
        return (parts + [0] * 4)[:4]

    bounds = re.findall(r"(>=|<)\s*([\d.]+)", specifiers)
    return all((numbers(version) >= numbers(b)) if op == ">=" else (numbers(version) < numbers(b)) for op, b in bounds)


def _judge_mpi(outcome: Outcome) -> tuple[Row, Mpi | None]:
    if isinstance(outcome.value, dict):
        mpi = Mpi(**outcome.value)
        return Row("MPI", "pass", f"{mpi.name} {mpi.version}, {mpi.mpirun}"), mpi
    problem = outcome.value or f"expected mpi4py to load an MPI library, but: {outcome.problem}: {INSTALL}"
    text, _, remedy = problem.rpartition(": ")  # the launcher's messages end with the command to run
    return Row("MPI", "fail", text, f"run {remedy}" if remedy.startswith("pip") else remedy), None


def _judge_threads(outcome: Outcome) -> Row:
    name = "MPI threads"
    if outcome.value is None:
        return Row(
            name,
            "fail",
            f"expected MPI to start in one process, but: {outcome.problem}",
            f"see what python -c 'from mpi4py import MPI' says, or in a new environment {INSTALL}",
        )
    level, needed = outcome.value["level"], outcome.value["multiple"]
    if level == needed:
        return Row(name, "pass", f"{level} is provided")
    asked = [n for n in ("MPI4PY_RC_THREAD_LEVEL", "MPI4PY_RC_THREADS", "OMPI_MPI_THREAD_LEVEL") if n in os.environ]
    remedy = (
        f"run unset {' '.join(asked)}, which asks for less"
        if asked
        else "leave mpi4py.rc alone (grep -r mpi4py.rc in what Python runs when it starts), or use an MPI built with "
        f"threads: {INSTALL}"
    )
    return Row(name, "fail", f"expected {needed}, which the background thread needs, got {level}", remedy)


def judge_mpi4jax(outcome: Outcome, mpi: Mpi | None) -> Row:
    """The row of what the probe "mpi4jax" has found."""
    if outcome.value is not None and outcome.value["equal"]:
        return Row("mpi4jax", "pass", f"{outcome.value['version']}: a compiled message arrives")
    if "No module named 'mpi4jax'" in outcome.problem:
        return Row("mpi4jax", "fail", "expected mpi4jax, which the extra 'mpi' brings, got none", f"run {INSTALL}")
    if "No module named" in outcome.problem:
        return Row("mpi4jax", "fail", f"expected mpi4jax to load, but: {outcome.problem}", f"run {INSTALL}")
    came = outcome.problem or "the message that arrived is not the one that was sent"
    built_for = f" for {mpi.name} {mpi.version}" if mpi else ""
    places = f'PATH="{Path(mpi.mpirun).parent}:$PATH" ' if mpi else ""
    return Row(
        "mpi4jax",
        "fail",
        f"expected mpi4jax to be built{built_for} and this Python, but using it ends with: {came}",
        f"build it again, with this MPI's mpicc: {places}pip install --no-cache-dir --force-reinstall --no-deps "
        "--no-binary mpi4jax mpi4jax",
    )


def _judge_memory(outcome: Outcome) -> Row:
    if outcome.value is not None and outcome.value < REUSED_FAULTS:
        return Row("memory", "pass", "freed buffers are kept and used again")
    users = [name for name in os.environ if name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD")]
    came = outcome.problem or f"a buffer of 128 MiB costs {outcome.value} page faults"
    remedy = (
        f"run unset {' '.join(sorted(users))}, since `wagma launch` lets your own values win"
        if users
        else "use a Python whose memory comes from glibc: ldd --version shows whether this one's does"
    )
    return Row("memory", "warn", f"expected freed buffers to be used again, but {came}: exchanges are slower", remedy)
