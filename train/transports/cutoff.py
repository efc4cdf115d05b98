"""Cuts late workers short where every worker is a process; see ``train.task.Cutoff``."""

import math
import time

from train import stragglers
from train.options import RunOptions
from train.transports.group import MpiGroup

_LOOK_SECONDS = 2e-3  # between two looks during a delay


class MpiCutoff:
    """Counts the workers that are done, and lets injected delays pass.

    Args:
        group: The processes, which all make one at the same time.
        options: Of the run; for the delays.
        share: Of the workers that must be done for others to be cut short.
    """

    def __init__(self, group: MpiGroup, options: RunOptions, share: float):
        from wagma_jax.exchange.headcount import Headcount

        self._headcount = Headcount(group.another(), needed(share, group.size))
        self._options, self._rank = options, group.rank
        self._delays = stragglers.parse(options.straggler)
        self._pause = stragglers.delay(options.straggler_kind)
        self._begun = self._seconds = self._passed = 0.0

    def begin(self, number: int) -> None:
        """A stage begins, into which this delay belongs."""
        self._seconds = float(self._delays.delays(self._options.seed, number, self._options.workers)[self._rank])
        self._begun, self._passed = time.perf_counter(), 0.0
        self._headcount.begin()

    def pause(self, share: float, may_end: bool) -> bool:
        """Lets the delay of a part pass; returns whether the stage ends here."""
        self._passed += share
        end = time.perf_counter() + self._seconds * share
        if self._delays.whole_steps:  # the delay is what the computation leaves of the time
            end = self._begun + self._seconds * self._passed
        while True:
            if may_end and self._headcount.reached():
                return True
            left = end - time.perf_counter()
            if left <= 0:
                return False
            self._pause(min(left, _LOOK_SECONDS) if may_end else left)

    def done(self) -> None:
        """This worker is done with the stage."""
        self._headcount.done()

    def close(self) -> None:
        """Nothing follows."""
        self._headcount.close()


def needed(share: float, num_workers: int) -> int:
    """How many workers a share of them is, at least: 3 of 4 are 0.6 of them."""
    return max(math.ceil(share * num_workers - 1e-9), 1)
