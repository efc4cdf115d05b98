"""What an engine knows of the machine that it runs."""

from typing import Any, Protocol

from wagma_jax.protocol.lifecycle import Life


class MachineState(Protocol):
    """What every machine's state tells; immutable."""

    @property
    def round(self) -> int:
        """The current round: all before it are complete here."""
        ...

    @property
    def arrived(self) -> int:
        """The newest round that the own trainer has arrived at."""
        ...

    @property
    def life(self) -> Life:
        """Rest, failure and the end."""
        ...


class Machine(Protocol):
    """A pure state machine of one worker."""

    @property
    def worker(self) -> int:
        """Whose it is."""
        ...

    @property
    def num_workers(self) -> int:
        """P."""
        ...

    @property
    def lifecycle(self) -> Any:
        """The rules of its rest, failure and end: a ``Lifecycle``."""
        ...

    def step(self, state: Any, event: Any) -> tuple[Any, list[Any]]:
        """The state after an event, and what to do, in order."""
        ...

    def waits_for(self, state: Any) -> tuple[int, ...]:
        """The workers without which this engine does not go on; itself, if it is its own trainer that has to come.

        They may be asked in turn: an engine need not know more than its part.
        """
        ...
