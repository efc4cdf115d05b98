"""What all sections share: options, and how one is run."""

import abc
import dataclasses
from pathlib import Path

from benchmarks.exchange.ranks import STEP_SECONDS, World


@dataclasses.dataclass(frozen=True)
class Section(abc.ABC):
    """A question and the options of its measurement.

    Attributes:
        group_size: S, the size of the groups.
        repeats: Number of repetitions.
        seed: Of the order of measurements and of random delays.
        out: Folder for JSON and pictures.
    """

    group_size: int = 2
    repeats: int = 5
    seed: int = 0
    out: Path = Path("benchmarks/results")

    @property
    def name(self) -> str:
        """As on the command line and in the names of files."""
        return type(self).__name__.lower()

    @abc.abstractmethod
    def run(self, world: World) -> None:
        """Measures on all ranks; rank 0 reports."""


@dataclasses.dataclass(frozen=True)
class Training(Section):
    """A section that trains for some rounds.

    Attributes:
        floats: Number of elements of the model.
        rounds: Per repetition; whole sync periods.
        sync_period: Of WAGMA.
        step_seconds: Of a step, which sleeps.

    Raises:
        ValueError: A repetition would end within a sync period.
    """

    repeats: int = 3
    floats: int = 1_000_000
    rounds: int = 300
    sync_period: int = 10
    step_seconds: float = STEP_SECONDS

    def __post_init__(self):
        if self.rounds % self.sync_period:
            raise ValueError(
                f"rounds must be whole sync periods of {self.sync_period}, got {self.rounds}: take for example "
                f"{(self.rounds // self.sync_period + 1) * self.sync_period}"
            )
