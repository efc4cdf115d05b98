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
        said = r, kind, 1 << sender
        for place, (of, what, who) in enumerate(self.entries):
            if of == r and what == kind:
                return Facts((*self.entries[:place], (r, kind, who | 1 << sender), *self.entries[place + 1 :]))
            if (of, what) > (r, kind):
                return Facts((*self.entries[:place], said, *self.entries[place:]))
        return Facts((*self.entries, said))

    def who(self, r: int, *kinds: Kind) -> int:
        """The set of those who have said any of this about round r."""
        mask = 0
        for of, kind, who in self.entries:
            if of == r and kind in kinds:
                mask |= who
        return mask

    def rounds_after(self, r: int) -> set[int]:
        """The rounds after r about which something is known."""
        if not self.entries or self.entries[-1][0] <= r:
            return set()
        return {of for of, _, _ in self.entries if of > r}

    def since(self, r: int) -> "Facts":
        """Without what is known of rounds before r."""
        return Facts(tuple(entry for entry in self.entries if entry[0] >= r))
