"""``python -m benchmarks.peers``: installs the peers, measures all of them, and writes one table."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from benchmarks.machine import describe
from benchmarks.peers.adapters import LATE_CALLS, PEERS
from train import console
from train.markdown import table

ROOT = Path(__file__).parent.parent.parent
WORKER = Path(__file__).parent / "worker.py"
OURS = "wagma_jax"
PACKAGES = {
    "decent-dp": "decent-dp",
    "torchft LocalSGD": "torchft",
    "torchft DiLoCo": "torchft",
    "hivemind": "hivemind",
}
"""What brings a peer; of all others it is torch itself."""
_MB = 1_000_000
_LAST_LINES = 3


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare one averaging with that of other libraries: four processes on this machine, nothing else running.

    Attributes:
        peers: Which; all if none are named.
        megabytes: Sizes of the model, float32.
        repeats: Calls of each; a quarter as many with a late process.
        late_seconds: By how much the last process is late then.
        processes: How many.
        limit_seconds: After which a peer is given up.
        environment: Where the peers are installed.
        results: Folder of the table.
    """

    peers: tuple[str, ...] = ()
    megabytes: tuple[int, ...] = (4, 25, 100)
    repeats: int = 12
    late_seconds: float = 3.0
    processes: int = 4
    limit_seconds: float = 300.0
    environment: Path = ROOT / "build" / "peers"
    results: Path = ROOT / "benchmarks" / "results"


class FailedError(Exception):
    """A peer does not install or does not run, and why."""


def environment_of(peer: str, config: Config) -> Path:
    """The Python in which a peer runs; installs it if that has not been done.

    Raises:
        FailedError: It cannot be installed.
    """
    if peer == OURS:
        return Path(sys.executable)
    python, package = config.environment / "bin" / "python", PACKAGES.get(peer, "torch")
    done = config.environment / f"{package} is installed"
    if not done.exists():
        console.say(f"{peer}: installing {package} into {config.environment}")
        if not python.exists():
            venv.create(config.environment, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "numpy", "torch", package]
        status, output = _run(command, dict(os.environ), 3600.0)
        if status:
            raise FailedError(f"does not install: {_last(output, ('ERROR', 'error'))}")
        done.touch()
    return python


def version_of(peer: str, config: Config) -> str:
    """What was measured: the package, its version, and that of torch.

    Raises:
        FailedError: It cannot be installed.
    """
    packages = [OURS] if peer == OURS else list(dict.fromkeys([PACKAGES.get(peer, "torch"), "torch"]))
    script = "import importlib.metadata as m, sys; print(', '.join(f'{p} {m.version(p)}' for p in sys.argv[1:]))"
    _, output = _run([str(environment_of(peer, config)), "-c", script, *packages], dict(os.environ), 60.0)
    return output.strip()


