"""How many CPUs this process may use."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path


def usable() -> int:
    """Logical CPUs on which this process may run."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # elsewhere than on Linux
        return os.cpu_count() or 1


def cores(root: str = "/") -> int:
    """Physical cores that this process may use, within a container's quota of CPU time.

    Two hardware threads of a core count once, as for mpirun.

    Args:
        root: The folder that holds ``proc`` and ``sys``.
    """
    limit = quota(root)
    return _physical() if limit is None else max(1, min(_physical(), int(limit)))


def _physical() -> int:
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:
        return usable()
    siblings = set()
    for cpu in cpus:
        try:
            siblings.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            return len(cpus)
    return len(siblings)


def threads(environment: Mapping[str, str] = os.environ) -> int:
    """Threads that XLA uses for computations on the CPU: ``NPROC`` where it is a number, as XLA reads it."""
    try:
        return int(environment.get("NPROC", ""))
    except ValueError:
        return usable()


def quota(root: str = "/") -> float | None:
    """CPU seconds a second that the control groups of this process grant; None if they grant all.

    Args:
        root: The folder that holds ``proc`` and ``sys``.
    """
    quotas = [found for folder in _control_groups(Path(root)) if (found := _quota_of(folder)) is not None]
    return min(quotas, default=None)


def _control_groups(root: Path) -> Iterator[Path]:
    """The folders of this process's control groups, of both versions, and of those above them."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    top = root / "sys/fs/cgroup"
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, place = rest.partition(":")
        if number == "0":
            mounts = [top, top / "unified"]
        elif "cpu" in controllers.split(","):
            mounts = [top / controllers, top / "cpu"]
        else:
            continue
        for mount in mounts:
            folder = mount / place.lstrip("/")
            while folder != mount and mount in folder.parents:
                yield folder
                folder = folder.parent
            yield mount


def _quota_of(folder: Path) -> float | None:
    """That of one control group; None if it has none."""
    try:
        time, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            time = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        return int(time) / int(period) if int(time) > 0 else None
    except (ValueError, ZeroDivisionError):  # "max"
        return None
