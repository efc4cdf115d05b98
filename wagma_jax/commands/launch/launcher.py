"""Runs a job to its end: reads what its ranks write, passes signals on to them, and leaves no process behind."""

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from wagma_jax.commands.launch.command_line import command_line
from wagma_jax.commands.launch.environment import cores, settings
from wagma_jax.commands.launch.job import Job, LaunchError
from wagma_jax.commands.launch.lines import Lines, Tagged, write
from wagma_jax.commands.launch.mpi import Mpi, find_mpi
from wagma_jax.commands.launch.pipes import MOST_RANKS, Pipes
from wagma_jax.commands.launch.processes import adopt_orphans, die_with_parent, kill_children
from wagma_jax.commands.launch.signals import PASSED_ON, STAND_INS

_KILL_SECONDS = 5.0  # what mpirun gets to end all ranks before we do it


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
    environment = os.environ | settings(job, mpi, os.environ, count, os.geteuid() == 0)
    # With --hosts all ranks write through mpirun, so that they are treated alike. Without it a batch system may still
    # place ranks on other machines; only those write through mpirun then.
    pipes = None
    if not job.hosts and job.size <= MOST_RANKS and os.path.isdir("/proc/self/fd"):
        pipes = Pipes(job.size)
    # Markers of relays elsewhere arrive behind mpirun's tags. Without tags, signals are passed on at once.
    tagged = mpi.is_open_mpi and not any(word.startswith("--output") for word in job.mpirun_args)
    marker = f"\x01wagma relay of {os.getpid()}" if pipes or tagged else "-"
    try:
        description = pipes.description if pipes else "-"
        words = command_line(job, mpi, environment, count, marker=marker, pipes=description, root=root)
        return _Launcher(job, mpi, pipes, marker.encode()).run(words, environment)
    finally:
        if pipes:
            pipes.close()


