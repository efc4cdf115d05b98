"""Every algorithm behind one small interface, so that a training loop never branches on an algorithm's name.

One module is one algorithm and defines ``ALGORITHM``. A new one is added to the table below.

Inside one XLA program a training step asks the algorithm's strategy once, for the models after the local step or for
the gradients before it, as ``exchanges`` says:

    tree, state, info = strategy.combine(tree, before, state, late)

Across processes an algorithm is an exchange of the same trees, with the methods of ``GroupExchange``.
"""

from wagma_jax.algorithms import adpsgd, allreduce, dpsgd, eager, local, sgp, wagma
from wagma_jax.algorithms.base import Algorithm, Settings, Strategy, default_group_size, whole_model

__all__ = [
    "ALGORITHMS", "DEFAULT", "Algorithm", "Settings", "Strategy", "build", "default_group_size", "find", "whole_model",
]  # fmt: skip

_MODULES = (allreduce, local, wagma, dpsgd, sgp, eager, adpsgd)

ALGORITHMS: dict[str, Algorithm] = {module.ALGORITHM.name: module.ALGORITHM for module in _MODULES}

DEFAULT = wagma.ALGORITHM.name
"""The algorithm that training scripts take if none is named."""


def find(name: str) -> Algorithm:
    """The algorithm of that name; ValueError if there is none."""
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join(sorted(ALGORITHMS))}, got {name!r}: pass one of them")
    return ALGORITHMS[name]


def build(name: str, settings: Settings) -> Strategy:
    """The strategy of an algorithm by name.

    Raises:
        ValueError: There is no such algorithm, or it cannot have these settings.
    """
    return find(name).xla(settings)
