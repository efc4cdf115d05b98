"""Injected delays: who is how late at which step. Drawn beforehand from a seed, the same for all algorithms."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

Kind = Literal["none", "rotating", "fixed", "lognormal"]
LOGNORMAL_SECONDS = 0.1
SPELLING = "none, rotating:SECONDS[:K], fixed:RANK:SECONDS or lognormal:SIGMA[:SECONDS]"

_DELAYS = 4  # with the seed, the key of the delays' random stream; lateness and the data order have the numbers below


@dataclasses.dataclass(frozen=True)
class Straggler:
    """Which workers are late, and by how much.

    Attributes:
        kind: none; rotating: ``count`` random workers at every step; fixed: one worker at every step; lognormal: every
            worker at every step, by ``seconds * exp(sigma * z)`` with a standard normal z.
        seconds: The delay; of lognormal its median.
        count: K, of rotating.
        rank: Of fixed.
        sigma: Of lognormal.
    """

    kind: Kind = "none"
    seconds: float = 0.0
    count: int = 1
    rank: int = 0
    sigma: float = 0.0

    def delays(self, seed: int, step: int, num_workers: int) -> np.ndarray:
        """By how many seconds each worker is late at this step; float64 [num_workers]."""
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
        """Raises ValueError if there are too few workers for these delays."""
        if self.count > num_workers or self.rank >= num_workers:
            raise ValueError(
                f"--straggler names {max(self.count, self.rank + 1)} workers, and there are {num_workers}: name fewer"
            )


def parse(text: str) -> Straggler:
    """Reads the words of the command line.

    Raises:
        ValueError: They are not understood.
    """
    kind, *words = text.split(":")
    try:
        if kind == "none" and not words:
            return Straggler()
        if kind == "rotating" and len(words) in (1, 2):
            return Straggler("rotating", _positive(words[0]), count=_whole(words[1], 1) if len(words) == 2 else 1)
        if kind == "fixed" and len(words) == 2:
            return Straggler("fixed", _positive(words[1]), rank=_whole(words[0], 0))
        if kind == "lognormal" and len(words) in (1, 2):
            seconds = _positive(words[1]) if len(words) == 2 else LOGNORMAL_SECONDS
            return Straggler("lognormal", seconds, sigma=_positive(words[0]))
    except ValueError:
        pass
    raise ValueError(f"--straggler must be {SPELLING}, got {text!r}: write for example rotating:0.15")


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
