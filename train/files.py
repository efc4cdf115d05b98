"""Writes files so that an interruption leaves either the old file or the new one."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes a text file under another name, and renames it when it is whole."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    os.replace(fresh, path)
