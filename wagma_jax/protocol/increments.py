"""What a worker contributes and takes where workers exchange increments, such as gradients: immutable records.

A model replaces another, but an increment is added: none may be lost, and none count twice. So what a worker hands in
is added to what it has not contributed yet, and leaves it by being contributed; and the results of rounds are added up
until the trainer takes them. Increments are opaque, as models are in ``rules``: arrays in a run, symbols in a test.

Reference: Li et al., PPoPP 2020, section 5. There a result that was not taken is overwritten by the next one, and is
missing in that worker's parameters until the next global mean of the models. Here it is added to the next one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

Add = Callable[[Any, Any], Any]
"""Adds two sums of increments. It may write to the first, to which nobody else refers."""


class Pending(NamedTuple):
    """The increments that this worker has handed in, but not contributed yet.

    Attributes:
        version: The round that the newest one was handed in for, whether it is contributed or not; -1 before the first.
        total: Their sum; None if there are none.
    """

    version: int = -1
    total: Any = None

    def hand_in(self, version: int, increment: Any, add: Add) -> "Pending":
        """With another one. Versions increase."""
        assert version > self.version, f"version {version} after {self.version}"
        return Pending(version, increment if self.total is None else add(self.total, increment))

    def contribute(self) -> tuple["Pending", Any]:
        """Without any, and the sum of all of them, which is contributed; None for zeros.

        A contribution with version v of a worker whose last one had version u holds its increments for the rounds from
        u + 1 to v. The versions tell what is in a result.
        """
        return self._replace(total=None), self.total


class Untaken(NamedTuple):
    """The results of rounds that the trainer has not taken yet.

    Attributes:
        newest: The newest round whose result was put; -1 before the first.
        total: The sum of the results; None if there are none.
    """

    newest: int = -1
    total: Any = None

    def put(self, r: int, result: Any, add: Add) -> "Untaken":
        """With the result of round ``r``. Rounds increase."""
        assert r > self.newest, f"the result of round {r} after that of {self.newest}"
        return Untaken(r, result if self.total is None else add(self.total, result))

    def collect(self) -> tuple["Untaken", Any]:
        """Without any, and the sum of all of them, which the trainer takes; None for zeros."""
        return self._replace(total=None), self.total
