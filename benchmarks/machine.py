"""What a result depends on beside the code: versions, the machine, and variables that were set."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from typing import Any


def describe(packages: Sequence[str], prefixes: tuple[str, ...]) -> dict[str, Any]:
    """Describes this machine, for JSON.

    Args:
        packages: Whose versions are given.
        prefixes: How the names of the environment variables begin that are given.
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **{package: importlib.metadata.version(package) for package in packages},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "environment": {
            name: value
            for name, value in os.environ.items()
            if name.startswith(prefixes) and not name.endswith("_wdir")
        },
    }
