"""The entries of a ledger: one class for each kind, for the writer and the readers alike.

A class is the whole definition of its kind: ``codec`` derives from its fields and their types how an entry is written,
read and checked.
"""

import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from wagma_jax.choices import Clock, OnNonfinite
from wagma_jax.schedule import GroupSchedule

VERSION = 6
"""Of the format. Whoever adds, removes or changes a kind or a field increases it: readers refuse what they do not know,
since an unknown entry may change what the others mean."""

_MOMENT = "moment"
Moment = Annotated[float, _MOMENT]
"""A point in time, in seconds: of the rank's own ``time.perf_counter``; after ``align``, since the start of the run."""

MergeName = Literal["own", "sum", "late", "mean", "added", "mixed"]
"""What the result of a call was made from: W' alone, the sum, the sum and W', or the mean of a sync round; of
increments, the results that were new, added up; of gossip, models mixed with the step."""


class Start(NamedTuple):
    """The beginning of a segment, and the settings of the run.

    Attributes:
        rank: Whose file it is.
        num_workers: P.
        group_size: S.
        sync_period: tau, or None.
        rotate: Whether groups change.
        quorum: How many arrivals start an exchange.
        clock: What a call counts: "step" or "round".
        on_nonfinite: What is contributed in the place of a model that is not finite: "share": that; "skip": what the
            worker has published before.
        first_round: Where the segment begins; its parameters have the version ``first_round - 1``.
        host: The machine's name.
        time: When the offset was measured.
        offset: What is added to this rank's time to get rank 0's, seconds.
        error: The bound on the offset's error, seconds.
        method: What is exchanged: models that "groups" average, "increments" of all, models that "gossip" mixes with
            those of neighbours (groups of those), or models of "pairs" (groups of two, without common rounds).
        options: The settings that the method alone has, as text.
        version: Of the format.
    """

    rank: int
    num_workers: int
    group_size: int
    sync_period: int | None
    rotate: bool
    quorum: int
    clock: Clock
    on_nonfinite: OnNonfinite
    first_round: int
    host: str
    time: Moment
    offset: float
    error: float
    method: Literal["groups", "increments", "gossip", "pairs"] = "groups"
    options: dict[str, str] = {}  # noqa: RUF012 never changed
    version: int = VERSION

    kind = "start"

    def check(self) -> None:
        """Raises ValueError if there is no such schedule."""
        self.schedule()

    def schedule(self) -> GroupSchedule:
        """Who averages with whom."""
        return GroupSchedule(self.num_workers, self.group_size, self.sync_period, self.rotate)


class Round(NamedTuple):
    """An exchange that the engine took part in.

    Attributes:
        round: Its round.
        group: Its ranks.
        contributed: The version of each rank's contribution: the round that it was published for.
        begin: When the engine entered the exchange.
        end: When it had the result.
        weights: The weight of each rank's contribution in the sum; () where all weigh the same.
    """

    round: int
    group: tuple[int, ...]
    contributed: tuple[int, ...]
    begin: Moment
    end: Moment
    weights: tuple[int, ...] = ()

    kind = "round"

    def check(self) -> None:
        """Raises ValueError if the fields contradict each other."""
        if not self.group or len(self.group) != len(self.contributed) or max(self.contributed) > self.round:
            raise ValueError("group and contributed do not fit")
        if self.weights and (len(self.weights) != len(self.group) or min(self.weights) < 0 or not any(self.weights)):
            raise ValueError("group and weights do not fit")

    def staleness(self, rank: int) -> int:
        """The age in rounds of a member's contribution to an ordinary round; 0 on time."""
        return self.round - self.contributed[self.group.index(rank)]


class Mixed(NamedTuple):
    """A round of gossip that the engine has completed.

    Attributes:
        round: The round.
        sources: The ranks from which what was mixed has come, in the order in which it is added up.
        stepped: Whether the trainer's step is in it; else the trainer rests.
        begin: When all was there.
        end: When the engine had the result.
    """

    round: int
    sources: tuple[int, ...]
    stepped: bool
    begin: Moment
    end: Moment

    kind = "mixed"


