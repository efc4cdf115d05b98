"""Fields of the options of training scripts: how they are spelled, and what a resumed run may change."""

import dataclasses
from collections.abc import Callable, Mapping
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


def declared(options: type) -> dict[str, Mapping[str, Any]]:
    """What :func:`option` has said of each field of a class of options, by its name.

    A subclass may give a field of its base another default without saying the rest again.
    """

    def said(name: str) -> Mapping[str, Any]:
        for kind in options.__mro__:
            field = vars(kind).get("__dataclass_fields__", {}).get(name)
            if field is not None and "resume" in field.metadata:
                return field.metadata
        return {"resume": "fixed", "mpi_only": False, "same": None}

    return {field.name: said(field.name) for field in dataclasses.fields(options)}


class Checked:
    """Options that can be checked. Each class of options checks its own fields, and calls ``super().check()``."""

    def check(self) -> None:
        """Raises ValueError, which names the option of the command line, for what is out of range or contradictory."""


def flag(name: str) -> str:
    """How the command line spells an option."""
    return f"--{name.replace('_', '-')}"
