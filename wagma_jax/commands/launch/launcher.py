"""Starts a job: checks what it needs, and gathers what its ranks get."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from wagma_jax import lineage
from wagma_jax.commands.launch import files
from wagma_jax.commands.launch.command_line import command_line, hostfile_text, needs_hostfile
from wagma_jax.commands.launch.environment import settings
from wagma_jax.commands.launch.job import Job, LaunchError
from wagma_jax.commands.launch.mpi import find_mpi
from wagma_jax.commands.launch.pipes import MOST_RANKS, Pipes
from wagma_jax.commands.launch.running import Running, tell
from wagma_jax.commands.launch.stdin import Offer, kind
from wagma_jax.commands.launch.variables import Failures, misfits
from wagma_jax.cpus import cores


@contextlib.contextmanager
def _files() -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise LaunchError(
            f"mpirun needs a folder for temporary files, and none can be written ({problem}): set TMPDIR to one"
        ) from None


def run(job: Job, *, root: str = "/") -> int:
    """Runs the job to its end.

    Call it from the main thread of a process that does nothing else: it handles signals, and in the end kills every
    process that has become a child of this one.

    Args:
        job: What to start and where.
        root: The folder in whose ``dev`` and ``proc`` each rank looks for GPUs.

    Returns:
        The exit code: that of the first rank that failed; 128 + signal if one killed it.

    Raises:
        LaunchError: Nothing was started.
    """
    if not job.hosts and shutil.which(job.command[0]) is None:
        path = Path(job.command[0])
        if path.exists() and path.name != job.command[0]:
            raise LaunchError(
                f"cannot run {job.command[0]!r}: it is not an executable file: chmod +x it, or put python before it",
                126,
            )
        raise LaunchError(f"cannot run {job.command[0]!r}: no such command: check its name and the PATH", 127)
    mpi, count = find_mpi(), cores()
    inherited = dict(os.environ)
    lineage.forget(inherited)
    environment = inherited | settings(job, mpi, inherited, count, os.geteuid() == 0)
    for name, reason in misfits(mpi, inherited, job.ranks_per_host).items():
        tell(f"{name} {reason}: unset {name}, unless you have set it for this MPI")
    limit = files.allow(files.needed(job.ranks_per_host))
    if limit is not None:
        tell(
            f"{job.ranks_per_host} ranks on a machine need {files.needed(job.ranks_per_host)} open files, but no more "
            f"than {limit} are allowed: if mpirun fails, ulimit -n {files.needed(job.ranks_per_host)} or fewer ranks"
        )
    # With --hosts all ranks write through mpirun, so that they are treated alike. Without it a batch system may still
    # place ranks on other machines; only those write through mpirun then.
    pipes = None
    if not job.hosts and job.size <= MOST_RANKS and limit is None and os.path.isdir("/proc/self/fd"):
        pipes = Pipes(job.size)
    # Markers of relays elsewhere arrive behind mpirun's tags. Without tags, signals are passed on at once.
    tagged = mpi.is_open_mpi and not any(word.startswith("--output") for word in job.mpirun_args)
    marker = f"\x01wagma relay of {os.getpid()}" if pipes or tagged else "-"
    # Relays answer by their markers. A terminal is read here, and the user may have told mpirun who gets the input.
    offers = marker != "-" and Offer.possible() and not kind().controls
    offer = Offer() if offers and not any(word.lstrip("-").startswith("stdin") for word in job.mpirun_args) else None
    with contextlib.ExitStack() as stack:
        for opened in (pipes, offer):
            if opened:
                stack.callback(opened.close)
        if mpi.is_open_mpi:
            # Killed mpiruns leave folders that are named by their process number. If the number comes again, the next
            # mpirun fails ("listener thread failed to start"), so each gets a place of its own.
            with _files():
                place = tempfile.TemporaryDirectory(prefix="wagma-mpirun-", ignore_cleanup_errors=True)
            environment.setdefault("PRTE_MCA_prte_local_tmpdir_base", stack.enter_context(place))
        hosts = ""
        if mpi.is_open_mpi and needs_hostfile(job):
            with _files():
                file = stack.enter_context(tempfile.NamedTemporaryFile("w", prefix="wagma-hosts-"))
                file.write(hostfile_text(job))
                file.flush()
            hosts = file.name
        words = command_line(
            job,
            mpi,
            environment,
            count,
            marker=marker,
            pipes=pipes.description if pipes else "-",
            stdin=offer.name if offer else "-",
            root=root,
            hostfile=hosts,
        )
        return Running(job, mpi, pipes, offer, marker.encode(), Failures(inherited)).run(words, environment)
