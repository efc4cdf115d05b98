"""Starts runs with a process for each worker from another program."""

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from train.fields import flag


def start(module: str, num_workers: int, options: Mapping[str, Any]) -> int:
    """Trains under `wagma launch`; its output goes where this program's goes.

    Args:
        module: Of the workload: "train.NAME".
        num_workers: How many processes.
        options: Values by the names of the workload's options.

    Returns:
        The exit code.
    """
    launcher = [sys.executable, "-m", "wagma_jax", "launch", "-n", str(num_workers), "--no-prefix", "--"]
    words = [str(word) for name, value in options.items() for word in (flag(name), value)]
    return subprocess.run([*launcher, sys.executable, "-m", module, *words], check=False).returncode
