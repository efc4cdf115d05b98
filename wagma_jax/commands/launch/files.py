"""The number of files that a process may open: ranks take several each, of the launcher's and of mpirun's."""

import contextlib

EACH = 4  # of the launcher and of mpirun, for one rank: stdout and stderr
OTHERS = 64  # what they open besides


def needed(num_ranks: int) -> int:
    """How many files the launcher, and mpirun, open for so many ranks on this machine."""
    return EACH * num_ranks + OTHERS


def allow(count: int) -> int | None:
    """Raises this process's limit to ``count`` open files, as far as the system lets it.

    Returns:
        The limit if it stays below; None if ``count`` files may be opened.
    """
    try:
        import resource
    except ImportError:  # not on this system
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return None
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return soft if soft < count else None
