"""The schedule of an exchange, from the arguments of its constructor."""

from wagma_jax.schedule import GroupSchedule


class Default(int):
    """A number that the user has not passed."""


DEFAULT_SYNC_PERIOD = Default(10)


def build(
    num_workers: int,
    schedule: GroupSchedule | None,
    group_size: int | None,
    sync_period: int | None,
    rotate: bool | None,
) -> GroupSchedule:
    """The schedule that was passed, or that the other arguments say.

    Raises:
        ValueError: They contradict each other, or say nothing or something impossible.
        TypeError: ``schedule`` is something else.
    """
    if schedule is None:
        if group_size is None:
            raise ValueError("expected group_size or schedule, got neither: pass for example group_size=2")
        return GroupSchedule(num_workers, group_size, sync_period, True if rotate is None else rotate)
    if not isinstance(schedule, GroupSchedule):
        raise TypeError(f"schedule must be a GroupSchedule, got {schedule!r}: pass wagma_jax.GroupSchedule(...)")
    if schedule.num_workers != num_workers:
        raise ValueError(
            f"schedule must be for the {num_workers} ranks of comm, got {schedule}: pass num_workers={num_workers}"
        )
    unset = {"group_size": group_size is None, "rotate": rotate is None}
    unset["sync_period"] = isinstance(sync_period, Default)
    for name, value in {"group_size": group_size, "sync_period": sync_period, "rotate": rotate}.items():
        if not unset[name] and value != getattr(schedule, name):
            raise ValueError(f"{name} must be that of schedule, got {value} beside {schedule}: leave it out")
    return schedule
