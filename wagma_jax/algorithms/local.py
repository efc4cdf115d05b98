"""Local SGD: no exchange but a global mean of the models every sync_period rounds (Stich, ICLR 2019)."""

import optax

from wagma_jax import transformations
from wagma_jax.algorithms.base import Algorithm, Settings, Strategy, averaging
from wagma_jax.averaging import PolicyFunction
from wagma_jax.collectives import AxisName
from wagma_jax.schedule import GroupSchedule


def schedule(settings: Settings) -> GroupSchedule:
    """Groups of one."""
    return GroupSchedule(settings.num_workers, 1, settings.sync_period)


def xla(settings: Settings) -> Strategy:
    """Groups of one. All wait for all at the sync rounds, so that nobody is ever late."""
    return averaging(schedule(settings), settings, policy=settings.policy)


def mpi(settings: Settings, comm, tree):
    """Groups of one, which wait for nobody."""
    return settings.exchange(comm, tree, schedule(settings))


def local_sgd(
    inner: optax.GradientTransformation,
    num_workers: int,
    sync_period: int,
    axis_name: AxisName = "data",
    policy: PolicyFunction | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Local SGD with any optimizer: the global mean of the models after every ``sync_period`` steps.

    Stich, "Local SGD Converges Fast and Communicates Little", ICLR 2019 (arXiv:1805.09767), algorithm 1.

    Args:
        inner: The local optimizer. Its state stays local. Gradients must be this worker's own.
        num_workers: P.
        sync_period: H, steps between global means.
        axis_name: The mapped axis (or tuple of mesh axes) whose indices are the workers.
        policy: Which leaves are averaged; see :class:`wagma_jax.GroupAverager`.

    Raises:
        ValueError: A number is out of range. From ``update``: as :func:`wagma_jax.group_average`.
    """
    return transformations.wagma(inner, GroupSchedule(num_workers, 1, sync_period), axis_name, policy)


ALGORITHM = Algorithm(
    "local",
    "local SGD: global model mean every sync_period rounds",
    "models",
    xla,
    mpi,
    takes_means=lambda options: True,
    schedule=schedule,
)
