"""Joins the processes of one program by ``jax.distributed``, as Slurm, MPI, a TPU pod or the options describe them."""

import importlib.util
import json
import os
import socket
import threading
from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager
from typing import Any

import jax

from train.options import RunOptions
from train.transports import launchers, meeting
from train.transports.group import Group, JaxGroup, attempt, in_a_line
from wagma_jax import announcing, lineage

INITIALIZATION_TIMEOUT = 300
"""Seconds within which all processes must have joined."""
HEARTBEAT_TIMEOUT = 30
"""Seconds after which the others notice that a process has died."""


def join(options: RunOptions) -> Group:
    """Joins the other processes of the run, if there are any. To be called before JAX is used.

    Raises:
        ValueError: The options are incomplete or out of range, or something that is needed is not installed.
    """
    # runs that one step of Slurm starts side by side differ by something that all of their own processes share
    shared = {name: value for name, value in options.to_json().items() if name != "process_id"}
    run = f"{type(options).__module__}.{type(options).__qualname__} {json.dumps(shared)}"
    size = initialize(options.coordinator, options.processes, options.process_id, run)
    return JaxGroup(size) if size > 1 else Group()


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    run: str = "",
    environment: Mapping[str, str] = os.environ,
) -> int:
    """Joins the other processes of the run, if there are any. To be called before JAX is used.

    Args:
        coordinator: "host:port" of process 0; None: found from the environment.
        num_processes: How many processes; with ``coordinator``. 1, without it: this process runs alone.
        process_id: Which of them this is, from 0; with ``coordinator``.
        run: What tells it from others that one step of Slurm starts side by side.
        environment: Where Slurm and MPI describe the processes.

    Returns:
        The number of processes: 1 if nothing in the arguments or the environment says otherwise.

    Raises:
        ValueError: The arguments are incomplete or out of range, or something that is needed is not installed.
    """
    if (coordinator, num_processes, process_id) == (None, 1, None):
        return 1
    if any(value is not None for value in (coordinator, num_processes, process_id)):
        if coordinator is None or num_processes is None or process_id is None:
            raise ValueError(
                "--coordinator, --processes and --process-id belong together, got "
                f"{coordinator}, {num_processes} and {process_id}: give all three, none under Slurm or MPI, or "
                "--processes 1 to run alone"
            )
        _check(coordinator, num_processes, process_id)
        _initialize(coordinator, num_processes, process_id, num_processes, "--coordinator")
        return num_processes
    found = launchers.launched(environment)
    if found is not None:
        if found.method == "mpi4py" and importlib.util.find_spec("mpi4py") is None:
            raise ValueError(
                f"started by MPI as one of {found.processes} processes, but mpi4py, by which they find each other, is "
                "not installed: run make setup or pip install 'wagma_jax[mpi]', or give --coordinator, --processes "
                "and --process-id"
            )
        over = None
        if found.method == "mpi4py":
            address, size, rank, local_rank = _met_by_mpi(environment, found.processes)
        else:
            (address, size, rank, local_rank), over = _met_by_slurm(environment, found.processes, run)
        # With several processes on a host JAX gives each one accelerator.
        devices = None if found.alone_on_host or "JAX_LOCAL_DEVICE_IDS" in environment else [local_rank]
        how = {"mpi4py": "MPI", "slurm": "Slurm"}[found.method]
        _initialize(address, size, rank, size, how, local_device_ids=devices, cluster_detection_method="deactivate")
        if over is not None:
            over.set()
        return size
    if launchers.on_tpu_pod(environment):
        hosts = environment.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1
        _initialize(None, None, None, f"{hosts} or more", "the TPU's environment")
        return jax.process_count()
    return 1


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
    place = meeting.split(coordinator)
    if place is None:
        raise ValueError(
            f"--coordinator must be HOST:PORT of process 0, got {coordinator!r}: IPv6 addresses stand in brackets, as "
            "in [fd00::1]:1234"
        )
    if not 0 <= process_id < num_processes:
        raise ValueError(f"--process-id must be in [0, {num_processes}), got {process_id}")
    host, port = place
    problem = meeting.problem_with(host)
    if problem:
        raise ValueError(
            f"--coordinator names the host {host}, which has no address here ({problem}): pass its address, or a name "
            f"that getent hosts {host} finds"
        )
    if process_id == 0 and meeting.is_taken(port):
        raise ValueError(f"--coordinator names port {port}, which another program has on this host: pass another one")


def _met_by_mpi(environment: Mapping[str, str], size: int) -> tuple[str, int, int, int]:
    """The address of process 0, the number of processes, and this one's rank, in all and on its host."""
    with announced(size, "MPI"):
        from mpi4py import MPI

    world = MPI.COMM_WORLD
    given = _port(environment)  # malformed ones are so on all processes
    on_host = world.Split_type(MPI.COMM_TYPE_SHARED)
    host = "127.0.0.1" if on_host.size == world.size else world.bcast(socket.gethostname())
    where = {rank: text for rank, text in enumerate(world.allgather(meeting.problem_with(host))) if text}
    if where:
        rank, problem = next(iter(where.items()))
        raise ValueError(
            f"process 0 runs on the host {host}, which has no address for process {rank} ({problem}): add it to "
            "/etc/hosts there, or give --coordinator, --processes and --process-id"
        )
    port, error = world.bcast(attempt(lambda: _own_port(given)) if world.rank == 0 else None)
    if error is not None:
        raise error
    return world.bcast(meeting.join(host, port)), world.size, world.rank, on_host.rank


