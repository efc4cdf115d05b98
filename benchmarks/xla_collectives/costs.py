"""Costs of group averaging and of an allreduce, per device and step, for any number of workers."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType

import wagma_jax as wagma
from benchmarks.xla_collectives.stablehlo import Cost, count, mean
from wagma_jax.collectives import Lowering

AXIS = "data"


class Row(NamedTuple):
    """Group averaging beside allreduce, per device and step.

    Attributes:
        num_workers: P.
        group_size: S.
        allreduce: A ``pmean`` of the gradients, every step.
        ordinary: An ordinary round of group averaging: the mean over one rotation of the groups.
        average: The mean over a sync period, that is over its ordinary rounds and one global mean.
    """

    num_workers: int
    group_size: int
    allreduce: Cost
    ordinary: Cost
    average: Cost


def sqrt_group_size(num_workers: int) -> int:
    """S = sqrt(P), the paper's choice, rounded down to a power of two."""
    return 1 << (int(math.log2(num_workers)) // 2)


def lower_average(
    schedule: wagma.GroupSchedule,
    shapes: dict[str, tuple[int, ...]],
    lowering: Lowering = "auto",
    check_vma: bool = True,
    platform: str = "tpu",
) -> jax.stages.Lowered:
    """Lowers ``GroupAverager.average`` for a mesh of abstract devices, one per worker."""
    averager = wagma.GroupAverager(schedule, AXIS, lowering=lowering)

    def step(tree, state):
        return averager.average(tree, state)[:2]

    tree = _stacked(shapes, schedule.num_workers)
    return _lower(step, schedule.num_workers, check_vma, platform, tree, jax.eval_shape(jax.vmap(averager.init), tree))


def lower_allreduce(
    num_workers: int, shapes: dict[str, tuple[int, ...]], check_vma: bool = True, platform: str = "tpu"
) -> jax.stages.Lowered:
    """Lowers the baseline: a plain ``pmean`` of the same tree, since gradients have the shapes of the model."""
    step = lambda tree: lax.pmean(tree, AXIS)
    return _lower(step, num_workers, check_vma, platform, _stacked(shapes, num_workers))


def average_costs(
    schedule: wagma.GroupSchedule,
    shapes: dict[str, tuple[int, ...]],
    lowering: Lowering = "auto",
    check_vma: bool = True,
    platform: str = "tpu",
) -> tuple[Cost, Cost]:
    """Costs of (an ordinary round, a step): means over one rotation of the groups and over a sync period.

    The averager's switch has a branch for each distinct grouping, in the order of the rounds, and one for the sync
    round at the end. Where every round is a global mean there is no switch.
    """
    branches = count(lower_average(schedule, shapes, lowering, check_vma, platform), schedule.num_workers)
    if len(branches) == 1:
        return branches[0], branches[0]
    rounds = [schedule.groups(t) for t in range(schedule.period)]
    distinct = list(dict.fromkeys(rounds))
    assert len(branches) == len(distinct) + (schedule.sync_period is not None)
    ordinary = mean([branches[distinct.index(groups)] for groups in rounds])
    if schedule.sync_period is None:
        return ordinary, ordinary
    share = 1 / schedule.sync_period
    return ordinary, mean([ordinary, branches[-1]], [1 - share, share])


def row(num_workers: int, shapes: dict[str, tuple[int, ...]], sync_period: int = 10, platform: str = "tpu") -> Row:
    """Group averaging with S = sqrt(P) beside an allreduce, as ``for_workers`` and "auto" lower them by default."""
    schedule = wagma.GroupSchedule(num_workers, sqrt_group_size(num_workers), sync_period)
    (allreduce,) = count(lower_allreduce(num_workers, shapes, platform=platform), num_workers)
    return Row(num_workers, schedule.group_size, allreduce, *average_costs(schedule, shapes, platform=platform))


def _stacked(shapes: dict[str, tuple[int, ...]], num_workers: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct((num_workers, *shape), jnp.float32) for name, shape in shapes.items()}


def _lower(step, num_workers: int, check_vma: bool, platform: str, *arguments) -> jax.stages.Lowered:
    mesh: Any = AbstractMesh((num_workers,), (AXIS,), axis_types=(AxisType.Auto,))
    mapped = wagma.for_workers(step, AXIS, mesh, check_vma=check_vma)
    return jax.jit(mapped).trace(*arguments).lower(lowering_platforms=(platform,))
