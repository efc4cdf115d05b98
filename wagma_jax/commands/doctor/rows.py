"""One line of the doctor's table."""

import dataclasses
from typing import Literal

State = Literal["pass", "warn", "fail", "skip"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: What was checked.
        state: "fail" makes the exit code 1, "warn" does not; "skip" means that the check needs one that failed.
        text: What was found; for failures and warnings also what was expected.
        remedy: What to do about it, naming a command.
    """

    name: str
    state: State
    text: str
    remedy: str = ""

    def __post_init__(self):
        assert bool(self.remedy) == (self.state in ("warn", "fail")), self
