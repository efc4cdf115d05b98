"""Small programs that find out what this machine can do, each in a process of its own with a time limit."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

LIMIT_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a program: the facts that it printed, or why there are none."""

    value: Any = None
    problem: str = ""


PROGRAMS = {
    "MPI": """
import dataclasses, json
from wagma_jax.commands.launch import job, mpi
try:
    print(json.dumps(dataclasses.asdict(mpi.find_mpi())))
except job.LaunchError as error:
    print(json.dumps(str(error)))
""",
    "MPI threads": """
import json
from mpi4py import MPI
names = {getattr(MPI, "THREAD_" + n): "MPI_THREAD_" + n for n in ("SINGLE", "FUNNELED", "SERIALIZED", "MULTIPLE")}
print(json.dumps({"level": names[MPI.Query_thread()], "multiple": names[MPI.THREAD_MULTIPLE]}))
""",
    # A message to itself, compiled by XLA: all of mpi4jax's way, without a second process.
    "mpi4jax": """
import json
from mpi4py import MPI
import jax, jax.numpy as jnp, mpi4jax, numpy as np
sent = jnp.arange(1000.0)
came = jax.jit(lambda x: mpi4jax.sendrecv(x, jnp.zeros_like(x), 0, 0, comm=MPI.COMM_SELF))(sent)
print(json.dumps({"equal": bool(np.array_equal(came, sent)), "version": mpi4jax.__version__}))
""",
    # Larger than MALLOC_TOP_PAD_, which glibc keeps in any case.
    "memory": """
import json, resource
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    buffer = b"x" * (128 << 20)
    del buffer
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(json.dumps(max(faults() for _ in range(3))))
""",
}
"""What each prints, as JSON: the MPI's fields or an error; thread levels; whether a message arrived; page faults."""


def probe_all(launcher_settings: Mapping[str, str]) -> dict[str, Outcome]:
    """Runs all programs at the same time.

    Args:
        launcher_settings: Variables that `wagma launch` adds. Only the program for "memory" gets them.

    Returns:
        The outcomes by the names in ``PROGRAMS``.
    """
    extra = {"memory": launcher_settings}
    with ThreadPoolExecutor(len(PROGRAMS)) as pool:
        futures = {name: pool.submit(probe, name, extra.get(name, {})) for name in PROGRAMS}
        return {name: future.result() for name, future in futures.items()}


def probe(name: str, extra: Mapping[str, str] | None = None) -> Outcome:
    """Runs one program, in the user's environment with ``extra`` variables."""
    # Without GPUs: models are exchanged from the CPU's memory, and a probe is not to take a GPU's.
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | dict(extra or {})
    try:
        result = subprocess.run(
            [sys.executable, "-c", PROGRAMS[name]],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Outcome(problem=f"no answer within {LIMIT_SECONDS:.0f} s")
    if result.returncode < 0:
        return Outcome(problem=f"killed by {_signal_name(-result.returncode)}")
    if result.returncode:
        return Outcome(problem=gist(result.stderr) or f"exit status {result.returncode}")
    try:
        return Outcome(json.loads(result.stdout.strip().splitlines()[-1]))
    except (IndexError, ValueError):
        return Outcome(problem=f"no result in {result.stdout[-200:]!r}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def gist(text: str) -> str:
    """The part of what a program wrote to stderr that says why it failed: an exception, or mpirun's first paragraph."""
    exceptions = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt)\b:?.*(?:\n\s+- .*)*", text, re.MULTILINE)
    if exceptions:
        return " ".join(exceptions[-1].split())[:400]
    paragraph = []
    for line in text.splitlines():
        if line.strip("-=* \t"):
            paragraph.append(line.strip())
        elif paragraph:
            break
    return " ".join(paragraph)[:400]
