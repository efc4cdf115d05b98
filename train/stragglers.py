"""Injected delays: who is how late at which step. Drawn beforehand from a seed, the same for all algorithms."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from train import traces

Kind = Literal["none", "rotating", "fixed", "lognormal", "trace"]
MEDIAN_SECONDS = 0.1  # of lognormal and trace, if nothing else is said
SPELLING = "none, rotating:SECONDS[:K], fixed:RANK:SECONDS, lognormal:SIGMA[:SECONDS] or trace:FILE[:SECONDS]"

_DELAYS = 4  # with the seed, the key of the delays' random stream; lateness and the data order have the numbers below


@dataclasses.dataclass(frozen=True)
class Straggler:
    """Which workers are late, and by how much.

    Attributes:
        kind: none; rotating: ``count`` random workers at every step; fixed: one worker at every step; lognormal: every
            worker at every step, by ``seconds * exp(sigma * z)`` with a standard normal z; trace: every worker takes as
            long as a replica of a real job took, whose times are scaled to a median of ``seconds``.
        seconds: The delay; of lognormal its median; of trace the median of all steps of all replicas.
        count: K, of rotating.
        rank: Of fixed.
        sigma: Of lognormal.
        file: Of trace; see ``train.traces``.
        period: Steps of a worker from one of its delays to the next; the first one is delayed.
    """

    kind: Kind = "none"
    seconds: float = 0.0
    count: int = 1
    rank: int = 0
    sigma: float = 0.0
    file: str = ""
    period: int = 1

    @property
    def whole_steps(self) -> bool:
        """Whether the seconds are those of whole steps, computation included; if not, they come on top of it."""
        return self.kind == "trace"

    def pause(self, seed: int, step: int, num_workers: int, worker: int, spent: float) -> float:
        """For how many seconds a worker pauses once its computation of a step is done.

        Of a trace it is what is left of the step's time, so that a step takes that time whatever computes it. A
        computation that takes longer by itself is not delayed further.

        Args:
            seed: Of the draws.
            step: Steps that the worker has taken before.
            num_workers: P.
            worker: Its index.
            spent: Seconds that its computation has taken.
        """
        seconds = float(self.delays(seed, step, num_workers)[worker])
        return max(seconds - spent, 0.0) if self.whole_steps else seconds

    def delays(self, seed: int, step: int, num_workers: int) -> np.ndarray:
        """By how many seconds each worker is late at this step; float64 [num_workers].

        The draws do not depend on the period: it only spreads them over more steps. Of a trace, the seconds of the
        whole step. Each worker has a replica of its own, drawn from the seed; several workers share one where there are
        more workers than replicas, all replicas equally often. After its last step the trace begins again.
        """
        if step % self.period:
            return np.zeros(num_workers)
        step //= self.period
        if self.kind == "trace":
            times = traces.read(self.file)
            row = times[step % len(times), _columns(seed, times.shape[1], num_workers)]
            return row * (self.seconds / np.median(times))
        if self.kind == "fixed":
            return np.where(np.arange(num_workers) == self.rank, self.seconds, 0.0)
        if self.kind == "none":
            return np.zeros(num_workers)
        draws = np.random.default_rng((seed, _DELAYS, step))
        if self.kind == "lognormal":
            return self.seconds * np.exp(self.sigma * draws.standard_normal(num_workers))
        delays = np.zeros(num_workers)
        delays[draws.permutation(num_workers)[: self.count]] = self.seconds
        return delays

    def check(self, num_workers: int) -> None:
        """Raises ValueError if there are too few workers for these delays, or their file is none."""
        if self.kind == "trace":
            try:
                if np.median(traces.read(self.file)) == 0:
                    raise ValueError(
                        f"half of the times in {self.file} are 0, and they are scaled by their median: give times of "
                        "steps"
                    )
            except ValueError as problem:
                raise ValueError(f"--straggler trace:{self.file}: {problem}") from None
        if self.count > num_workers or self.rank >= num_workers:
            raise ValueError(
                f"--straggler names {max(self.count, self.rank + 1)} workers, and there are {num_workers}: name fewer"
            )


def parse(text: str, period: int = 1) -> Straggler:
    """Reads the words of the command line.

    Args:
        text: The words.
        period: See :class:`Straggler`.

    Raises:
        ValueError: They are not understood.
    """
    return dataclasses.replace(_parse(text), period=period)


def _parse(text: str) -> Straggler:
    kind, *words = text.split(":")
    try:
        if kind == "none" and not words:
            return Straggler()
        if kind == "rotating" and len(words) in (1, 2):
            return Straggler("rotating", _positive(words[0]), count=_whole(words[1], 1) if len(words) == 2 else 1)
        if kind == "fixed" and len(words) == 2:
            return Straggler("fixed", _positive(words[1]), rank=_whole(words[0], 0))
        if kind == "lognormal" and len(words) in (1, 2):
            seconds = _positive(words[1]) if len(words) == 2 else MEDIAN_SECONDS
            return Straggler("lognormal", seconds, sigma=_positive(words[0]))
        if kind == "trace" and any(words):
            file, seconds = ":".join(words), MEDIAN_SECONDS  # the name of a file may have colons
            if len(words) > 1 and _is_number(words[-1]):
                file, seconds = ":".join(words[:-1]), _positive(words[-1])
            return Straggler("trace", seconds, file=file)
    except ValueError:
        pass
    raise ValueError(f"--straggler must be {SPELLING}, got {text!r}: write for example rotating:0.15")


def _columns(seed: int, replicas: int, num_workers: int) -> np.ndarray:
    """The replica of each worker; int [num_workers]."""
    draws = np.random.default_rng((seed, _DELAYS))
    return np.concatenate([draws.permutation(replicas) for _ in range(-(-num_workers // replicas))])[:num_workers]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _positive(word: str) -> float:
    number = float(word)
    if not 0 < number < math.inf:
        raise ValueError
    return number


def _whole(word: str, least: int) -> int:
    number = int(word)
    if number < least:
        raise ValueError
    return number


def delay(kind: Literal["sleep", "compute"]) -> Callable[[float], Any]:
    """A function that lets seconds pass: asleep, or in compiled computations, which occupy a core."""
    if kind == "sleep":
        return time.sleep
    burn = jax.jit(lambda x: jnp.tanh(x @ x))
    x = jax.block_until_ready(burn(jnp.eye(128)))

    def compute(seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            jax.block_until_ready(burn(x))

    return compute
