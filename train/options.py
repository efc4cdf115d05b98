"""Options that all training scripts share, spelled the same everywhere."""

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wagma_jax.strategies import ALGORITHMS, Settings, Strategy, build

if TYPE_CHECKING:
    AlgorithmName = str
else:
    AlgorithmName = Literal[tuple(sorted(ALGORITHMS))]


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Which algorithm trains on how many workers, for how long, and where the results go.

    Attributes:
        algorithm: How the workers combine what they learn.
        transport: xla: all workers in one program.
        workers: Number of workers P. Up to 8 get a (virtual) device each, more are simulated by one vmap.
        group_size: At most so many workers S in a group (wagma only): there are ceil(P / S) groups of even sizes; None:
            about the square root of P.
        sync_period: Rounds between global means (not for allreduce, where every step is one); None: never.
        late_probability: Simulated lateness: the chance that a worker's contribution to a round is its previous model.
            Drawn beforehand from the seed. Algorithms that wait for everybody ignore it.
        steps: Rounds to train for.
        batch_size: Examples per worker and step.
        seed: Of the initial model, the data order and the lateness.
        out: Folder of the results; None: runs/NAME-ALGORITHM-TIME. It must not hold anything yet.
        log_every: Steps between log points.
        eval_every: Steps between evaluations of the consensus model.
    """

    algorithm: AlgorithmName = "wagma"
    transport: Literal["xla"] = "xla"
    workers: int = 8
    group_size: int | None = None
    sync_period: int | None = 10
    late_probability: float = 0.0
    steps: int = 300
    batch_size: int = 16
    seed: int = 0
    out: Path | None = None
    log_every: int = 10
    eval_every: int = 50

    def check(self) -> None:
        """Raises ValueError for numbers out of range, before anything is loaded or compiled."""
        for name in ("workers", "steps", "batch_size", "log_every", "eval_every"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        if not 0 <= self.late_probability < 1:
            raise ValueError(f"--late-probability must be in [0, 1), got {self.late_probability}")
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, got {self.seed}")

    def strategy(self, axis_name: str) -> Strategy:
        """The algorithm, ready for a training step."""
        return build(
            self.algorithm,
            Settings(
                num_workers=self.workers,
                group_size=self.group_size,
                sync_period=self.sync_period,
                axis_name=axis_name,
                simulate_lateness=self.late_probability > 0,
            ),
        )

    def make_out(self, name: str) -> Path:
        """Creates the folder of the results; ValueError if it holds anything already."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        out = Path("runs") / f"{name}-{self.algorithm}-{stamp}" if self.out is None else self.out
        try:
            out.mkdir(parents=True, exist_ok=True)
            if any(out.iterdir()):
                raise ValueError(f"--out {out} exists and is not empty: choose another folder, or remove it")
        except OSError as error:
            raise ValueError(f"--out {out} cannot be made ({error}): choose a folder that can") from None
        return out
