"""Every algorithm behind one small interface, so that a training script never branches on an algorithm's name.

One module of this package is one algorithm: it defines ``ALGORITHM``, and is found by being there. A training step asks
its strategy twice:

    grads = strategy.combine_gradients(grads)          # before the local optimizer
    ...                                                # params += optimizer's updates
    model, state, info = strategy.combine_models(model, state, late)
"""

import dataclasses
import importlib
import math
import pkgutil
from collections.abc import Callable
from typing import Any

from wagma_jax.averaging import AverageInfo
from wagma_jax.collectives import AxisName
from wagma_jax.schedule import GroupSchedule


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the algorithms are built from; each takes what concerns it.

    Attributes:
        num_workers: P.
        group_size: S; None: about the square root of P (a power of two where P is one), as in the paper.
        sync_period: tau, rounds between global means; None: never.
        axis_name: The mapped axis of the workers.
        simulate_lateness: Whether ``late`` is given to ``combine_models``.
    """

    num_workers: int
    group_size: int | None = None
    sync_period: int | None = 10
    axis_name: AxisName = "data"
    simulate_lateness: bool = False

    def schedule(self) -> GroupSchedule:
        """The schedule of rotating groups with these settings; ValueError for bad ones."""
        size = default_group_size(self.num_workers) if self.group_size is None else self.group_size
        return GroupSchedule(self.num_workers, size, self.sync_period)


@dataclasses.dataclass(frozen=True)
class Strategy:
    """An algorithm as a training step sees it; all functions run per worker and are traced.

    Attributes:
        schedule: The groups and sync rounds that it amounts to.
        init: From the model's tree to the strategy's state.
        combine_gradients: From this worker's gradients to those that its optimizer sees.
        combine_models: From (the model after the local step, state, late) to (model, state, info). The model is one
            tree of parameters and statistics; ``late`` is a boolean scalar, or None.
    """

    schedule: GroupSchedule
    init: Callable[[Any], Any]
    combine_gradients: Callable[[Any], Any]
    combine_models: Callable[[Any, Any, Any], tuple[Any, Any, AverageInfo]]


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """An algorithm's entry in the table.

    Attributes:
        name: As on the command line.
        summary: One line for people.
        xla: Builds the strategy that runs inside one XLA program; ValueError for settings that it cannot have.
    """

    name: str
    summary: str
    xla: Callable[[Settings], Strategy]


def default_group_size(num_workers: int) -> int:
    """About sqrt(num_workers); a power of two where num_workers is one. ValueError below 1."""
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}: pass the number of workers")
    if num_workers & (num_workers - 1) == 0:
        return 1 << num_workers.bit_length() // 2
    return round(math.sqrt(num_workers))


def _discover() -> dict[str, Algorithm]:
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    return {module.ALGORITHM.name: module.ALGORITHM for module in modules}


ALGORITHMS: dict[str, Algorithm] = _discover()


def build(name: str, settings: Settings) -> Strategy:
    """The strategy of an algorithm by name.

    Raises:
        ValueError: There is no such algorithm, or the settings are bad.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join(sorted(ALGORITHMS))}, got {name!r}: pass one of them")
    return ALGORITHMS[name].xla(settings)