def _met_by_slurm(
    environment: Mapping[str, str], size: int, run: str
) -> tuple[tuple[str, int, int, int], threading.Event | None]:
    """As above; and what process 0 sets once all have met, if it tells others where."""
    step, over = launchers.slurm_step(environment, run), None
    problem = meeting.problem_with(step.host)
    if problem:
        raise ValueError(
            f"process 0 runs on the host {step.host}, as Slurm says, which has no address here ({problem}): give "
            "--coordinator, --processes and --process-id, or run alone with --processes 1"
        )
    given = _port(environment)
    port = _own_port(given) if step.rank == 0 else given
    if given is None:
        try:
            if port is not None:
                over = meeting.lead(step.name, port, INITIALIZATION_TIMEOUT)
            else:
                with announced(size, "Slurm", f"{step.host}, for process 0", INITIALIZATION_TIMEOUT):
                    port = meeting.follow(step.name, step.host, INITIALIZATION_TIMEOUT)
        except OSError as error:
            raise ValueError(
                f"{size} processes, as Slurm says, did not meet: {error}. See that srun starts all of them, or run "
                "alone with --processes 1"
            ) from None
    assert port is not None
    return (meeting.join(step.host, port), size, step.rank, step.local_rank), over


def _port(environment: Mapping[str, str]) -> int | None:
    """The port that the user has chosen for process 0, or None.

    Raises:
        ValueError: It is none.
    """
    port = environment.get("JAX_COORDINATOR_PORT", "")
    if not port:
        return None
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"JAX_COORDINATOR_PORT must be in 1 to 65535, got {port!r}: unset it, and a free one is taken")
    return int(port)


def _own_port(given: int | None) -> int:
    """The port that process 0 takes; ValueError if another program has the one that the user has chosen."""
    if given is None:
        return meeting.free_port()
    if meeting.is_taken(given):
        raise ValueError(
            f"JAX_COORDINATOR_PORT is {given}, which another program has on this host: choose another one, or unset "
            "it, and a free one is taken"
        )
    return given


def announced(size: int | str, who: str, where: str = "", limit: int | None = None) -> AbstractContextManager[None]:
    """Tells the user, once it takes longer than a moment, what is waited for and how to do without.

    Args:
        size: How many processes there are.
        who: Who says so.
        where: They are waited for.
        limit: Seconds after which waiting ends; None: never.
    """
    place = f" at {where}" if where else ""
    time = "" if limit is None else f", for at most {limit} s"
    return announcing.announced(
        f"waiting for all of {size} processes, as {who} says, to come{place}{time}; a process that is to run alone "
        "needs --transport xla --processes 1"
    )


def _initialize(
    address: str | None, size: int | None, rank: int | None, processes: int | str, who: str, **arguments: Any
) -> None:
    """Joins the others; on TPUs, JAX finds address, number and rank by itself."""
    where = "a place that JAX finds" if address is None else address
    if address is not None:
        place = meeting.split(address)
        assert place
        _check_own_name()
        _avoid_proxy(os.environ, place[0])
    try:
        at = where if rank is None else f"{where} (this is process {rank})"
        with announced(processes, who, at, INITIALIZATION_TIMEOUT):
            jax.distributed.initialize(
                address,
                size,
                rank,
                initialization_timeout=INITIALIZATION_TIMEOUT,
                heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
                **arguments,
            )
    except RuntimeError as error:
        raise ValueError(
            f"{processes} processes, as {who} says, did not meet at {where} within {INITIALIZATION_TIMEOUT} s "
            f"({in_a_line(error)}): see that all are started and reach this host, or run alone with --processes 1"
        ) from None
    lineage.mark()


def _check_own_name() -> None:
    """JAX's collectives on CPUs find this host by its name, whatever address the processes have met at."""
    platforms = jax.config.values.get("jax_platforms")
    name = socket.gethostname()
    problem = None if platforms and "cpu" not in platforms else meeting.problem_with(name)
    if problem:
        raise ValueError(
            f"this host is called {name}, which has no address ({problem}), so that processes of one program cannot "
            f"reach it: add it to /etc/hosts (echo 127.0.0.1 {name} >> /etc/hosts, for processes on this host alone)"
        )


def _avoid_proxy(environment: MutableMapping[str, str], host: str) -> None:
    """Processes of a run speak to each other directly, whatever the proxy for the web."""
    if any(name.lower() in ("http_proxy", "https_proxy", "grpc_proxy") for name in environment):
        others = environment.get("no_grpc_proxy") or environment.get("no_proxy") or environment.get("NO_PROXY")
        environment["no_grpc_proxy"] = ",".join(filter(None, (others, host)))
