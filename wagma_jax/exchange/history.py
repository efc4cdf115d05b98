"""What was exchanged in the last rounds, for what calls tell of them."""

import collections
from typing import NamedTuple

REMEMBERED = 4096  # rounds


class Exchanged(NamedTuple):
    """What was exchanged in a round.

    Attributes:
        round: The round.
        group: Its members.
        contributed: The version of each one's contribution.
        weights: Its weight; () where all weigh the same.
    """

    round: int
    group: tuple[int, ...]
    contributed: tuple[int, ...]
    weights: tuple[int, ...] = ()

    @property
    def weight(self) -> int:
        """Of all contributions together."""
        return sum(self.weights) if self.weights else len(self.group)


class History:
    """The exchanges of the last rounds."""

    def __init__(self) -> None:
        self._rounds: collections.OrderedDict[int, Exchanged] = collections.OrderedDict()

    def note(self, exchanged: Exchanged) -> None:
        """Remembers what was exchanged in a round."""
        self._rounds[exchanged.round] = exchanged
        if len(self._rounds) > REMEMBERED:
            self._rounds.popitem(last=False)

    def get(self, t: int) -> Exchanged | None:
        """What was exchanged in round t; None if that is forgotten, or was not in this worker's time."""
        return self._rounds.get(t)

    def rounds(self) -> dict[int, Exchanged]:
        """What was exchanged, by the round, as far back as it is remembered."""
        return dict(self._rounds)
