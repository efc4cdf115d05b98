"""WAGMA-SGD: models averaged in rotating groups, global means every sync_period rounds (Li et al., TPDS 2021)."""

import dataclasses

from wagma_jax.algorithms.base import Algorithm, Settings, Strategy, averaging
from wagma_jax.choices import (
    LateMerge,
    Weighting,
    check_late_merge,
    check_patience,
    check_quorum_seconds,
    check_weighting,
)
from wagma_jax.schedule import GroupSchedule


@dataclasses.dataclass(frozen=True)
class WagmaOptions:
    """The options that WAGMA-SGD alone has.

    Attributes:
        weighting: Over MPI, what contributions weigh. equal: all the same. steps: as many as their worker's steps since
            it last contributed, so that one that is always slow does not draw the others back.
        late_merge: What a late worker makes of its group's sum. average: the mean of all members' models and its own
            new one, as in the paper. add: the group's mean, and its last step, of which nothing is lost.
        quorum_seconds: Over MPI, how long a worker that has arrived waits for the quorum (--quorum): with a fraction of
            a step, those that are nearly as fast are still on time. None: until it is there.
    """

    weighting: Weighting = "equal"
    late_merge: LateMerge = "average"
    quorum_seconds: float | None = None

    def __post_init__(self):
        check_weighting(self.weighting)
        check_late_merge(self.late_merge)
        check_quorum_seconds(self.quorum_seconds)


def xla(settings: Settings) -> Strategy:
    """Group averages of the models; a late worker contributes its previous one."""
    options = settings.options or WagmaOptions()
    if options.weighting != "equal":
        raise ValueError(
            f"weighting={options.weighting!r} of wagma needs a process for each worker, got one program, whose workers "
            "all take a step in every round: start with wagma launch, or leave it out"
        )
    if options.quorum_seconds is not None:
        raise ValueError(
            f"quorum_seconds={options.quorum_seconds} of wagma needs a process for each worker, got one program, where "
            "nobody waits for a quorum: start with wagma launch, or leave it out"
        )
    if options.late_merge != "average" and not settings.simulate_lateness:
        raise ValueError(
            f"late_merge={options.late_merge!r} of wagma needs late workers, got one program, where nobody is late: "
            "start with wagma launch, simulate lateness, or leave it out"
        )
    return averaging(settings.schedule(), settings, settings.simulate_lateness, settings.policy, options.late_merge)


def mpi(settings: Settings, comm, tree):
    """The first member of a group to arrive starts its exchange."""
    options = settings.options or WagmaOptions()
    return settings.exchange(comm, tree, settings.schedule(), settings.quorum, **dataclasses.asdict(options))


def schedule(settings: Settings) -> GroupSchedule:
    """Who averages with whom; ValueError for settings that do not go together."""
    check_patience((settings.options or WagmaOptions()).quorum_seconds, settings.quorum)
    return settings.schedule()


ALGORITHM = Algorithm(
    "wagma",
    "WAGMA-SGD: wait-avoiding group model averaging",
    "models",
    xla,
    mpi,
    WagmaOptions,
    takes_means=lambda options: options.late_merge == "average",
    schedule=schedule,
)
