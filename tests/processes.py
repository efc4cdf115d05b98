"""Starting processes that cannot outlive their test."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
STARTUP = ROOT / "tests" / "startup"


def python_path(*folders: object) -> str:
    """A PYTHONPATH of these folders, with which Python begins as tests want it."""
    named = [entry for folder in folders for entry in str(folder).split(os.pathsep) if entry]
    return os.pathsep.join(dict.fromkeys([str(STARTUP), *named]))


def run_all(
    commands: Sequence[Sequence[object]], *, timeout: float, environment: dict[str, str] | None = None
) -> list[tuple[int, str]]:
    """Runs commands at the same time, from the project's folder; (exit status, output) of each.

    Each gets a process group of its own, and what is left of all groups is killed in the end, whatever happens.
    """
    environment = dict(environment or {})
    if "PYTHONPATH" in environment:
        environment["PYTHONPATH"] = python_path(environment["PYTHONPATH"])
    processes = [
        subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for command in commands
    ]
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def run_ranks(
    num_ranks: int, *program: object, timeout: float, environment: dict[str, str] | None = None
) -> tuple[int, str]:
    """Runs a Python program (its path or ``-c`` and text, and its arguments) under `wagma launch`; see ``run_all``."""
    wagma = Path(sys.executable).parent / "wagma"
    command = [wagma, "launch", "-n", num_ranks, "--", sys.executable, *program]
    ours = {"JAX_PLATFORMS": "cpu"}
    (result,) = run_all([command], timeout=timeout, environment=ours | (environment or {}))
    return result


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    # not one that the system gives to connections, nor one of those at which runs meet: they may be taken meanwhile
    for port in itertools.count(12_000 + os.getpid() % 7_000):
        with contextlib.suppress(OSError), socket.socket() as server:
            server.bind(("127.0.0.1", port))
            return port
    raise AssertionError