class _Launcher:
    """One run. A single thread reads all output, so that lines stay whole."""

    def __init__(self, job: Job, mpi: Mpi, pipes: Pipes | None, marker: bytes):
        self._job, self._mpi, self._pipes, self._marker = job, mpi, pipes, marker
        self._lines: dict[tuple[int, int], Lines] = {}  # (rank, stream) -> what it wrote; streams are 1 and 2
        self._tagged: dict[int, Tagged] = {}  # stream of mpirun's -> its parser
        self._relays: dict[int, int] = {}  # rank -> process id of its relay, on the relay's host
        self._waiting: list[signal.Signals] = []  # signals to pass on once all ranks are up
        self._stop: signal.Signals | None = None  # the first request to end, which the ranks get
        self._kill_at: float | None = None  # when we kill what mpirun has not ended
        self._status: int | None = None  # overrides mpirun's

    def run(self, words: Sequence[str], environment: Mapping[str, str]) -> int:
        wake, woken = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        previous = {signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda *_: None)}
        previous_wakeup = signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        adopt_orphans()
        # We read the terminal: mpirun has a process group of its own (Ctrl-C is ours to pass on), which must not.
        terminal = os.isatty(0)
        foreground = terminal and os.tcgetpgrp(0) == os.getpgrp()
        self._mpirun = subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.PIPE if foreground else subprocess.DEVNULL if terminal else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),
        )
        try:
            for number in (*STAND_INS, *PASSED_ON):
                if signal.getsignal(number) != signal.SIG_IGN:  # set by nohup, or for a shell's background job
                    previous[number] = signal.signal(number, self._on_signal)
            with selectors.DefaultSelector() as selector:
                selector.register(wake, selectors.EVENT_READ, (None, wake))
                if foreground:
                    selector.register(0, selectors.EVENT_READ, (None, 0))
                for key in self._sources():
                    selector.register(key[1], selectors.EVENT_READ, key)
                self._read(selector)
            return self._exit_code()
        except BrokenPipeError:  # nobody reads our output any more
            self._status = 128 + signal.SIGPIPE
            return self._status
        finally:
            self._end()
            for file in (self._mpirun.stdin, self._mpirun.stdout, self._mpirun.stderr):
                if file:
                    with contextlib.suppress(BrokenPipeError):
                        file.close()
            signal.set_wakeup_fd(previous_wakeup)
            for number, handler in previous.items():
                signal.signal(number, handler)
            os.close(wake)
            os.close(woken)

    # Input and output.

    def _sources(self) -> list[tuple[Callable[[bytes], None], int]]:
        """What to do with the data, and the descriptor, of all output."""
        assert self._mpirun.stdout
        assert self._mpirun.stderr
        sources = []
        for stream, file in ((1, self._mpirun.stdout), (2, self._mpirun.stderr)):
            os.set_blocking(file.fileno(), False)
            self._tagged[stream] = Tagged(self._mpirun.pid)
            sources.append((lambda data, stream=stream: self._from_mpirun(stream, data), file.fileno()))
        for rank, ends in enumerate(self._pipes.reading if self._pipes else ()):
            for stream, end in zip((1, 2), ends, strict=True):
                sources.append((lambda data, rank=rank, stream=stream: self._from_rank(rank, stream, data), end))
        return sources

    def _read(self, selector: selectors.BaseSelector):
        while self._mpirun.poll() is None:
            if self._kill_at is not None and time.monotonic() > self._kill_at:
                break
            for key, _ in selector.select(timeout=0.5):
                handle, descriptor = key.data
                try:
                    data = os.read(descriptor, 1 << 16)
                except BlockingIOError:
                    continue
                except OSError:  # the terminal is gone
                    data = b""
                if descriptor == 0:
                    self._to_rank_0(data)
                if not data:
                    selector.unregister(descriptor)
                elif handle:
                    handle(data)
        self._end()
        if self._pipes:
            self._pipes.close_writing()
        for handle, descriptor in [key.data for key in selector.get_map().values() if key.data[0]]:
            with contextlib.suppress(BlockingIOError):  # held open by a process that we do not know of
                while data := os.read(descriptor, 1 << 16):
                    handle(data)
        for stream, tagged in self._tagged.items():
            self._emit(stream, tagged.close())
        for (_, stream), lines in self._lines.items():
            write(stream, lines.close())

    def _to_rank_0(self, data: bytes):
        assert self._mpirun.stdin
        with contextlib.suppress(BrokenPipeError):
            if data:
                write(self._mpirun.stdin.fileno(), data)
            else:
                self._mpirun.stdin.close()

    def _from_rank(self, rank: int, stream: int, data: bytes):
        if (rank, stream) not in self._lines:
            prefix = f"[{rank}] ".encode() if self._job.prefix else b""
            self._lines[rank, stream] = Lines(prefix)
            if stream == 1 and self._marker != b"-" and data.startswith(self._marker):
                # A relay writes it before anything else, and it is short enough for a pipe to deliver it in one piece.
                line, _, data = data.partition(b"\n")
                self._is_up(rank, int(line.split()[-1]))
        write(stream, self._lines[rank, stream].feed(data))

    def _from_mpirun(self, stream: int, data: bytes):
        self._emit(stream, self._tagged[stream].feed(data))

    def _emit(self, stream: int, pieces: list[tuple[int | None, bytes]]):
        for rank, text in pieces:
            if rank is not None:
                self._from_rank(rank, stream, text)
            else:
                write(stream, text)

    # Signals.

    def _is_up(self, rank: int, relay: int):
        self._relays[rank] = relay
        if self._all_up():
            for number in self._waiting:
                self._pass_on(number)
            self._waiting = []

    def _all_up(self) -> bool:
        return self._marker == b"-" or len(self._relays) == self._job.size

    def _on_signal(self, number: int, frame):
        number = signal.Signals(number)
        if number in PASSED_ON or self._stop is None:
            if number not in PASSED_ON:
                self._stop = number
            if self._all_up():
                self._pass_on(number)
            else:  # now it would be lost, or end a relay
                self._waiting.append(number)
        else:
            self._status = 128 + number
            self._kill()

    def _pass_on(self, number: signal.Signals):
        stand_in = STAND_INS.get(number, number)
        if self._mpi.is_open_mpi:
            self._mpirun.send_signal(stand_in)
        elif self._pipes:  # hydra forwards few signals; the relays are on this machine, so they get them from us
            for relay in self._relays.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(relay, stand_in)
        else:
            self._mpirun.send_signal(number)

    def _kill(self):
        if self._kill_at is None:
            self._kill_at = time.monotonic() + _KILL_SECONDS
            self._mpirun.terminate()

    # The end.

    def _end(self):
        """Leaves no process behind."""
        if self._mpirun.poll() is None:
            self._kill()
            assert self._kill_at is not None
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._mpirun.wait(max(0.0, self._kill_at - time.monotonic()))
            self._mpirun.kill()
            self._mpirun.wait()
        kill_children()

    def _exit_code(self) -> int:
        if self._status is not None:
            return self._status
        status = self._mpirun.returncode
        status = 128 - status if status < 0 else status
        if self._stop is not None and status == 128 + STAND_INS[self._stop]:  # a relay was not ready for the stand-in
            return 128 + self._stop
        return status
