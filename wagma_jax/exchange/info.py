"""What a call of ``average`` tells."""

from typing import NamedTuple

from wagma_jax.exchange.increments import Added
from wagma_jax.exchange.models import Taken
from wagma_jax.ledger.entries import MergeName
from wagma_jax.protocol.messages import Tally
from wagma_jax.protocol.rules import Merge
from wagma_jax.schedule import GroupSchedule

MERGE_NAMES: dict[Merge | None, MergeName] = {
    Merge.OWN: "own", Merge.SUM: "sum", Merge.LATE: "late", None: "mean"
}  # fmt: skip
"""What the ledger calls the ways in which a call gets its result."""


class ExchangeInfo(NamedTuple):
    """What one call of ``GroupExchange.average`` did.

    Attributes:
        round: The round that the call arrived at; -1 before the first.
        is_sync: Whether it was a sync round (global mean).
        late: Whether an older model of this worker was contributed to that round.
        staleness: The age in rounds of this worker's contribution to it; 0 on time.
        waited_seconds: How long the call waited for the round, exchange included, after W' was ready.
        group: The ranks that averaged in that round.
        contributed_rounds: The version of each one's contribution: the round it was published for, -1 for the
            parameters at the start. Empty where a worker lags so far behind that this is forgotten.
        base: The newest round whose result the returned model contains; -1 if none.
        tally: At a sync round the sums over all workers of what they have passed as ``tally``; else empty.
        nonfinite: Whether ``params`` were not finite and were dropped (``on_nonfinite="skip"``): an older model of this
            worker was contributed and takes part in the result in their place.
        weights: With ``weighting="steps"``, the weight of each one's contribution in the round's sum, in the order of
            ``group``; at a sync round in proportion. () with equal weights, in a group of one, or if forgotten.
    """

    round: int
    is_sync: bool
    late: bool
    staleness: int
    waited_seconds: float
    group: tuple[int, ...]
    contributed_rounds: tuple[int, ...]
    base: int
    tally: Tally = ()
    nonfinite: bool = False
    weights: tuple[int, ...] = ()


def describe(
    schedule: GroupSchedule,
    rank: int,
    t: int,
    taken: Taken | Added,
    published: int,
    waited_seconds: float,
    base: int,
    nonfinite: bool,
) -> ExchangeInfo:
    """The info of a call that arrived at round t.

    Args:
        schedule: Who averages with whom.
        rank: This one.
        t: The round.
        taken: What was found after it.
        published: The version of what this worker had published before the call: its contribution if that is
            forgotten, since a round that is so old was over before the call.
        waited_seconds: As in the info, like the others.
        base: The newest round in the model.
        nonfinite: As in the info.
    """
    is_sync = schedule.is_sync(t)
    if taken.exchanged is not None:
        _, group, contributed, weights = taken.exchanged
        version = contributed[group.index(rank)]
    else:
        group = tuple(range(schedule.num_workers)) if is_sync else schedule.group_of(rank, t)
        contributed = weights = ()
        version = published
    staleness = 0 if is_sync else t - version
    late = staleness > 0
    return ExchangeInfo(
        t, is_sync, late, staleness, waited_seconds, group, contributed, base, taken.tally, nonfinite, weights
    )
