"""What is known about rounds that are not complete: bit masks of those who have said so, by what they have said."""

from collections.abc import Iterable
from typing import NamedTuple

from wagma_jax.protocol.messages import Kind


def mask_of(workers: Iterable[int]) -> int:
    """The set of some workers: bit w for worker w."""
    mask = 0
    for worker in workers:
        mask |= 1 << worker
    return mask


def workers_of(mask: int) -> list[int]:
    """The workers of a set, ascending."""
    workers = []
    while mask:
        lowest = mask & -mask
        workers.append(lowest.bit_length() - 1)
        mask ^= lowest
    return workers


class Facts(NamedTuple):
    """Who has said what about which round.

    Attributes:
        entries: (round, kind, senders) in this order; a few, since rounds are complete soon.
    """

    entries: tuple[tuple[int, Kind, int], ...] = ()

    def add(self, kind: Kind, r: int, sender: int) -> "Facts":
        """With one more fact."""
        known = {(of, what): who for of, what, who in self.entries}
        known[r, kind] = known.get((r, kind), 0) | 1 << sender
        return Facts(tuple((of, what, who) for (of, what), who in sorted(known.items())))

    def who(self, r: int, *kinds: Kind) -> int:
        """The set of those who have said any of this about round r."""
        mask = 0
        for of, kind, who in self.entries:
            if of == r and kind in kinds:
                mask |= who
        return mask

    def rounds(self) -> set[int]:
        """The rounds about which something is known."""
        return {of for of, _, _ in self.entries}

    def since(self, r: int) -> "Facts":
        """Without what is known of rounds before r."""
        return Facts(tuple(entry for entry in self.entries if entry[0] >= r))
