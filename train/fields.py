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
        resume: Whether a resumed run may change it: never ("fixed"), freely ("free"), or at the price of starting again
            from the consensus model ("restarts").
        mpi_only: Whether it only has a meaning over MPI.
        same: Maps a value to the part of it that must not change; None: the whole value.
    """
    return dataclasses.field(default=default, metadata={"resume": resume, "mpi_only": mpi_only, "same": same})


class Checked:
    """Options that can be checked. Each class of options checks its own fields, and calls ``super().check()``."""

    def check(self) -> None:
        """Raises ValueError, which names the option of the command line, for what is out of range or contradictory."""


def flag(name: str) -> str:
    """How the command line spells an option."""
    return f"--{name.replace('_', '-')}"
