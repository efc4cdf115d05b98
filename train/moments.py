"""The optimizer's moments, as far as workers average them together with their models.

Local SGD and WAGMA-SGD average models; momentum, and the moments of Adam, stay each worker's own by default. Where they
are averaged they go through the exchange as a part of the model, with the same groups, sync rounds and merges. Every
merge is a mean with weights that are not negative, so that no second moment can get below zero.
"""

from typing import Any, Literal

import optax

from wagma_jax.averaging import PolicyFunction, sync_under

Moments = Literal["own", "sync", "round", "second-sync", "second-round"]
KEY = "moments"
"""Where they are in the tree that is exchanged."""

_ALL, _SECOND = ("mu", "nu", "trace"), ("nu",)  # as optax names them: of Adam, and the momentum of SGD


def select(state: Any, which: Moments) -> dict[str, Any]:
    """The moments to be averaged, by optax's names for them.

    Args:
        state: Of an optax optimizer.
        which: Which of them, and when; "own": none.

    Raises:
        ValueError: The optimizer has none of those.
    """
    if which == "own":
        return {}
    names = _SECOND if which.startswith("second") else _ALL
    places = [(name, tree) for name in names for _, tree in optax.tree.get_all_with_path(state, name)]
    if not places or len(places) > len(dict(places)):
        raise ValueError(
            f"--moments {which} needs an optimizer with moments called {' or '.join(names)}, as those of optax are, "
            f"and one of each name, got {[name for name, _ in places] or 'none'}: use --moments own, or another "
            "optimizer"
        )
    return dict(places)


def replace(state: Any, averaged: dict[str, Any]) -> Any:
    """The optimizer's state with these moments in the place of its own."""
    return optax.tree.set(state, **averaged) if averaged else state


def policy(which: Moments) -> PolicyFunction | None:
    """Which leaves of an exchanged tree are averaged when, for an exchange; None: all in every round."""
    return sync_under(KEY) if which.endswith("sync") else None
