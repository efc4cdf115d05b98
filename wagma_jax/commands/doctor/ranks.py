"""Starts ``checkup`` on the ranks, under `wagma launch`, and hears what they say."""

import contextlib
import dataclasses
import json
import os
import queue
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from wagma_jax.commands.doctor.probes import gist
from wagma_jax.commands.launch.job import Host

LIMITS = {"start": 45.0, "links": 20.0, "exchange": 20.0, "straggler": 15.0, "end": 10.0}
"""Seconds that the ranks may take for a step; the straggler's own delay is added."""


@dataclasses.dataclass
class Heard:
    """What the ranks have said.

    Attributes:
        ranks: What each says of itself.
        results: The result of each step that was completed.
        step: The current one: "start" before the first, "end" after the last.
        problem: Why ``step`` was not completed; empty if all were.
    """

    ranks: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    results: dict[str, Any] = dataclasses.field(default_factory=dict)
    step: str = "start"
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Ranks:
    """The ranks to start, and how.

    Attributes:
        size: How many.
        hosts: Where; empty means this machine (or what a batch system has allocated).
        interface: The network between the hosts.
        mpirun_args: Further arguments for mpirun.
        straggle_seconds: How late the last rank is, once.
        limits: See ``LIMITS``.
        program: What they run, with the arguments of ``checkup``.
    """

    size: int
    hosts: Sequence[Host] = ()
    interface: str | None = None
    mpirun_args: Sequence[str] = ()
    straggle_seconds: float = 1.0
    limits: Mapping[str, float] = dataclasses.field(default_factory=lambda: LIMITS)
    program: Sequence[str] = (sys.executable, "-m", "wagma_jax.commands.doctor.checkup")

    def where(self) -> list[str]:
        """The words that tell `wagma` where to start them."""
        return ["--hosts", ",".join(map(str, self.hosts))] if self.hosts else ["-n", str(self.size)]

    def try_command(self) -> str:
        """The command that starts something trivial on the same ranks, for the user to look at."""
        return shlex.join(["wagma", "launch", *self.where(), "--", "hostname"])

    def run(self, steps: Sequence[str]) -> Heard:
        """Runs the steps of ``checkup`` that are named, until one fails or takes too long."""
        marker = f"\x01wagma doctor {os.getpid()}"
        heard, lines = Heard(), queue.Queue()
        errors: list[str] = []
        with _started(self._command(steps, marker), lines) as process:
            deadline, opened = time.monotonic() + self._limit("start"), 2
            while opened:
                try:
                    number, line = _next(lines, deadline)
                except queue.Empty:
                    heard.problem = f"it was not over within {self._limit(heard.step):g} s"
                    if heard.step == "start":
                        hosts = ", ".join(sorted({rank["host"] for rank in heard.ranks})) or "no host"
                        heard.problem += f"; {len(heard.ranks)} of {self.size} ranks have started, on {hosts}"
                    return heard
                if line is None:
                    opened -= 1
                elif number == 2:
                    errors.append(line)
                elif line.startswith(marker):
                    said = json.loads(line[len(marker) :])
                    if "failed" in said:
                        heard.step, heard.problem = said["failed"], f"rank {said['rank']}: {said['error']}"
                        return heard
                    if "here" in said:
                        heard.ranks.append(said["here"])
                    elif "begin" in said:
                        heard.step = said["begin"]
                        deadline = time.monotonic() + self._limit(heard.step)
                    elif "end" in said:
                        heard.results[said["end"]] = said["result"]
            status = process.wait()
        if status or heard.step != "end":
            heard.problem = f"exit status {status}: {gist(''.join(errors)) or 'no message'}"
        return heard

    def _command(self, steps: Sequence[str], marker: str) -> list[str]:
        words = [sys.executable, "-m", "wagma_jax", "launch", "--no-prefix", *self.where()]
        if self.interface:
            words += ["--interface", self.interface]
        if self.mpirun_args:
            words.append(f"--mpirun-args={shlex.join(self.mpirun_args)}")
        return [*words, "--", *self.program, "--marker", marker, "--straggle", str(self.straggle_seconds), *steps]

    def _limit(self, step: str) -> float:
        return self.limits[step] + (2 * self.straggle_seconds if step == "straggler" else 0.0)


def _next(lines: queue.Queue, deadline: float) -> Any:
    """The next item. Raises ``queue.Empty`` after the deadline, even if there is one."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise queue.Empty
    return lines.get(timeout=left)


@contextlib.contextmanager
def _started(command: Sequence[str], lines: queue.Queue) -> Iterator[subprocess.Popen]:
    """A launcher whose lines go into the queue, each behind its stream, 1 or 2; None for the end of a stream.

    In the end the launcher is asked twice to end, since `wagma launch` kills its ranks only then.
    """
    process = subprocess.Popen(
        command,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        for number, stream in enumerate((process.stdout, process.stderr), 1):
            threading.Thread(target=_read, args=(number, stream, lines), name="doctor reads", daemon=True).start()
        yield process
    finally:
        for end, seconds in ((process.terminate, 1.0), (process.terminate, 12.0), (process.kill, None)):
            if process.poll() is None:
                end()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)


def _read(number: int, stream: TextIO, lines: queue.Queue):
    with stream:
        for line in stream:
            lines.put((number, line))
    lines.put((number, None))
