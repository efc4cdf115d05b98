"""The command that starts a job: mpirun, its options, the relay, and the user's command."""

import os
import shlex
import sys
from collections.abc import Mapping

from wagma_jax.commands.launch import relay
from wagma_jax.commands.launch.environment import cores, exported, settings
from wagma_jax.commands.launch.job import Job
from wagma_jax.commands.launch.mpi import Mpi, find_mpi


def command_line(
    job: Job,
    mpi: Mpi,
    environment: Mapping[str, str],
    num_cores: int,
    *,
    marker: str = "-",
    pipes: str = "-",
    root: str = "/",
) -> list[str]:
    """The command that starts the job.

    Args:
        job: What to start.
        mpi: Under which launcher.
        environment: The variables that the launcher will see, including those of ``settings``.
        num_cores: Cores of a host.
        marker: The line that a relay writes to stdout once no signal to it can get lost; ``-`` for none.
        pipes: The description of the pipes for relays on this machine; ``-`` if there are none.
        root: Where relays look for GPUs.
    """
    options = _open_mpi(job, environment, num_cores) if mpi.is_open_mpi else _hydra(job)
    # mpirun rejects repeated options, and the user's count. Only these may be repeated.
    repeatable = {"mca", "prtemca", "x"}
    given = {word.split("=")[0].lstrip("-") for word in job.mpirun_args if word.startswith("-")} - repeatable
    ours = [word for option in options if option[0].lstrip("-") not in given for word in option]
    # -I and -S: the user's Python settings are for the command; the relay is to start fast whatever they are.
    relaying = [sys.executable, "-I", "-S", os.path.abspath(relay.__file__), marker, pipes, root]
    return [mpi.mpirun, "-n", str(job.size), *ours, *job.mpirun_args, *relaying, *job.command]


def _open_mpi(job: Job, environment: Mapping[str, str], num_cores: int) -> list[tuple[str, ...]]:
    """Each option with its values."""
    options: list[tuple[str, ...]] = []
    crowded = job.ranks_per_host > num_cores
    # By slot: each host takes its slots, and neighbouring ranks share a host.
    mapping = "slot" if job.hosts else ""
    if job.hosts:
        options.append(("--host", ",".join(map(str, job.hosts))))
    if mapping or crowded:
        options.append(("--map-by", mapping + (":OVERSUBSCRIBE" if crowded else "")))
    options.append(("--bind-to", "none"))
    if crowded:  # without it, ranks that wait starve those that compute
        options.append(("--mca", "mpi_yield_when_idle", "1"))
    if job.interface:
        options.append(("--prtemca", "prte_if_include", job.interface))
        options.append(("--mca", "btl_tcp_if_include", job.interface))
    # The full name contains mpirun's process id, so that no program's output is mistaken for a tag.
    options.append(("--output", "tag-fullname"))
    if job.hosts:
        options += [("-x", name) for name in exported(environment)]
    return options


def _hydra(job: Job) -> list[tuple[str, ...]]:
    """As above. Hydra passes on the whole environment, and binds nothing."""
    options: list[tuple[str, ...]] = []
    if job.hosts:
        options.append(("-hosts", ",".join(map(str, job.hosts))))
    if job.interface:
        options.append(("-iface", job.interface))
    if job.prefix:
        options.append(("-prepend-rank",))
    return options


def describe(job: Job) -> str:
    """What would be started, as text for a shell: one variable a line, then the command.

    Raises:
        LaunchError: There is no MPI to start it with.
    """
    mpi, count = find_mpi(), cores()
    added = settings(job, mpi, os.environ, count, os.geteuid() == 0)
    words = command_line(job, mpi, os.environ | added, count)
    return " \\\n".join([*(f"{name}={shlex.quote(value)}" for name, value in added.items()), shlex.join(words)])
