"""Fields of the options of training scripts: how they are spelled, and what a resumed run may change."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

Resume = Literal["fixed", "restarts", "free"]


def option(
    default: Any, *, resume: Resume = "fixed", mpi_only: bool = False, same: Callable[[Any], Any] | None = None
) -> Any:
    """A field of an options class.

    Args:
        default: Its default.
        resume: Whether a resumed run may change it: never ("fixed"), at the price of starting again from the consensus
            model ("restarts"), or as it likes ("free").
        mpi_only: Whether it has a meaning over MPI alone.
        same: Maps a value to what must not change; None: the value itself.
    """
    return dataclasses.field(default=default, metadata={"resume": resume, "mpi_only": mpi_only, "same": same})


def flag(name: str) -> str:
    """How the command line spells an option."""
    return f"--{name.replace('_', '-')}"
