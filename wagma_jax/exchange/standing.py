"""Where a worker stands while all stand still: what a checkpoint keeps of an exchange."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from wagma_jax.schedule import integer

MOST_ROUNDS = 1 << 30


class Standing(NamedTuple):
    """Where a worker stands.

    Attributes:
        round: The newest complete round, -1 before the first; the same on all workers.
        base: The newest round whose result the worker's model contains.
        version: The round that its publication was published for.
        published: The averaged leaves of the publication; None where they are those of the worker's model.
        kept: What the algorithm alone keeps, by name.
    """

    round: int
    base: int
    version: int
    published: Sequence[Any] | None = None
    kept: Mapping[str, Any] = {}

    def saved(self) -> dict[str, Any]:
        """For a checkpoint; ``published`` only where there is one."""
        own = {name: value for name, value in self._asdict().items() if value is not None and name != "kept"}
        return own | dict(self.kept)


def restore(state: Mapping[str, Any], kept: Collection[str] = ()) -> Standing:
    """What ``Standing.saved`` has returned, perhaps with integers as arrays.

    Args:
        state: It.
        kept: The names of what the algorithm alone may keep.

    Raises:
        ValueError: It is something else.
    """
    problem = f"state must be what state() of such an exchange returned, got {state!r:.200}"
    names = ("round", "base", "version")
    if not isinstance(state, Mapping) or not set(names) <= set(state) <= {*names, "published", *kept}:
        raise ValueError(problem)
    round_, base, version = (integer(f"state[{name!r}]", state[name], "pass it as it was") for name in names)
    if not (-1 <= round_ < MOST_ROUNDS and -1 <= base <= round_ and -1 <= version <= round_):
        raise ValueError(problem)
    others = {name: state[name] for name in kept if name in state}
    return Standing(round_, base, version, state.get("published"), others)
