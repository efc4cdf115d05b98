"""Starts runs with a process for each worker from another program."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from train.fields import flag


def command(module: str, num_workers: int, words: Sequence[str], launch: Sequence[str] = ()) -> list[str]:
    """The command that trains under `wagma launch`.

    Args:
        module: Of the workload: "train.NAME".
        num_workers: How many processes.
        words: Of the workload's command line.
        launch: Further words for `wagma launch`.
    """
    launcher = [sys.executable, "-m", "wagma_jax", "launch", "-n", str(num_workers), "--no-prefix", *launch, "--"]
    return [*launcher, sys.executable, "-m", module, *words]


def start(module: str, num_workers: int, options: Mapping[str, Any]) -> int:
    """Trains under `wagma launch`; its output goes where this program's goes.

    Args:
        module: Of the workload: "train.NAME".
        num_workers: How many processes.
        options: Values by the names of the workload's options.

    Returns:
        The exit code.
    """
    words = [str(word) for name, value in options.items() for word in (flag(name), value)]
    return subprocess.run(command(module, num_workers, words), check=False).returncode
