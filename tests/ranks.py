"""A pool of MPI ranks that runs test bodies one after the other.

The ranks are started once for a run of the tests, by the first test that needs them, and anew after a failure. All
workers of xdist share them: a lock lets one body run at a time. Each rank listens at a socket in the run's folder. The
ranks end with that folder, which the process that started the tests removes, or with that process.
"""

import contextlib
import fcntl
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from processes import ROOT

SIZE = 4
PROGRAM = ROOT / "tests" / "programs" / "rank.py"
FOLDER = "WAGMA_TEST_RANKS"
START_SECONDS = 60.0
GRACE_SECONDS = 5.0  # after the first failure: how long the other ranks' reports are waited for


class RanksFailed(AssertionError):
    """A body has failed on some rank, or has not ended in time."""


def prepare():
    """Called by the process that starts the tests, before others are started: makes the folder. Whether it has."""
    if FOLDER in os.environ:
        return False
    os.environ[FOLDER] = tempfile.mkdtemp(prefix="wagma-ranks-")
    begin(Path(os.environ[FOLDER]))
    return True


def begin(folder):
    """Makes this process the owner of the ranks in a folder: they end with it."""
    (folder / "owner").write_text(str(os.getpid()))


def end():
    """Called by the owner: ends the ranks."""
    folder = Path(os.environ.pop(FOLDER))
    kill(folder)
    shutil.rmtree(folder, ignore_errors=True)


def run(body, *arguments, num_ranks=SIZE, timeout=60.0, optimized=False):
    """Runs a body on ranks of the pool.

    Args:
        body: "module.function" in tests/programs; called with a communicator of ``num_ranks`` and the arguments.
        *arguments: Picklable.
        num_ranks: At most ``SIZE``.
        timeout: Seconds.
        optimized: Whether XLA optimizes, as it does for users.

    Returns:
        What the body has returned on each rank.

    Raises:
        RanksFailed: With the traceback of every rank that has failed.
    """
    assert num_ranks <= SIZE
    folder = Path(os.environ[FOLDER])
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if _running(folder) is None:
                _start(folder)
            return _ask(folder, (body, arguments, num_ranks, timeout, optimized), num_ranks, timeout)
        except BaseException:  # that of a time limit of pytest, too
            kill(folder)
            raise


def _start(folder):
    wagma = Path(sys.executable).parent / "wagma"
    start = time.monotonic_ns()  # tells the ranks of this start from those of others
    command = [wagma, "launch", "-n", SIZE, "--", sys.executable, PROGRAM, folder, start]
    # by a shell that ends at once: the ranks may outlive this process
    started = subprocess.run(
        ["sh", "-c", '"$@" > "$LOG" 2>&1 < /dev/null & echo $$ $!', "sh", *map(str, command)],
        cwd=ROOT,
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "LOG": str(folder / "log"), "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        check=True,
    )
    (folder / "running").write_text(f"{started.stdout.strip()} {start}")


def _running(folder):
    """The launcher's process group, the launcher, and the number of this start; None if no ranks are running."""
    file = folder / "running"
    return tuple(map(int, file.read_text().split())) if file.exists() else None


def wait_for_end(pid, seconds=10.0):
    """Waits until a process has ended."""
    end = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.02)


def kill(folder):
    """Ends the ranks: those that no signal reaches end without their files."""
    running = _running(folder)
    if running is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running[0], signal.SIGKILL)
        (folder / "running").unlink()
    for file in folder.glob("rank-*"):
        file.unlink()


def _ask(folder, task, num_ranks, timeout):
    with contextlib.ExitStack() as stack:
        streams = []
        for rank in range(SIZE):
            connection = stack.enter_context(_connected(folder, rank))
            streams.append((connection, stack.enter_context(connection.makefile("rwb"))))
        for _, stream in streams:
            pickle.dump(task, stream)
            stream.flush()
        end = time.monotonic() + timeout
        results, failures = [None] * SIZE, []
        for rank, (connection, stream) in enumerate(streams):
            connection.settimeout(max(0.01, end - time.monotonic()))
            try:
                good, result = pickle.load(stream)
            except (TimeoutError, EOFError, OSError) as error:
                good, result = False, f"{type(error).__name__}: no report from this rank"
            if good:
                results[rank] = result
            else:
                failures.append(f"[{rank}] {result}")
                end = min(end, time.monotonic() + GRACE_SECONDS)
    if failures:
        output = (folder / "log").read_text()[-5000:]
        raise RanksFailed(
            "\n".join([f"{task[0]} on {num_ranks} ranks", *failures, "what the ranks have said:", output])
        )
    return results[:num_ranks]


def _connected(folder, rank):
    """A connection with a rank, which may still be starting."""
    end = time.monotonic() + START_SECONDS
    _, launcher, start = _running(folder)
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(folder / f"rank-{start}-{rank}"))
        except OSError:
            connection.close()
            if time.monotonic() > end or not Path(f"/proc/{launcher}").exists():
                raise RanksFailed(f"rank {rank} has not started:\n{(folder / 'log').read_text()}") from None
            time.sleep(0.05)
        else:
            return connection
