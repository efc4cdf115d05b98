"""Writes files so that an interruption leaves either the old file or the new one."""

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file under another name, and renames it when it is whole."""
    fresh = path.with_name(path.name + ".new")
    if isinstance(content, bytes):
        fresh.write_bytes(content)
    else:
        fresh.write_text(content)
    os.replace(fresh, path)
