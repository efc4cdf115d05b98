"""Checks an installation: what `wagma doctor` looks at, what it makes of it, and the table that says so.

Whatever may crash, hang or not even load (the MPI library, mpi4jax's compiled part) runs in processes of its own with a
time limit: small programs first, then ``wagma_jax.exchange.checkup`` on every rank under `wagma launch`. Those return
facts; what counts as a failure, and what to do about it, is decided here. Nothing here imports JAX or MPI.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TextIO

from wagma_jax import launch

PROBE_SECONDS = 30.0
LIMITS = {"start": 45.0, "links": 20.0, "exchange": 20.0, "straggler": 15.0, "end": 10.0}
"""Seconds that the ranks may take for a step; the straggler's own delay comes on top."""

GIGABIT = 0.1e9  # bytes a second that a network of 1 Gbit/s delivers at least
LOCAL_BANDWIDTH = 0.5e9
LOCAL_LATENCY, NETWORK_LATENCY = 2e-4, 2e-3  # seconds
REUSED_FAULTS = 8  # page faults that a buffer in memory which glibc has kept may still cause; a fresh one has thousands

State = Literal["pass", "warn", "fail", "skip"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: What was checked.
        state: "fail" makes the exit code 1, "warn" does not; "skip" could not be checked, since another check failed.
        text: What was found; for failures and warnings also what was expected.
        remedy: What to do about it, naming a command.
    """

    name: str
    state: State
    text: str
    remedy: str = ""

    def __post_init__(self):
        assert bool(self.remedy) == (self.state in ("warn", "fail")), self


def run(
    num_ranks: int | None = None,
    hosts: Sequence[launch.Host] = (),
    interface: str | None = None,
    mpirun_args: Sequence[str] = (),
    straggle_seconds: float = 1.0,
    *,
    file: TextIO | None = None,
    limits: Mapping[str, float] = LIMITS,
) -> int:
    """Checks the installation and prints a table, a line as soon as it is known.

    Args:
        num_ranks: Ranks to start; None: all slots of ``hosts``, or 4.
        hosts: Where; empty means this machine (or what a batch system has allocated).
        interface: The network between the hosts, as for ``wagma launch``.
        mpirun_args: Further arguments for mpirun.
        straggle_seconds: For how long the last rank is late once.
        file: Where to; stdout if left out.
        limits: See ``LIMITS``.

    Returns:
        The exit code: 0 if nothing failed (warnings do not count), else 1.

    Raises:
        ValueError: An argument is out of range.
    """
    slots = sum(host.slots for host in hosts)
    size = num_ranks if num_ranks is not None else slots if hosts else 4
    if size < 2:
        raise ValueError(f"expected at least 2 ranks, which can exchange something, got {size}: pass for example -n 2")
    if not 0.2 <= straggle_seconds <= 20:
        raise ValueError(f"--straggle must be between 0.2 and 20 seconds, got {straggle_seconds:g}: pass for example 1")
    checkup = _Checkup(size, hosts, interface, mpirun_args, straggle_seconds, limits)
    show, rows = _printer(file or sys.stdout), []
    for row in _check(checkup, slots if hosts else size):
        rows.append(row)
        show(row)
    count = {state: sum(row.state == state for row in rows) for state in ("pass", "warn", "fail", "skip")}
    print(
        f"\n{count['pass']} passed, {count['warn']} warned, {count['fail']} failed, {count['skip']} skipped",
        file=file or sys.stdout,
        flush=True,
    )
    return int(count["fail"] > 0)


def _check(checkup: "_Checkup", slots: int) -> Iterator[Row]:
    """All rows, in order; what needs no MPI comes first, and what cannot work any more is skipped."""
    yield versions()
    names = ("MPI", "MPI threads", "mpi4jax", "memory")
    with ThreadPoolExecutor(len(names)) as pool:
        programs = {name: _PROGRAMS[name] for name in names}
        futures = {name: pool.submit(_probe, code, _environment(checkup, name)) for name, code in programs.items()}
        found, threads, mpi4jax, memory = (futures[name].result() for name in names)
    mpi_row, mpi = _judge_mpi(found)
    yield mpi_row
    loads = mpi is not None or threads.value is not None
    yield _judge_threads(threads) if loads else Row("MPI threads", "skip", "needs MPI")
    yield _judge_mpi4jax(mpi4jax, mpi) if loads else Row("mpi4jax", "skip", "needs MPI")
    yield _judge_memory(memory)
    enough = True
    if checkup.size != slots:
        enough = False
        hosts = ",".join(f"{host.name}:{host.slots}" for host in checkup.hosts)
        yield Row(
            "slots",
            "fail",
            f"expected --hosts to have as many slots as there are ranks, {checkup.size}, but {hosts} has {slots}",
            f"leave -n out, or change the slots: wagma doctor --hosts {hosts}",
        )
    missing = [
        name
        for name, works in {"MPI": mpi, "slots": enough, "mpi4jax": mpi4jax.value, "MPI threads": threads.value}.items()
        if not works
    ]
    has_threads = bool(threads.value) and threads.value["level"] == threads.value["multiple"]
    yield from _judge_ranks(checkup, missing[0] if missing else None, has_threads)


# --- Checks of this process ---


def versions() -> Row:
    """Whether what is installed is what this package was made for."""
    name = "versions"
    try:
        own = importlib.metadata.version("wagma_jax")
        requirements = importlib.metadata.requires("wagma_jax") or []
    except importlib.metadata.PackageNotFoundError:
        return Row(
            name, "warn", "expected wagma_jax to be installed, but it is only on Python's path", f"run {launch.INSTALL}"
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
            continue  # whether MPI is there, and from where, other rows say
        installed.append(f"{match[1]} {version}")
        if not _satisfies(version, match[2]):
            unfit.append(f"{match[1]}{match[2].strip()}, got {version}")
            wanted.append(specification.strip())
    if unfit:
        return Row(name, "fail", f"expected {'; '.join(unfit)}", f"run pip install {shlex.join(wanted)}")
    return Row(name, "pass", ", ".join(installed))


def _satisfies(version: str, specifiers: str) -> bool:
    """Whether a version is within ``>=1.2,<3``; what is written otherwise is not judged."""

    def numbers(text: str) -> list[int]:
        match = re.match(r"\d+(\.\d+)*", text)
        parts = [int(part) for part in match[0].split(".")] if match else []
        return (parts + [0] * 4)[:4]

    bounds = re.findall(r"(>=|<)\s*([\d.]+)", specifiers)
    return all((numbers(version) >= numbers(b)) if op == ">=" else (numbers(version) < numbers(b)) for op, b in bounds)


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What came of a program: the facts that it printed, or why there are none."""

    value: Any = None
    problem: str = ""


_PROGRAMS = {
    "MPI": """
import dataclasses, json
from wagma_jax import launch
try:
    print(json.dumps(dataclasses.asdict(launch.find_mpi())))
except launch.LaunchError as error:
    print(json.dumps(str(error)))
""",
    "MPI threads": """
import json
from mpi4py import MPI
names = {getattr(MPI, "THREAD_" + n): "MPI_THREAD_" + n for n in ("SINGLE", "FUNNELED", "SERIALIZED", "MULTIPLE")}
print(json.dumps({"level": names[MPI.Query_thread()], "multiple": names[MPI.THREAD_MULTIPLE]}))
""",
    # A message to itself, compiled by XLA: the whole way through mpi4jax, without a second process.
    "mpi4jax": """
import json
from mpi4py import MPI
import jax, jax.numpy as jnp, mpi4jax, numpy as np
sent = jnp.arange(1000.0)
came = jax.jit(lambda x: mpi4jax.sendrecv(x, jnp.zeros_like(x), 0, 0, comm=MPI.COMM_SELF))(sent)
print(json.dumps({"equal": bool(np.array_equal(came, sent)), "version": mpi4jax.__version__}))
""",
    # More than MALLOC_TOP_PAD_, which glibc has at hand in any case.
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


def _environment(checkup: "_Checkup", name: str) -> dict[str, str]:
    """What a program sees: the memory settings are the launcher's, everything else the user's own."""
    # GPUs have no part in it: models are exchanged from the CPU's memory, and every rank would take a GPU's whole one.
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    if name == "memory":
        environment |= launch.settings(checkup.job(["true"]), launch.Mpi("", "", ""), os.environ, launch.cores(), False)
    return environment


def _probe(code: str, environment: Mapping[str, str]) -> _Outcome:
    """Runs a small program in a process of its own; its last line is its result, as JSON."""
    try:
        result = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _Outcome(problem=f"no answer within {PROBE_SECONDS:.0f} s")
    if result.returncode < 0:
        return _Outcome(problem=f"killed by {_signal_name(-result.returncode)}")
    if result.returncode:
        return _Outcome(problem=_gist(result.stderr) or f"exit status {result.returncode}")
    try:
        return _Outcome(json.loads(result.stdout.strip().splitlines()[-1]))
    except (IndexError, ValueError):
        return _Outcome(problem=f"no result in {result.stdout[-200:]!r}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _gist(text: str) -> str:
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


def _judge_mpi(outcome: _Outcome) -> tuple[Row, launch.Mpi | None]:
    if isinstance(outcome.value, dict):
        mpi = launch.Mpi(**outcome.value)
        return Row("MPI", "pass", f"{mpi.name} {mpi.version}, {mpi.mpirun}"), mpi
    problem = outcome.value or f"expected mpi4py to load an MPI library, but: {outcome.problem}: {launch.INSTALL}"
    text, _, remedy = problem.rpartition(": ")  # the launcher's messages end with the command to run
    return Row("MPI", "fail", text, f"run {remedy}" if remedy.startswith("pip") else remedy), None


def _judge_threads(outcome: _Outcome) -> Row:
    name = "MPI threads"
    if outcome.value is None:
        return Row(
            name,
            "fail",
            f"expected MPI to start in one process, but: {outcome.problem}",
            f"see what python -c 'from mpi4py import MPI' says, or in a new environment {launch.INSTALL}",
        )
    level, needed = outcome.value["level"], outcome.value["multiple"]
    if level == needed:
        return Row(name, "pass", f"{level} is provided")
    asked = [n for n in ("MPI4PY_RC_THREAD_LEVEL", "MPI4PY_RC_THREADS", "OMPI_MPI_THREAD_LEVEL") if n in os.environ]
    remedy = (
        f"run unset {' '.join(asked)}, which asks for less"
        if asked
        else "leave mpi4py.rc alone (grep -r mpi4py.rc in what Python runs at its start), or use an MPI built with "
        f"threads: {launch.INSTALL}"
    )
    return Row(name, "fail", f"expected {needed}, which the background thread needs, got {level}", remedy)


def _judge_mpi4jax(outcome: _Outcome, mpi: launch.Mpi | None) -> Row:
    if outcome.value is not None and outcome.value["equal"]:
        return Row("mpi4jax", "pass", f"{outcome.value['version']}: a compiled message arrives")
    if "No module named 'mpi4jax'" in outcome.problem:
        return Row(
            "mpi4jax", "fail", "expected mpi4jax, which the extra 'mpi' brings, got none", f"run {launch.INSTALL}"
        )
    if "No module named" in outcome.problem:
        return Row("mpi4jax", "fail", f"expected mpi4jax to load, but: {outcome.problem}", f"run {launch.INSTALL}")
    came = outcome.problem or "another message came than was sent"
    built_for = f" for {mpi.name} {mpi.version}" if mpi else ""
    places = f'PATH="{Path(mpi.mpirun).parent}:$PATH" ' if mpi else ""
    return Row(
        "mpi4jax",
        "fail",
        f"expected mpi4jax to be built{built_for} and this Python, but using it ends with: {came}",
        f"build it again, with this MPI's mpicc: {places}pip install --no-cache-dir --force-reinstall --no-deps "
        "--no-binary mpi4jax mpi4jax",
    )


def _judge_memory(outcome: _Outcome) -> Row:
    if outcome.value is not None and outcome.value < REUSED_FAULTS:
        return Row("memory", "pass", "freed buffers are kept and used again")
    users = [name for name in os.environ if name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD")]
    came = outcome.problem or f"a buffer of 128 MiB costs {outcome.value} page faults"
    remedy = (
        f"run unset {' '.join(sorted(users))}, since `wagma launch` lets your own values win"
        if users
        else "use a Python whose memory comes from glibc, which ldd --version tells"
    )
    return Row("memory", "warn", f"expected freed buffers to be used again, but {came}: exchanges get slower", remedy)


# --- Checks between ranks ---

_FREE_CORES = (
    "free the cores that other programs use (top shows them), and try no more ranks than cores: wagma doctor -n 2"
)


@dataclasses.dataclass(frozen=True)
class _Checkup:
    """Starts ``wagma_jax.exchange.checkup`` on the ranks, and hears what they say."""

    size: int
    hosts: Sequence[launch.Host]
    interface: str | None
    mpirun_args: Sequence[str]
    straggle_seconds: float
    limits: Mapping[str, float]

    def job(self, command: Sequence[str]) -> launch.Job:
        return launch.Job(tuple(command), None if self.hosts else self.size, tuple(self.hosts))

    def command(self, steps: Sequence[str], marker: str) -> list[str]:
        words = [sys.executable, "-m", "wagma_jax.cli", "launch", "--no-prefix"]
        if self.hosts:
            words += ["--hosts", ",".join(f"{host.name}:{host.slots}" for host in self.hosts)]
        else:
            words += ["-n", str(self.size)]
        if self.interface:
            words += ["--interface", self.interface]
        if self.mpirun_args:
            words.append(f"--mpirun-args={shlex.join(self.mpirun_args)}")
        program = [sys.executable, "-m", "wagma_jax.exchange.checkup"]
        return [*words, "--", *program, "--marker", marker, "--straggle", str(self.straggle_seconds), *steps]

    def run(self, steps: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, Any], tuple[str, str] | None]:
        """Runs the steps.

        Returns:
            What each rank says of itself, the result of each step that came to its end, and (the step that did not,
            why) if there is one: "start" before the first, "end" after the last.
        """
        marker = f"\x01wagma doctor {os.getpid()}"
        ranks, results, step = [], {}, "start"
        lines: queue.Queue[tuple[int, str | None]] = queue.Queue()
        errors: list[str] = []
        with _ended(
            subprocess.Popen(
                self.command(steps, marker),
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
        ) as process:
            for number, stream in enumerate((process.stdout, process.stderr), 1):
                reader = threading.Thread(target=_read, args=(number, stream, lines), name="doctor reads", daemon=True)
                reader.start()
            deadline, opened = time.monotonic() + self._limit(step), 2
            while opened:
                try:
                    number, line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    hosts = sorted({rank["host"] for rank in ranks})
                    came = f"; {len(ranks)} of {self.size} ranks have started, on {', '.join(hosts) or 'no host'}"
                    limit = f"it was not over within {self._limit(step):g} s"
                    return ranks, results, (step, limit + (came if step == "start" else ""))
                if line is None:
                    opened -= 1
                elif number == 2:
                    errors.append(line)
                elif line.startswith(marker):
                    said = json.loads(line[len(marker) :])
                    if "failed" in said:
                        return ranks, results, (said["failed"], f"rank {said['rank']}: {said['error']}")
                    if "here" in said:
                        ranks.append(said["here"])
                    elif "begin" in said:
                        step = said["begin"]
                        deadline = time.monotonic() + self._limit(step)
                    elif "end" in said:
                        results[said["end"]] = said["result"]
            status = process.wait()
        if status or step != "end":
            came = "".join(errors)
            return ranks, results, (step, f"exit status {status}: {_gist(came) or 'no message'}")
        return ranks, results, None

    def _limit(self, step: str) -> float:
        return self.limits[step] + (2 * self.straggle_seconds if step == "straggler" else 0.0)


def _read(number: int, stream: TextIO, lines: "queue.Queue[tuple[int, str | None]]"):
    with stream:
        for line in stream:
            lines.put((number, line))
    lines.put((number, None))


@contextlib.contextmanager
def _ended(process: subprocess.Popen) -> Iterator[subprocess.Popen]:
    """Ends a launcher and its ranks: asked twice, as `wagma launch` wants it, which kills and collects them then."""
    try:
        yield process
    finally:
        for end, seconds in ((process.terminate, 1.0), (process.terminate, 12.0), (process.kill, None)):
            if process.poll() is None:
                end()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)


def _judge_ranks(checkup: _Checkup, missing: str | None, has_threads: bool) -> Iterator[Row]:
    """The rows of what happens between ranks; ``missing`` is what they need and do not have."""
    names = {"ranks": "", "cores": "", "links": "links", "exchange": "exchange", "sync": "", "straggler": "straggler"}
    if missing:
        yield from (Row(name, "skip", f"needs {missing}") for name in names)
        return
    steps = ["links", "exchange", "straggler"] if has_threads else ["links"]
    ranks, results, problems = [], {}, {}
    left = steps
    while left:  # what comes after a step that crashes or hangs is run anew
        heard, more, problem = checkup.run(left)
        ranks = ranks or heard
        results |= more
        if problem:
            problems[problem[0]] = problem[1]
        if not problem or problem[0] in ("start", "end"):
            break
        left = left[left.index(problem[0]) + 1 :]
    yield _judge_start(checkup, ranks, problems.get("start"))
    if len(ranks) == checkup.size:
        yield _judge_cores(ranks)
    else:
        yield Row("cores", "skip", "needs ranks")
    judges: dict[str, Callable[[Any], Sequence[Row]]] = {
        "links": lambda result: [judge_links(result)],
        "exchange": lambda result: judge_exchange(result),
        "straggler": lambda result: [judge_straggler(result)],
    }
    for name, judge in judges.items():
        both = ("exchange", "sync") if name == "exchange" else (name,)
        if name in results:
            yield from judge(results[name])
        elif name in problems:
            yield _step_failed(name, problems[name])
            yield from (Row(other, "skip", f"needs {name}") for other in both[1:])
        else:
            needed = "MPI threads" if name not in steps else "ranks"
            yield from (Row(other, "skip", f"needs {needed}") for other in both)
    if "end" in problems:
        yield Row(
            "end",
            "fail",
            f"expected all ranks to end once they were done, but: {problems['end']}",
            f"see what {_again(checkup)} says",
        )


def _again(checkup: _Checkup, *words: str) -> str:
    """The command that starts something trivial on the same ranks, for the user to look at."""
    hosts = ",".join(f"{host.name}:{host.slots}" for host in checkup.hosts)
    where = ["--hosts", hosts] if hosts else ["-n", str(checkup.size)]
    return shlex.join(["wagma", "launch", *where, "--", *(words or ("hostname",))])


def _step_failed(name: str, problem: str) -> Row:
    return Row(
        name,
        "fail",
        f"expected the step to come to its end, but: {problem}",
        "if hosts have several networks, name the one between them, as in wagma doctor --interface 10.0.0.0/24; else "
        "try fewer ranks, wagma doctor -n 2",
    )


# What mpirun or ssh says -> what to do about it.
_START_REMEDIES = {
    r"not enough slots": "ask for as many ranks as mpirun has slots (-n), or name machines with enough of them: wagma "
    "doctor --hosts NAME:SLOTS (a hostfile or a batch job's allocation sets them otherwise)",
    r"daemon|ssh|[Hh]ost ?name|[Hh]ost key|Permission denied|unreachable": "see that ssh HOST true works for every "
    "host without a password, and that the environment is at the same path there",
    r"cannot run|No such file|No module named": "install the same environment at the same path on every host; see "
    "what wagma launch --hosts NAME:SLOTS -- python -c 'import wagma_jax.exchange' says",
}


def _judge_start(checkup: _Checkup, ranks: Sequence[Mapping[str, Any]], problem: str | None) -> Row:
    if problem:
        remedies = [remedy for pattern, remedy in _START_REMEDIES.items() if re.search(pattern, problem)]
        if "was not over" in problem:
            remedies = [
                f"see whether {_again(checkup)} ends; if it does, name the network between the hosts, as in wagma "
                "doctor --interface 10.0.0.0/24"
            ]
        return Row(
            "ranks",
            "fail",
            f"expected {checkup.size} ranks to start and to reach each other, but: {problem}",
            remedies[0] if remedies else f"see what {_again(checkup)} says",
        )
    sizes = {rank["size"] for rank in ranks}
    if len(ranks) != checkup.size or sizes != {checkup.size}:
        return Row(
            "ranks",
            "fail",
            f"expected one world of {checkup.size} ranks, got {len(ranks)} in worlds of {sorted(sizes)}",
            f"use one MPI on all hosts: {launch.INSTALL}",
        )
    for rank in ranks:
        for name, version in ranks[0]["versions"].items():
            if rank["versions"].get(name) != version:
                return Row(
                    "ranks",
                    "fail",
                    f"expected the same versions everywhere, but {name} is {version} on {ranks[0]['host']} and "
                    f"{rank['versions'].get(name)} on {rank['host']}",
                    f"install the same there: pip install {name}=={version}",
                )
    hosts = sorted({rank["host"] for rank in ranks})
    levels = {rank["host"]: rank["thread_level"] for rank in ranks}
    if len(set(levels.values())) > 1:
        least = min(levels, key=lambda host: levels[host])
        return Row(
            "ranks",
            "fail",
            f"expected the same thread support everywhere, but MPI on {least} provides less",
            f"see what wagma doctor says on {least}: ssh {least} wagma doctor -n 2",
        )
    return Row("ranks", "pass", f"{checkup.size} on {', '.join(hosts)}, with the same versions")


def _judge_cores(ranks: Sequence[Mapping[str, Any]]) -> Row:
    of_host = {rank["host"]: sum(other["host"] == rank["host"] for other in ranks) for rank in ranks}
    fewest = min(rank["threads"] for rank in ranks)
    if fewest < 2:
        return Row(
            "cores",
            "warn",
            f"expected XLA to have at least 2 threads in each rank, got {fewest}: a step that computes holds up the "
            "exchange",
            "run unset NPROC, or export NPROC=2",
        )
    crowded = [rank["host"] for rank in ranks if of_host[rank["host"]] > rank["cores"]]
    note = f"; more ranks than cores on {crowded[0]}, which the figures below suffer from" if crowded else ""
    cores = min(rank["cores"] for rank in ranks)
    return Row("cores", "pass", f"{cores} on each host, {fewest} XLA threads in each rank{note}")


def judge_links(result: Mapping[str, Any]) -> Row:
    """The row of what ``checkup.links`` has found."""
    slow = []
    for link in result["links"]:
        local = link["hosts"][0] == link["hosts"][1]
        low = link["bytes_per_second"] < (LOCAL_BANDWIDTH if local else GIGABIT)
        if low or link["latency_seconds"] > (LOCAL_LATENCY if local else NETWORK_LATENCY):
            slow.append(link)
    if not slow:
        longest = max(link["latency_seconds"] for link in result["links"])
        least = min(link["bytes_per_second"] for link in result["links"])
        return Row(
            "links", "pass", f"at most {_microseconds(longest)}, at least {_rate(least)} between neighbouring ranks"
        )
    link = min(slow, key=lambda link: link["bytes_per_second"])
    first, second = (f"{rank} ({host})" for rank, host in zip(link["ranks"], link["hosts"], strict=True))
    local = link["hosts"][0] == link["hosts"][1]
    return Row(
        "links",
        "warn",
        f"expected at most {_microseconds(LOCAL_LATENCY if local else NETWORK_LATENCY)} and at least "
        f"{_rate(LOCAL_BANDWIDTH if local else GIGABIT)}, got {_microseconds(link['latency_seconds'])} and "
        f"{_rate(link['bytes_per_second'])} between ranks {first} and {second}",
        _FREE_CORES
        if local
        else "name the fastest network between the hosts, as in wagma doctor --interface 10.0.0.0/24",
    )


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs"


def _rate(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e9:.2g} GB/s"


def judge_exchange(result: Mapping[str, Any]) -> tuple[Row, Row]:
    """The rows of what ``checkup.exchange`` has found: of the models, and of the sync rounds."""
    report = "report this with the output of wagma doctor, and see whether wagma doctor --mpirun-args='--mca pml ob1' "
    report += "gives the same"
    bad = [*(f"torn at {text}" for text in result["torn"]), *result["wrong"]]
    models = (
        Row(
            "exchange",
            "fail",
            f"expected {result['models']} whole and exact averages, but {len(bad)} were not: {bad[0]}",
            report,
        )
        if bad
        else Row(
            "exchange",
            "pass",
            f"{result['models']} models, {result['late']} of them late: none torn, {result['known']} checked exactly",
        )
    )
    differing = result["differing"]
    sync = (
        Row("sync", "fail", f"expected models equal bit for bit, but they differ after {', '.join(differing)}", report)
        if differing
        else Row("sync", "pass", f"bit-equal on all ranks after each of {result['syncs']} global means")
    )
    return models, sync


def judge_straggler(result: Mapping[str, Any]) -> Row:
    """The row of what ``checkup.straggler`` has found."""
    seconds, longest, median = (result[f"{name}_seconds"] for name in ("straggle", "longest", "median"))
    waits = f"longest wait {longest * 1e3:.0f} ms, median {median * 1e3:.1f} ms"
    if longest < seconds / 2 and result["met"]:
        return Row("straggler", "pass", f"one rank {seconds:g} s late; the others' {waits}")
    return Row(
        "straggler",
        "fail",
        f"expected nobody to wait {seconds / 2:g} s for a rank that is {seconds:g} s late, got {waits}, and "
        f"{result['met']} averages with what that rank had published before",
        _FREE_CORES,
    )


# --- The table ---

_NAME_WIDTH = 13
_STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


def _printer(file: TextIO) -> Callable[[Row], None]:
    """What prints a row: in colour on a terminal if rich is there, else as plain columns."""
    if file.isatty():
        try:
            from rich.console import Console  # of the extra 'train', so it may be missing
        except ImportError:
            pass
        else:
            return functools.partial(_print_rich, Console(file=file, highlight=False))
    # Whoever reads a pipe wants whole lines: only a terminal's are folded.
    width = shutil.get_terminal_size().columns if file.isatty() else 0
    return functools.partial(_print_plain, file, width)


def _print_plain(file: TextIO, width: int, row: Row):
    indent = " " * (6 + _NAME_WIDTH)
    for i, text in enumerate((row.text, f"-> {row.remedy}" if row.remedy else "")):
        if text:
            lines = textwrap.wrap(text, max(30, width - len(indent)), break_on_hyphens=False) if width else [text]
            first = f"{row.state:<6}{row.name:<{_NAME_WIDTH}}" if i == 0 else indent
            print(first + f"\n{indent}".join(lines), file=file, flush=True)


def _print_rich(console: Any, row: Row):
    from rich.table import Table
    from rich.text import Text

    table = Table.grid()
    table.add_column(width=6)
    table.add_column(width=_NAME_WIDTH)
    table.add_column()
    table.add_row(Text(row.state, _STYLES[row.state]), row.name, Text(row.text))
    if row.remedy:
        table.add_row("", "", Text(f"-> {row.remedy}", "bold"))
    console.print(table)
