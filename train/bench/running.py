"""Runs the cases of a plan one after the other; finished ones are not run again."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from train import console, results, starting
from train.bench.cases import Case, parsed
from train.bench.network import NoNetworkError, two_hosts
from train.files import write_whole
from train.options import OPTIONS_FILE
from train.resume import CHECKPOINTS
from train.summary import SUMMARY

TOOK = "bench.json"
_LOG = ".log"
_END_SECONDS = 20.0  # for a run to end after it was asked to
_LAST_LINES = 6  # of a failed run's output that are shown


class Stopped(NamedTuple):
    """A case that came to no result.

    Attributes:
        case: Which.
        reason: Why, for people.
        failed: Whether something went wrong; False: this machine cannot run it.
    """

    case: Case
    reason: str
    failed: bool


def is_finished(case: Case, out: Path) -> bool:
    """Whether the case has been run to its end, and has ended well."""
    return (case.folder(out) / TOOK).exists()


def outcome(case: Case, out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Summary and rows of a finished case."""
    return results.results(case.folder(out))


def took(case: Case, out: Path) -> float | None:
    """Seconds from the start to the end of the processes of a finished case, if they are known."""
    return json.loads((case.folder(out) / TOOK).read_text())["seconds"] if is_finished(case, out) else None


_locks: list[int] = []  # descriptors that runs hold as well, so that none outlives its bench unnoticed


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Makes a folder, and keeps it from other benches, until this one and the run that it has started have ended.

    Raises:
        ValueError: Another one is running in it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another bench is running in {out}, or a run that it has left behind: wait for its end, or choose "
                "another --out"
            ) from None
        _locks.append(lock.fileno())
        try:
            yield
        finally:
            _locks.remove(lock.fileno())


def run_all(
    cases: Sequence[Case], out: Path, limit_seconds: float, left: Callable[[Sequence[Case]], str] | None = None
) -> list[Stopped]:
    """Runs all cases that are not finished.

    Args:
        cases: In this order.
        out: Folder of all runs of the plan.
        limit_seconds: After which a run is given up.
        left: Says for people how long cases will take.

    Returns:
        Those that came to no result. An interruption ends all, and is raised.
    """
    stopped = []
    waiting = [case for case in cases if not is_finished(case, out)]
    done = len(cases) - len(waiting)
    if done and waiting:
        console.say(f"{done} of {len(cases)} runs are finished already")
    for index, case in enumerate(waiting):
        remaining = f"; {left(waiting[index:])} left" if left is not None else ""
        console.say(f"[{done + index + 1}/{len(cases)}] {case.title}{remaining}")
        problem = run_one(case, out, limit_seconds)
        if problem is not None:
            stopped.append(problem)
            console.warn(f"  {'failed' if problem.failed else 'left out'}: {problem.reason}")
        else:
            console.say(f"  {_told(outcome(case, out)[0])}")
    return stopped


def run_one(case: Case, out: Path, limit_seconds: float) -> Stopped | None:
    """Runs a case, from its checkpoint if it was interrupted after one; None if it came to its end."""
    folder = case.folder(out)
    words = [*case.words, "--out", str(folder)]
    if any((folder / CHECKPOINTS).glob("*")):
        words = ["--resume", str(folder)]
    elif folder.exists():
        _remove(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log, begun = folder.with_name(folder.name + _LOG), time.monotonic()
    try:
        with log.open("w") as output, _command(case, words) as (command, environment):
            status = _status(command, {**_compilations(out), **environment}, output, limit_seconds)
    except NoNetworkError as error:
        return Stopped(case, str(error), failed=False)
    if status is None:
        return Stopped(case, f"not done after {limit_seconds:.0f} s: see {log}", failed=True)
    if status or not (folder / SUMMARY).exists():
        lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        return Stopped(case, "\n    ".join([f"status {status}, in {log}:", *lines]), failed=True)
    write_whole(folder / TOOK, json.dumps({"seconds": time.monotonic() - begun, "words": case.words}) + "\n")
    return None


@contextmanager
def _command(case: Case, words: Sequence[str]) -> Iterator[tuple[list[str], Mapping[str, str]]]:
    """The command that runs a case, and its environment."""
    options = parsed(case)
    environment: Mapping[str, str] = os.environ
    with ExitStack() as stack:
        if options.transport != "mpi":
            command = [sys.executable, "-m", case.module, *words]
        elif case.network is None:
            command = starting.command(case.module, options.workers, words)
        else:
            hosts = stack.enter_context(two_hosts(case.network))
            launch = hosts.launch(options.workers)
            command = hosts.command(starting.command(case.module, options.workers, words, launch))
            environment = hosts.environment()
        yield command, environment


def _compilations(out: Path) -> dict[str, str]:
    """Variables by which the runs share what they compile. Times are not concerned: steps are compiled before.

    With a limit of its size JAX locks the cache, which it needs, for it writes entries in place.
    """
    return {
        "JAX_COMPILATION_CACHE_DIR": str((out / ".compilations").resolve()),
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(10 << 30),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }


def _status(command: Sequence[str], environment: Mapping[str, str], output: Any, limit: float) -> int | None:
    """The exit status of a command; None if it was given up. Whoever interrupts the bench interrupts it as well."""
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        process_group=0, pass_fds=_locks,
    )  # fmt: skip
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)


def _end(process: subprocess.Popen[Any]) -> None:
    """Ends a run that is still going on; another interruption meanwhile takes the next, harder step at once."""
    interruption: BaseException | None = None
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):  # the second lets a launcher kill its ranks
        try:
            if process.poll() is None:
                os.killpg(process.pid, number)
                process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        except BaseException as error:
            interruption = error
    if interruption is not None:
        raise interruption


def _remove(folder: Path) -> None:
    """Removes what an interrupted run has left without a checkpoint, and nothing that is no run's."""
    assert not any(folder.iterdir()) or (folder / OPTIONS_FILE).exists(), f"{folder} is no run"
    for path in folder.iterdir():
        if path.name != OPTIONS_FILE:  # the last: what is left by an interruption is known as a run's
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(folder)


def _told(summary: Mapping[str, Any]) -> str:
    scores = ", ".join(
        f"{name} {'none' if value is None else f'{value:.4g}'}" for name, value in summary["eval"].items()
    )
    return f"{summary['wall_seconds']:.1f} s, {summary['examples_per_second']:,.0f} {summary['unit']}/s, {scores}"