def measure(peer: str, megabytes: int, config: Config) -> list[dict[str, Any]]:
    """What each process has measured.

    Raises:
        FailedError: It does not install or does not run.
    """
    python = environment_of(peer, config)
    with tempfile.TemporaryDirectory() as out:
        words = [str(WORKER), peer, str(megabytes * _MB // 4), str(config.repeats), str(config.late_seconds), out]
        if peer == OURS:
            launch = [str(python), "-m", "wagma_jax", "launch", "-n", str(config.processes), "--no-prefix", "--"]
            status, output = _run([*launch, str(python), *words], dict(os.environ), config.limit_seconds)
        else:
            status, output = _processes(python, words, config)
        files = [Path(out, f"{rank}.json") for rank in range(config.processes)]
        if status or not all(file.exists() for file in files):
            raise FailedError(f"does not run: {_first(output, ('Error:', 'error:', 'Exception:'))}")
        return [json.loads(file.read_text()) for file in files]


def _processes(python: Path, words: Sequence[str], config: Config) -> tuple[int, str]:
    """Starts the processes of a peer, as torchrun would; (the first status that is not 0, what they have said)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = " & ".join(
        " ".join([f'"{python}"', *(f'"{word}"' for word in words), str(rank), str(config.processes), str(port)])
        for rank in range(config.processes)
    )
    waits = "s=0; for p in $(jobs -p); do wait $p || s=$?; done; exit $s"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or torch is compiled anew by every process
    return _run(["bash", "-c", f"{script} & {waits}"], environment, config.limit_seconds)


def _run(command: Sequence[str], environment: dict[str, str], limit: float) -> tuple[int, str]:
    """Runs a command, and ends whatever it has started; (status, what it has said)."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = 124
            output.write(f"\nError: not done after {limit:.0f} s\n")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return status, output.read()


def _first(output: str, marks: Sequence[str]) -> str:
    """What went wrong first: other processes then fail, too, since one of them is missing."""
    wrong = [line.strip() for line in output.splitlines() if any(mark in line for mark in marks)]
    return wrong[0][:300] if wrong else _last(output, ())


def _last(output: str, marks: Sequence[str]) -> str:
    """The last lines that say what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    wrong = [line for line in lines if any(mark in line for mark in marks)]
    return " / ".join((wrong or lines or ["nothing was said"])[-_LAST_LINES:])[:400]


def summarize(measured: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Milliseconds of a call, of the slowest process; seconds that calls of the others took longer with one late."""
    times = [1e3 * max(one) for one in zip(*(found["times"] for found in measured), strict=True)]
    others = [seconds for found in measured[:-1] for seconds in found["late"]]
    usual = statistics.median(times) / 1e3
    quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return {
        "ms": statistics.median(times),
        "ms_q1": quartiles[0],
        "ms_q3": quartiles[2],
        "waited_seconds": max(statistics.median(others) - LATE_CALLS * usual, 0.0),
        "waited_longest": max(max(others) - LATE_CALLS * usual, 0.0),
    }


def rows_of(found: dict[str, dict[str, Any]], megabytes: Sequence[int]) -> list[list[str]]:
    """The rows of the table."""
    rows = []
    for peer, one in found.items():
        cells = []
        for size in megabytes:
            result = one.get(str(size))
            cells += ["", ""] if result is None else [
                f"{result['ms']:.1f} ({result['ms_q1']:.1f} - {result['ms_q3']:.1f})",
                f"{result['waited_seconds']:.2f} (at most {result['waited_longest']:.2f})",
            ]  # fmt: skip
        rows.append([peer, one.get("version", ""), *cells, one.get("reason", "")])
    return rows


def main(config: Config) -> None:
    """Measures all peers, and writes the table; also of what there is when it is interrupted."""
    found: dict[str, dict[str, Any]] = {}
    text = ""
    for peer in config.peers or PEERS:
        found[peer] = {}
        try:
            for megabytes in config.megabytes:
                console.say(f"{peer}: {megabytes} MB")
                found[peer][str(megabytes)] = summarize(measure(peer, megabytes, config))
            found[peer]["version"] = version_of(peer, config)
        except FailedError as error:
            found[peer]["reason"] = str(error)
            console.warn(f"  {error}")
        text = write(found, config)
    console.console.print(text, highlight=False, markup=False, soft_wrap=True)


def write(found: dict[str, dict[str, Any]], config: Config) -> str:
    """Writes the table, which it returns, and its numbers."""
    header = ["peer", "version"]
    for size in config.megabytes:
        header += [f"{size} MB, ms", f"others waited, s ({size} MB)"]
    text = table([*header, "remark"], rows_of(found, config.megabytes), labels=2)
    config.results.mkdir(parents=True, exist_ok=True)
    about = describe(["jax", "mpi4jax"], ("OMPI_",))
    settings = {"processes": config.processes, "late_seconds": config.late_seconds, "repeats": config.repeats}
    (config.results / "peers.json").write_text(
        json.dumps(settings | {"machine": about, "peers": found}, indent=2) + "\n"
    )
    (config.results / "peers.md").write_text(text + "\n")
    return text


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the peer in progress ends as well
    main(tyro.cli(Config, description=str(__doc__)))
