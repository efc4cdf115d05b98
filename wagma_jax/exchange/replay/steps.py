"""What a replay asks of its caller."""

from collections.abc import Callable
from typing import Any, NamedTuple

Step = Callable[[int, int, Any], Any]
"""Maps (rank, number of the call on that rank, what the last call returned) to what was passed to the call."""


class Steps(NamedTuple):
    """The caller's functions; see ``replay.replay``.

    Attributes:
        local: What was passed to ``average``.
        hand_in: What was passed to ``consensus``, in a run of increments.
        observe: Called with (rank, number of the call, result) after each call of ``average``.
    """

    local: Step
    hand_in: Step
    observe: Callable[[int, int, Any], None]
