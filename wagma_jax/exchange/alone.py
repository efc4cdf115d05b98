"""Rounds of a worker that is alone in its group, as in local SGD between global means: nothing is packed or sent."""

from collections.abc import Callable

import jax

from wagma_jax.exchange.places import Leaves
from wagma_jax.exchange.rounds import RoundsEngine
from wagma_jax.exchange.staging import Staging
from wagma_jax.exchange.storage import Buffers


class Alone:
    """Passes such rounds, and publishes what they have not published before the worker rests.

    Args:
        engine: The worker's.
        staging: Packs its models.
        finite: Maps a packed model to itself, or to None if it is not to be published.

    Attributes:
        always: Whether all groups are of one.
    """

    def __init__(self, engine: RoundsEngine, staging: Staging, finite: Callable[[Buffers], Buffers | None]):
        self._engine, self._staging, self._finite = engine, staging, finite
        self.always = engine.machine.plan.schedule.group_size == 1
        self._newest: tuple[int, Leaves] | None = None  # the newest such round and its model, while it is not published

    def passes(self, leaves: Leaves, counter: int, lasting: bool) -> int | None:
        """Arrives at the next round if there is nothing to do in it.

        Only where all groups are of one, ``always``: a group of several may need this round's publication.

        Args:
            leaves: Of W', which is also the result.
            counter: The round of the call before.
            lasting: Whether they outlive the call; those that a jitted step hands in do not.

        Returns:
            The round, or None.
        """
        t = self._engine.pass_alone(counter) if lasting else None
        if t is None:
            self._newest = None
        else:  # NumPy arrays are their owner's, who may change them
            self._newest = t, self._staging.averaged_alone(leaves)
        return t

    def publish(self) -> int | None:
        """Publishes the newest model, so that the sync rounds of others include it while this worker rests.

        Unless it was donated meanwhile, or is not finite: then what was published before stands for it.

        Returns:
            Its round, if it is what the last call has returned, and is published now.
        """
        newest, self._newest = self._newest, None
        if newest is None:
            return None
        t, leaves = newest
        if any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in leaves):
            return None
        model = self._finite(self._staging.pack(leaves))
        if model is None:
            return None
        self._engine.publish(t, model)
        return t
