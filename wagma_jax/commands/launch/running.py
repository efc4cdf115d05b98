"""Runs a job to its end: reads what its ranks write, passes signals on to them, and leaves no process behind."""

import contextlib
import functools
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from wagma_jax.commands.launch.job import Job
from wagma_jax.commands.launch.lines import Lines, Tagged, write
from wagma_jax.commands.launch.mpi import Mpi
from wagma_jax.commands.launch.pipes import Pipes
from wagma_jax.commands.launch.processes import adopt_orphans, die_with_parent, has_argument, kill_children
from wagma_jax.commands.launch.signals import PASSED_ON, STAND_INS
from wagma_jax.commands.launch.stdin import Offer, kind
from wagma_jax.commands.launch.variables import Failures

_KILL_SECONDS = 5.0  # what mpirun gets to end all ranks before we do it


def tell(text: str) -> None:
    """Tells the user something that is no rank's, as long as somebody can be told."""
    with contextlib.suppress(BrokenPipeError):
        write(2, f"wagma launch: {text}\n".encode())  # Python's own buffer would be written once more at the end


class Running:
    """One run. A single thread reads all output, so that lines stay whole.

    Args:
        job: What runs.
        mpi: Under which launcher.
        pipes: To the ranks on this machine, if they have some.
        offer: Of standard input to rank 0, if it is made.
        marker: What a relay's first line begins with; ``-`` for none.
        failures: Is shown all output.
    """

    def __init__(self, job: Job, mpi: Mpi, pipes: Pipes | None, offer: Offer | None, marker: bytes, failures: Failures):
        self._job, self._mpi, self._pipes, self._marker = job, mpi, pipes, marker
        self._offer, self._failures = offer, failures
        self._lines: dict[tuple[int, int], Lines] = {}  # (rank, stream) -> what it wrote; streams are 1 and 2
        self._tagged: dict[int, Tagged] = {}  # stream of mpirun's -> its parser
        self._relays: dict[int, int] = {}  # rank -> process id of its relay, on the relay's host
        self._all_here = True  # no rank has written through mpirun, as those on other hosts do
        self._waiting: list[signal.Signals] = []  # signals to pass on once all ranks are up
        self._stop: signal.Signals | None = None  # the first request to end, which the ranks get
        self._kill_at: float | None = None  # when we kill what mpirun has not ended
        self._status: int | None = None  # overrides mpirun's
        self._lost: set[int] = set()  # streams of which something could not be written
        self._reads_terminal = False

    def run(self, words: Sequence[str], environment: Mapping[str, str]) -> int:
        """Starts mpirun, and returns the exit code of the run.

        Args:
            words: The command.
            environment: All its variables.
        """
        wake, woken = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        previous = {signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda *_: None)}
        previous_wakeup = signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        adopt_orphans()
        # We read the terminal: mpirun has a process group of its own (Ctrl-C is ours to pass on), which must not.
        controls, foreground = kind()
        self._mpirun = subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.PIPE if foreground or self._offer else subprocess.DEVNULL if controls else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),
        )
        try:
            for number in (*STAND_INS, *PASSED_ON):
                if signal.getsignal(number) != signal.SIG_IGN:  # set by nohup, or for a shell's background job
                    previous[number] = signal.signal(number, self._on_signal)
            with selectors.DefaultSelector() as self._selector:
                selector = self._selector
                selector.register(wake, selectors.EVENT_READ, (None, wake))
                self._foreground = foreground
                if self._offer:
                    selector.register(self._offer, selectors.EVENT_READ, (None, self._offer.fileno()))
                for key in self._sources():
                    selector.register(key[1], selectors.EVENT_READ, key)
                self._read(selector)
            code = self._exit_code()
            for variable in self._failures.found() if code else ():
                tell(f"MPI did not start with {variable}, which may be for another MPI: unset {variable.split('=')[0]}")
            return code
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
            sources.append((functools.partial(self._from_mpirun, stream), file.fileno()))
        for rank, ends in enumerate(self._pipes.reading if self._pipes else ()):
            for stream, end in zip((1, 2), ends, strict=True):
                sources.append((functools.partial(self._from_rank, rank, stream), end))
        return sources

    def _read(self, selector: selectors.BaseSelector):
        while self._mpirun.poll() is None:
            if self._kill_at is not None and time.monotonic() > self._kill_at:
                break
            self._watch_terminal()
            for key, _ in selector.select(timeout=0.5):
                handle, descriptor = key.data
                if descriptor == 0 and kind().background:
                    continue
                if self._offer and key.fileobj is self._offer:
                    self._offer.hand_over()
                    continue
                try:
                    data = os.read(descriptor, 1 << 16)
                except BlockingIOError:
                    continue
                except OSError:  # the terminal is gone
                    data = b""
                if descriptor == 0:
                    self._to_rank_0(data)
                    self._foreground = bool(data)
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
            self._write(stream, lines.close())

    def _watch_terminal(self):
        """Reads the terminal only while this job is in its foreground: a job that bg has sent away would be stopped."""
        wanted = self._foreground and not kind().background
        if wanted and not self._reads_terminal:
            self._selector.register(0, selectors.EVENT_READ, (None, 0))
        elif not wanted and self._reads_terminal and 0 in self._selector.get_map():
            self._selector.unregister(0)
        self._reads_terminal = wanted

    def _write(self, stream: int, data: bytes):
        problem = write(stream, data)
        if problem is not None and stream not in self._lost:
            self._lost.add(stream)
            name = "stdout" if stream == 1 else "stderr"
            tell(f"what ranks write to {name} is lost ({problem.strerror}), and they go on")

    def _to_rank_0(self, data: bytes):
        assert self._mpirun.stdin
        with contextlib.suppress(BrokenPipeError):
            if data:
                write(self._mpirun.stdin.fileno(), data)
            else:
                self._mpirun.stdin.close()

    def _settle_stdin(self, taken: bool):
        """Rank 0's relay has said whether it has taken our standard input; else it gets it through mpirun."""
        assert self._offer
        assert self._mpirun.stdin
        self._selector.unregister(self._offer)
        self._offer = None
        if taken:
            self._mpirun.stdin.close()
        else:
            threading.Thread(target=self._forward, name="wagma stdin", daemon=True).start()

    def _forward(self):
        assert self._mpirun.stdin
        with contextlib.suppress(OSError, ValueError):  # the run is over
            while data := os.read(0, 1 << 16):
                write(self._mpirun.stdin.fileno(), data)
            self._mpirun.stdin.close()

    def _from_rank(self, rank: int, stream: int, data: bytes):
        if (rank, stream) not in self._lines:
            prefix = f"[{rank}] ".encode() if self._job.prefix else b""
            self._lines[rank, stream] = Lines(prefix)
            if stream == 1 and self._marker != b"-" and data.startswith(self._marker):
                # A relay writes it before anything else, and it is short enough for a pipe to deliver it in one piece.
                line, _, data = data.partition(b"\n")
                relay, taken = line.split()[-2:]
                if rank == 0 and self._offer:
                    self._settle_stdin(taken == b"1")
                self._is_up(rank, int(relay))
        self._failures.feed(data)
        self._write(stream, self._lines[rank, stream].feed(data))

    def _from_mpirun(self, stream: int, data: bytes):
        self._failures.feed(data)
        self._emit(stream, self._tagged[stream].feed(data))

    def _emit(self, stream: int, pieces: list[tuple[int | None, bytes]]):
        for rank, text in pieces:
            if rank is not None:
                self._all_here = False
                self._from_rank(rank, stream, text)
            else:
                self._write(stream, text)

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
        elif number != signal.SIGHUP:  # a closed terminal sends several, by its shell and by the system
            self._status = 128 + number
            self._kill()

    def _pass_on(self, number: signal.Signals):
        stand_in = STAND_INS.get(number, number)
        if self._relays and self._all_here:
            # Not through mpirun: hydra forwards few signals, and PRRTE skips ranks that it takes for not yet running.
            for relay in self._relays.values():
                if has_argument(relay, self._marker):  # not another process that has got its number
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(relay, stand_in)
        else:
            self._mpirun.send_signal(stand_in if self._mpi.is_open_mpi else number)

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
