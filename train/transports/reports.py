"""What workers tell the first process about their log points, without waiting for it."""

from typing import Any

from train.counts import Counts
from train.transports.group import MpiGroup

_TAG = 21


class Reports:
    """Reports of log points.

    Args:
        group: The processes.
        step: Where this start of the run begins; log points up to it were reported by the one before.
    """

    def __init__(self, group: MpiGroup, step: int = 0):
        self._comm = group.comm
        self._rank, self._size = group.rank, group.size
        self._requests: list[Any] = []
        self._reports: dict[int, list[tuple[int, Counts]]] = {rank: [] for rank in range(self._size)}
        self._heard = dict.fromkeys(range(self._size), step)  # the last log point that each rank has reported

    def tell(self, step: int, window: Counts) -> None:
        """Reports to the first process, without waiting for it."""
        if self._rank == 0:
            self._reports[0].append((step, window))
            return
        self._requests = [request for request in self._requests if not request.Test()]
        self._requests.append(self._comm.isend((step, window), 0, _TAG))

    def heard(self, until: int | None = None) -> list[tuple[int, list[Counts]]]:
        """On the first process, further log points that all have reported; waits for the one at ``until`` if given."""
        if self._rank != 0:
            return []
        for rank in range(1, self._size):
            while (message := self._comm.improbe(rank, _TAG)) is not None:
                self._receive(rank, message)
            while until is not None and self._heard[rank] < until:
                self._receive(rank, self._comm.mprobe(rank, _TAG))
        rows = []
        for _ in range(min(len(reports) for reports in self._reports.values())):
            each = [self._reports[rank].pop(0) for rank in range(self._size)]
            assert len({step for step, _ in each}) == 1, "all report the same log points"
            rows.append((each[0][0], [window for _, window in each]))
        return rows

    def close(self) -> None:
        """Waits until all posted sends have completed."""
        for request in self._requests:
            request.Wait()

    def _receive(self, rank: int, message: Any) -> None:
        step, window = message.recv()
        self._heard[rank] = step
        self._reports[rank].append((step, window))
