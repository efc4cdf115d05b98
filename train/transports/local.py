"""One process by itself, which evaluates a model."""

from collections.abc import Callable, Sequence
from typing import Any

import jax


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
