"""When a run ends, and which share of it is done: pure bookkeeping in rounds and units."""

import dataclasses
import math

DEFAULT_STEPS = 300


@dataclasses.dataclass(frozen=True)
class Length:
    """How long a run is to be, as its options say it.

    Attributes:
        steps: Rounds; 300 if neither this nor ``epochs`` is given.
        epochs: Passes over the training set, instead of ``steps``.
        units_per_round: Units of all workers in one round.
        units_per_epoch: None where there are no epochs.
        by_units: Whether the run ends after a number of units that were really seen, not after a number of rounds:
            ``clock="round"`` with ``epochs``.
    """

    steps: int | None
    epochs: float | None
    units_per_round: int
    units_per_epoch: int | None
    by_units: bool = False

    def units(self) -> float:
        """Units in all epochs."""
        assert self.epochs is not None
        assert self.units_per_epoch is not None
        return self.epochs * self.units_per_epoch

    def total_steps(self, first_step: int = 0, first_unit: int = 0) -> int:
        """The round at which the run ends.

        Args:
            first_step: Rounds done before the run got its present number of workers.
            first_unit: Units seen in them.
        """
        if self.epochs is None:
            return DEFAULT_STEPS if self.steps is None else self.steps
        return max(first_step + math.ceil((self.units() - first_unit) / self.units_per_round), 1)

    def share_done(self, step: int, units: int) -> float:
        """The share of the run that is done after so many rounds and units, in [0, 1]."""
        if self.epochs is None:
            return min(step / self.total_steps(), 1.0)
        return min(units / self.units(), 1.0)


@dataclasses.dataclass(frozen=True)
class Budget:
    """When a run ends, counted from where it got its present number of workers.

    Attributes:
        total_steps: The round at which it ends.
        first_step: Rounds done before.
        first_share: The share of the run that was done then, in [0, 1].
        units: If not None, the run ends at the first meeting at which all workers together have seen so many units
            since ``first_step``, whatever the round.

    Raises:
        ValueError: ``total_steps`` is below ``first_step``, or ``first_share`` out of range.
    """

    total_steps: int
    first_step: int = 0
    first_share: float = 0.0
    units: float | None = None

    def __post_init__(self):
        """Checks the numbers."""
        if not 0 <= self.first_step <= self.total_steps:
            raise ValueError(
                f"the steps in all must be at least the {self.first_step} steps done, got {self.total_steps}: raise "
                "--steps"
            )
        if not 0 <= self.first_share <= 1:
            raise ValueError(f"first_share must be in [0, 1], got {self.first_share}")

    def ended(self, steps: int, units: float) -> bool:
        """Whether the run is over after so many rounds; ``units`` are those known to be seen since ``first_step``."""
        return steps >= self.total_steps if self.units is None else units >= self.units

    def share(self, steps: int, units: float) -> float:
        """The share of the run that is done after so many rounds and units, in [0, 1]."""
        if self.units is not None:
            done = units / self.units if self.units > 0 else 1.0
        else:
            done = (steps - self.first_step) / max(self.total_steps - self.first_step, 1)
        return min(max(self.first_share + (1.0 - self.first_share) * done, 0.0), 1.0)

    def shown_steps(self, steps: int, units: float) -> float:
        """The position of a progress bar that ends at ``total_steps``."""
        if self.units is None:
            return min(steps, self.total_steps)
        done = min(units / self.units, 1.0) if self.units > 0 else 1.0
        return self.first_step + done * (self.total_steps - self.first_step)


@dataclasses.dataclass
class Pace:
    """An estimate of the units that all workers have seen; workers hear of each other at meetings only.

    Attributes:
        units: What all had seen at the last meeting.
        steps: Rounds done by then.
        per_round: Units per round between the last two meetings.
    """

    units: int
    steps: int
    per_round: float

    def meet(self, steps: int, units: int) -> None:
        """Takes in a meeting after so many rounds, at which all workers together report so many further units."""
        if steps > self.steps:
            self.per_round = units / (steps - self.steps)
        self.units += units
        self.steps = max(steps, self.steps)

    def at(self, steps: int) -> float:
        """Estimates how many units all workers have seen after so many rounds."""
        return self.units + (steps - self.steps) * self.per_round
