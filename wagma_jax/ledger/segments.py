"""What one rank has written, in memory: a run is one segment, and each resumption adds another."""

import dataclasses
import functools
import math
from collections.abc import Iterator

from wagma_jax.ledger.entries import (
    Call,
    ConsensusCall,
    EngineEntry,
    GlobalMean,
    Mixed,
    Offset,
    Round,
    Start,
    Swap,
    TrainerEntry,
)
from wagma_jax.schedule import GroupSchedule


@dataclasses.dataclass(frozen=True)
class Segment:
    """What one rank wrote from one start to the next.

    Attributes:
        start: The first line.
        entries: The engine's in the engine's order, and the trainer's in the trainer's, as in the file.
        offset: The second measurement of the offset; None in a run that failed or is still going on.
        ended: Whether the rank came to a regular end.
    """

    start: Start
    entries: tuple[EngineEntry | TrainerEntry, ...]
    offset: Offset | None = None
    ended: bool = False

    @functools.cached_property
    def schedule(self) -> GroupSchedule:
        """Who averages with whom."""
        return self.start.schedule()

    @functools.cached_property
    def rounds(self) -> tuple[Round, ...]:
        """The exchanges of rounds."""
        return tuple(entry for entry in self.entries if isinstance(entry, Round))

    @functools.cached_property
    def mixed(self) -> tuple[Mixed, ...]:
        """The rounds of gossip."""
        return tuple(entry for entry in self.entries if isinstance(entry, Mixed))

    @functools.cached_property
    def swaps(self) -> tuple[Swap, ...]:
        """The swaps with partners."""
        return tuple(entry for entry in self.entries if isinstance(entry, Swap))

    @functools.cached_property
    def calls(self) -> tuple[Call, ...]:
        """The calls of ``average``."""
        return tuple(entry for entry in self.entries if isinstance(entry, Call))

    @functools.cached_property
    def engine(self) -> tuple[EngineEntry, ...]:
        """All that the engine exchanged."""
        return tuple(entry for entry in self.entries if isinstance(entry, EngineEntry))

    @functools.cached_property
    def trainer(self) -> tuple[TrainerEntry, ...]:
        """All that the trainer called."""
        return tuple(entry for entry in self.entries if isinstance(entry, TrainerEntry))

    def before(self, first_round: float) -> "Segment":
        """The segment without what belongs to ``first_round`` and later rounds."""
        dated = zip(self.entries, self._rounds_of_entries(), strict=True)
        return dataclasses.replace(self, entries=tuple(entry for entry, t in dated if t < first_round))

    def _rounds_of_entries(self) -> Iterator[int]:
        """The newest round that each entry knows; ``meet`` has the one of the trainer's call before it."""
        newest = self.start.first_round - 1
        for entry in self.entries:
            if isinstance(entry, Call):
                newest = entry.round
                yield entry.round
            elif isinstance(entry, ConsensusCall):
                newest = max(newest, entry.version)
                yield entry.version
            elif isinstance(entry, EngineEntry):
                yield entry.version if isinstance(entry, GlobalMean) else entry.round
            else:
                yield newest


@dataclasses.dataclass(frozen=True)
class RankLedger:
    """What one rank wrote; several segments if the run was resumed."""

    rank: int
    segments: tuple[Segment, ...]

    def kept(self) -> tuple[Segment, ...]:
        """The segments without the rounds that later segments did again."""
        result = []
        end = math.inf
        for segment in reversed(self.segments):
            result.append(segment.before(end))
            end = min(end, segment.start.first_round)
        return tuple(reversed(result))
