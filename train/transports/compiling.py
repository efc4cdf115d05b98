"""A step compiled ahead for each of the few shapes that batches have."""

from collections.abc import Callable, Sequence
from typing import Any

import jax


class ByShape:
    """Compiled functions by the shapes of a batch.

    Args:
        shapes: Trees of ``jax.ShapeDtypeStruct``.
        compile: Maps one of them to the compiled function.
    """

    def __init__(self, shapes: Sequence[Any], compile: Callable[[Any], Any]):
        self._compiled = {_key(shape): compile(shape) for shape in shapes}

    def of(self, batch: Any) -> Any:
        """The function for a batch.

        Raises:
            ValueError: Batches of these shapes were not announced.
        """
        found = self._compiled.get(_key(batch))
        if found is None:
            shapes = jax.tree.map(lambda x: list(x.shape), batch)
            raise ValueError(
                f"a batch has shapes {shapes} that the step is not compiled for: list them in the task's batch_shapes"
            )
        return found


def _key(batch: Any) -> Any:
    leaves, structure = jax.tree.flatten(batch)
    return structure, tuple(leaf.shape for leaf in leaves)
