"""Leaves that only sync rounds average: they are packed when one is near, or their worker rests."""

import jax

from wagma_jax.exchange.places import Leaves
from wagma_jax.exchange.rounds import RoundsEngine
from wagma_jax.exchange.staging import Staging


class Deferred:
    """Publishes such leaves before the worker rests, so that the sync rounds of others include the newest.

    Args:
        engine: The worker's.
        staging: Packs its models.
    """

    def __init__(self, engine: RoundsEngine, staging: Staging):
        self._engine, self._staging = engine, staging
        self._leaves: Leaves | None = None  # of the newest W' (None for others), while those are not published

    def note(self, leaves: Leaves | None) -> None:
        """The leaves of a W' that was not packed whole; None: it was.

        They are its owner's, who may change NumPy arrays: those are copied.
        """
        self._leaves = None if leaves is None else self._staging.rest_alone(leaves)

    def publish(self) -> None:
        """Publishes them, unless they were donated meanwhile: then what was published before stands for them."""
        leaves, self._leaves = self._leaves, None
        if leaves is None:
            return
        if any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in self._staging.rest_of(leaves)):
            return
        self._engine.publish_rest(self._staging.pack_rest(leaves))