class Swap(NamedTuple):
    """A swap of live models with a partner, where workers average in pairs.

    Attributes:
        partner: With whom.
        number: By the count of the active worker, who has asked.
        asked: Whether that is this rank.
        sent: The version of this rank's live model that was sent.
        version: That of the average.
        round: The newest round that this rank's trainer had arrived at when it was averaged.
        begin: When the engine began it.
        end: When it was over here: averaged, and what was sent has arrived.
    """

    partner: int
    number: int
    asked: bool
    sent: int
    version: int
    round: int
    begin: Moment
    end: Moment

    kind = "swap"

    def check(self) -> None:
        """Raises ValueError if the fields contradict each other."""
        if self.version <= self.sent:
            raise ValueError("version and sent do not fit")


class GlobalMean(NamedTuple):
    """The engine's exchange for a call of ``consensus``.

    Attributes:
        version: Of the mean, which is published by it.
        begin: When the engine entered the exchange.
        end: When it had the result.
    """

    version: int
    begin: Moment
    end: Moment

    kind = "global_mean"


class Call(NamedTuple):
    """A call of ``average`` by the trainer.

    Attributes:
        round: The round that it arrived at.
        enter: When it was called.
        ready: When the model was published: the arrival.
        taken: When a result was there, exchange included.
        leave: When it returned.
        merge: What the result was made from.
        source: The round of the sum that was merged, or None.
        base: The newest round that the result contains.
        waits: Seconds waited between ready and taken, by the rank that was waited for.
        nonfinite: Whether the model was not finite, so that what was published before stayed, and took its place.
        began: Where workers average in pairs: the version of the live model at which the step began.
        version: The same of what it returned.
        weight: Where contributions are weighted: that of the model in a late merge.
    """

    round: int
    enter: Moment
    ready: Moment
    taken: Moment
    leave: Moment
    merge: MergeName
    source: int | None
    base: int
    waits: dict[int, float]
    nonfinite: bool = False
    began: int | None = None
    version: int | None = None
    weight: int | None = None

    kind = "call"


class ConsensusCall(NamedTuple):
    """A call of ``consensus`` by the trainer, which rests in it.

    Attributes:
        enter: When it was called.
        ready: When the model was handed to the engine.
        taken: When the mean was there.
        leave: When it returned.
        version: The newest round that the mean contains.
        nonfinite: Whether the model was not finite, so that what was published before was handed over.
    """

    enter: Moment
    ready: Moment
    taken: Moment
    leave: Moment
    version: int
    nonfinite: bool = False

    kind = "consensus_call"


class Meet(NamedTuple):
    """A call of ``meet`` by the trainer: a barrier at which all workers stand still. No values change.

    Attributes:
        enter: When it was called.
        leave: When it returned.
    """

    enter: Moment
    leave: Moment

    kind = "meet"

    @property
    def seconds(self) -> float:
        """How long it took: waiting for those who came later."""
        return self.leave - self.enter


class Offset(NamedTuple):
    """How far this rank's time is from rank 0's. A segment begins with one, inside of Start, and ends with another.

    Attributes:
        time: When it was measured.
        offset: What is added to this rank's time to get rank 0's, seconds.
        error: The bound on the offset's error, seconds: half the shortest round trip, added up on the way to rank 0.
    """

    time: Moment
    offset: float
    error: float

    kind = "offset"


class End(NamedTuple):
    """The regular end of a segment."""

    kind = "end"


EngineEntry = Round | Mixed | Swap | GlobalMean
TrainerEntry = Call | ConsensusCall | Meet
Entry = Start | EngineEntry | TrainerEntry | Offset | End
KINDS: dict[str, type[Entry]] = {entry.kind: entry for entry in typing.get_args(Entry)}

_MOMENTS = {
    kind: tuple(
        name
        for name, hint in typing.get_type_hints(kind, include_extras=True).items()
        if _MOMENT in getattr(hint, "__metadata__", ())
    )
    for kind in KINDS.values()
}
_AnyEntry = TypeVar("_AnyEntry", bound=Entry)


def moments(kind: type[Entry]) -> tuple[str, ...]:
    """The names of the fields that are points in time, in ascending order."""
    return _MOMENTS[kind]


def shifted(entry: _AnyEntry, timeline: Callable[[float], float]) -> _AnyEntry:
    """The entry with all its moments on another timeline."""
    values: dict[str, Any] = {name: timeline(getattr(entry, name)) for name in moments(type(entry))}
    return entry._replace(**values)


def span(entry: EngineEntry | TrainerEntry) -> tuple[float, float]:
    """When what the entry tells of began and ended."""
    names = moments(type(entry))
    return getattr(entry, names[0]), getattr(entry, names[-1])
