"""One process by itself, which evaluates a model."""

from collections.abc import Callable, Sequence
from typing import Any

import jax


class NobodyLate:
    """A cutoff where no worker can be late; see ``train.task.Cutoff``."""

    def begin(self, number: int) -> None:
        """There are no delays."""

    def pause(self, share: float, may_end: bool) -> bool:
        """Nobody is cut short."""
        del share, may_end
        return False

    def done(self) -> None:
        """Nobody wants to know."""

    def close(self) -> None:
        """There is nothing to close."""


class LocalPlace:
    """The devices of this process; see ``train.task.Place``."""

    num_workers = 1
    workers = range(1)
    part = (0, 1)
    equal_shapes = True

    @property
    def devices(self) -> Sequence[Any]:
        """All devices of this process."""
        return jax.local_devices()

    def put(self, tree: Any) -> Any:
        """Brings host arrays [1, ...] onto the device, without their leading axis."""
        return jax.device_put(jax.tree.map(lambda x: x[0], tree))

    def map(self, function: Callable[..., Any], donate: Sequence[int] = ()) -> Callable[..., Any]:
        """Compiles a function of one worker's arrays."""
        return jax.jit(function, donate_argnums=tuple(donate))

    def cutoff(self, share: float) -> NobodyLate:
        """There is nobody else."""
        del share
        return NobodyLate()
