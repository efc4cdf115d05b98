"""External simulators with gymnasium's interface, each in a process of its own: many agents at once, as in ``batches``.

Simulators are named, started, driven and ended here. One that dies, raises or hangs ends the run with its name: the
others are ended, and nobody waits for it.
"""

import contextlib
import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, NoReturn

import numpy as np

from train.environments.simulator import HABITAT, Spaces
from train.errors import GaveUpError
from wagma_jax import lineage

_CLOSE_SECONDS = 5.0
_MPI = ("OMPI_", "PMIX_", "PMI_", "PRTE_")  # a simulator that uses MPI itself is no rank of the training


class Stepped(NamedTuple):
    """What came of the agents' actions; leaves NumPy arrays [agents, ...].

    Attributes:
        observation: Of the step after this, the first of an episode where one has ended.
        reward: float32.
        done: bool: the episode has ended by its own rules.
        truncated: bool: it was cut short.
        final: The last observation of the episode where it was cut short; elsewhere ``observation``.
        success: float32: that of the episode that has ended, as the simulator tells; else 0.
        spl: float32, likewise.
    """

    observation: dict[str, np.ndarray]
    reward: np.ndarray
    done: np.ndarray
    truncated: np.ndarray
    final: dict[str, np.ndarray]
    success: np.ndarray
    spl: np.ndarray


def check_installed(name: str) -> None:
    """Raises ValueError, which says how to get it, if what a simulator needs is not installed."""
    if name.startswith(HABITAT):
        if importlib.util.find_spec("habitat") is None:
            raise ValueError(
                f"--simulator {name} needs habitat-lab and habitat-sim, which are not installed: follow "
                "https://github.com/facebookresearch/habitat-lab"
            )
    elif importlib.util.find_spec("gymnasium") is None:
        raise ValueError(
            f"--simulator {name} needs gymnasium, which the extra 'gymnasium' brings: run make setup in the project, "
            "or pip install 'wagma_jax[gymnasium]'"
        )


def probe(name: str, timeout: float) -> Spaces:
    """The spaces of a simulator, which is started and ended.

    Raises:
        ValueError: It cannot be started, or agents of this kind cannot act in it.
    """
    check_installed(name)
    try:
        with Simulators(name, 1, timeout, "simulator") as simulators:
            return simulators.spaces
    except GaveUpError as error:
        raise ValueError(f"--simulator: {error}") from None


class Simulators:
    """Simulators side by side; a context manager.

    Args:
        name: As ``simulator.make`` takes it.
        count: How many.
        timeout: Seconds that one may take to start, and for each step.
        label: What they are called in errors, before their number.

    Attributes:
        spaces: What agents see and do.

    Raises:
        GaveUpError: From all methods: a simulator has died, raised or not answered in time. All are ended.
    """

    def __init__(self, name: str, count: int, timeout: float, label: str = "simulator"):
        self._name, self._timeout, self._label = name, timeout, label
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []
        self._steps = 0
        try:
            for _ in range(count):
                self._start()
            self.spaces = Spaces(*self._answers("to start")[0])
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        """How many simulators there are."""
        return len(self._processes)

    def reset(self, seeds: Sequence[int]) -> dict[str, np.ndarray]:
        """Begins an episode in each from a seed of its own; returns observations, leaves [agents, ...]."""
        self._tell([("reset", int(seed)) for seed in seeds])
        return _stacked(self._answers("a reset"))

    def step(self, actions: np.ndarray) -> Stepped:
        """One step of all agents; actions: integers [agents]."""
        self._steps += 1
        self._tell([("step", int(action)) for action in actions])
        answers = self._answers(f"step {self._steps}")
        observation, reward, done, truncated, final, scores = zip(*answers, strict=True)
        # where an episode was cut short, what it would have gone on with is not what the next one begins with
        kept = [
            last if cut and last is not None else seen
            for seen, last, cut in zip(observation, final, truncated, strict=True)
        ]
        success, spl = np.array(scores, np.float32).T
        ended = np.array(done) | np.array(truncated)
        return Stepped(
            _stacked(observation),
            np.array(reward, np.float32),
            np.array(done),
            np.array(truncated) & ~np.array(done),
            _stacked(kept),
            np.where(ended, success, np.float32(0)),
            np.where(ended, spl, np.float32(0)),
        )

    def close(self, seconds: float = _CLOSE_SECONDS) -> None:
        """Ends all simulators; those that do not end by themselves within some seconds are killed."""
        for connection in self._connections:
            with contextlib.suppress(OSError):  # it has died
                connection.send(("close",))
            connection.close()
        end = time.monotonic() + seconds
        for process in self._processes:
            try:
                process.wait(max(end - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes, self._connections = [], []

    def __enter__(self) -> "Simulators":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self) -> None:
        ours, theirs = multiprocessing.Pipe()
        environment = {key: value for key, value in os.environ.items() if not key.startswith(_MPI)}
        lineage.forget(environment)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "train.environments.simulator", str(theirs.fileno()), self._name],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._processes.append(process)
        self._connections.append(ours)

    def _tell(self, messages: Sequence[tuple[Any, ...]]) -> None:
        for index, (connection, message) in enumerate(zip(self._connections, messages, strict=True)):
            try:
                connection.send(message)
            except OSError:
                self._gave_up(index, self._ending(index))

    def _answers(self, what: str) -> list[Any]:
        end = time.monotonic() + self._timeout
        answers = []
        for index, connection in enumerate(self._connections):
            try:
                if not connection.poll(max(end - time.monotonic(), 0.0)):
                    self._processes[index].kill()
                    self._gave_up(index, f"has not answered {what} within {self._timeout:g} s, and was killed")
                outcome, value = connection.recv()
            except (EOFError, OSError):
                self._gave_up(index, self._ending(index))
            if outcome == "failed":
                self._gave_up(index, f"raised {value}")
            answers.append(value)
        return answers

    def _ending(self, index: int) -> str:
        """How a simulator has died."""
        try:
            status = self._processes[index].wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            return "has closed its pipe"
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"has exited with status {status}"

    def _gave_up(self, index: int, what: str) -> NoReturn:
        self.close(0.5)
        raise GaveUpError(f"{self._label} {index} ({self._name}) {what}: mend it or choose another --simulator")


def _stacked(observations: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([each[name] for each in observations]) for name in observations[0]}
