"""Sums over the batches of an evaluation, on all devices of a process at once."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from train import devices
from train.task import Model, Place

Step = Callable[[Model, Any, jax.Array], Mapping[str, jax.Array]]
"""Maps (model, batch, counts) to sums over those of the batch's rows for which ``counts``, bool [rows], is True."""


class Evaluation:
    """Compiles a step once for each set of devices, and adds up what it returns.

    Args:
        step: Traced; the leaves of its batch are [rows, ...].
    """

    def __init__(self, step: Step):
        self._step = step
        self._compiled: dict[Mesh, Callable[..., Mapping[str, jax.Array]]] = {}

    def __call__(self, model: Model, place: Place, batches: Iterable[tuple[Any, np.ndarray]]) -> dict[str, float]:
        """The sums by name.

        Args:
            model: As NumPy arrays.
            place: Which devices to use.
            batches: Pairs of (batch, counts), with a multiple of the devices' number of rows.
        """
        mesh = devices.mesh_of(place.devices, "examples")
        if mesh not in self._compiled:
            self._compiled[mesh] = jax.jit(self._step)
        step, model = self._compiled[mesh], jax.device_put(model, devices.replicated(mesh))
        sums: dict[str, float] = {}
        for batch in batches:
            for name, value in jax.device_get(step(model, *devices.place(batch, mesh, "examples"))).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return sums
