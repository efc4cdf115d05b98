"""The command that starts a job: mpirun, its options, the relay, and the user's command."""

import os
import shlex
import sys
from collections.abc import Mapping

from wagma_jax.commands.launch import relay
from wagma_jax.commands.launch.environment import exported, settings
from wagma_jax.commands.launch.job import Job
from wagma_jax.commands.launch.mpi import Mpi, find_mpi
from wagma_jax.cpus import cores


def command_line(
    job: Job,
    mpi: Mpi,
    environment: Mapping[str, str],
    num_cores: int,
    *,
    marker: str = "-",
    pipes: str = "-",
    stdin: str = "-",
    root: str = "/",
    hostfile: str = "",
) -> list[str]:
    """The command that starts the job.

    Args:
        job: What to start.
        mpi: Under which launcher.
        environment: The variables that the launcher will see, including those of ``settings``.
        num_cores: Cores of a host.
        marker: The line that a relay writes to stdout once no signal to it can get lost; ``-`` for none.
        pipes: The description of the pipes for relays on this machine; ``-`` if there are none.
        stdin: The name of the offer of standard input to rank 0; ``-`` if there is none.
        root: Where relays look for GPUs.
        hostfile: The file with ``hostfile_text``, for jobs that need one.
    """
    options = _open_mpi(job, environment, num_cores, hostfile) if mpi.is_open_mpi else _hydra(job)
    # mpirun rejects repeated options, and the user's count. Only these may be repeated.
    repeatable = {"mca", "prtemca", "x"}
    given = {word.split("=")[0].lstrip("-") for word in job.mpirun_args if word.startswith("-")} - repeatable
    ours = [word for option in options if option[0].lstrip("-") not in given for word in option]
    # -I and -S: the user's Python settings are for the command; the relay is to start fast whatever they are.
    relaying = [sys.executable, "-I", "-S", os.path.abspath(relay.__file__), marker, pipes, stdin, root]
    return [mpi.mpirun, "-n", str(job.size), *ours, *job.mpirun_args, *relaying, *job.command]


def _open_mpi(job: Job, environment: Mapping[str, str], num_cores: int, hostfile: str) -> list[tuple[str, ...]]:
    """Each option with its values."""
    options: list[tuple[str, ...]] = []
    crowded = job.ranks_per_host > num_cores
    # By slot: each host takes its slots, and neighbouring ranks share a host.
    mapping = "slot" if job.hosts else ""
    if needs_hostfile(job):
        options.append(("--hostfile", hostfile))
    elif job.hosts:
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


def needs_hostfile(job: Job) -> bool:
    """Whether mpirun cannot be told the hosts in an argument: Open MPI takes no IPv6 addresses there."""
    return any(":" in host.name for host in job.hosts)


def hostfile_text(job: Job) -> str:
    """The hosts as Open MPI reads them from a file."""
    return "".join(f"{host.name} slots={host.slots}\n" for host in job.hosts)


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
    first = []
    if mpi.is_open_mpi and needs_hostfile(job):
        first = [f"printf %s {shlex.quote(hostfile_text(job))} > wagma-hosts &&"]
    words = command_line(job, mpi, os.environ | added, count, hostfile="wagma-hosts")
    variables = [f"{name}={shlex.quote(value)}" for name, value in added.items()]
    return " \\\n".join([*first, *variables, shlex.join(words)])
