"""What a replay asks of its caller."""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from wagma_jax.ledger import Segment
from wagma_jax.ledger.entries import Call, ConsensusCall

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


def programs(parts: Sequence[Segment]) -> list[collections.deque[Call | ConsensusCall]]:
    """The calls of each rank that change values, in their order, to be taken one after the other."""
    return [
        collections.deque(entry for entry in part.trainer if isinstance(entry, Call | ConsensusCall)) for part in parts
    ]
