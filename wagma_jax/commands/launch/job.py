"""What to start and where."""

import dataclasses
import ipaddress
import re


class LaunchError(Exception):
    """Why nothing was started, for the user; ``status`` is the exit code."""

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Host:
    """A machine and the number of ranks that it takes."""

    name: str
    slots: int = 1

    def __str__(self):
        return f"[{self.name}]:{self.slots}" if ":" in self.name else f"{self.name}:{self.slots}"


def _is_ipv6(word: str) -> bool:
    """Whether a word is an IPv6 address, or was meant to be one, with slots behind it."""
    try:
        return ipaddress.ip_address(word.strip()).version == 6
    except ValueError:
        return word.count(":") > 2


def parse_hosts(text: str) -> tuple[Host, ...]:
    """Hosts from ``NAME[:SLOTS],...``; an IPv6 address stands in brackets.

    Raises:
        ValueError: Malformed, or a host is named twice.
    """
    hosts = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*(?:\[([0-9a-fA-F:.]*:[^\s,=/\]]*)\]|([^\s:,=/\[\]]+))(?::([0-9]+))?\s*", word)
        if not match and _is_ipv6(word):
            raise ValueError(
                f"--hosts takes IPv6 addresses in brackets, got {word!r}: write for example "
                "--hosts [fd00::1]:2,[fd00::2]:2"
            )
        if not match or (match[3] and int(match[3]) < 1):
            raise ValueError(
                f"--hosts must be NAME:SLOTS,NAME:SLOTS,... with at least 1 slot each, got {text!r} "
                f"(at {word!r}): write for example --hosts h1:2,h2:2"
            )
        hosts.append(Host(match[1] or match[2], int(match[3] or 1)))
    names = [host.name for host in hosts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"--hosts must name each host once, got {twice[0]!r} twice: add up its slots")
    return tuple(hosts)


def total_slots(hosts: tuple[Host, ...]) -> int:
    """The number of ranks that all hosts take together."""
    return sum(host.slots for host in hosts)


@dataclasses.dataclass(frozen=True)
class Job:
    """What to start and where.

    Attributes:
        command: The program and its arguments; every rank runs it.
        num_ranks: How many; None with ``hosts`` means all their slots.
        hosts: Where; empty means this machine (or what a batch system has allocated).
        interface: The subnet (``10.0.0.0/24``) or the network interface between the hosts; None lets MPI choose.
        mpirun_args: Further arguments for mpirun. An option given here replaces ours of the same name.
        prefix: Whether each line of output begins with its rank.

    Raises:
        ValueError: Something is missing, out of range, or does not fit together.
    """

    command: tuple[str, ...]
    num_ranks: int | None = None
    hosts: tuple[Host, ...] = ()
    interface: str | None = None
    mpirun_args: tuple[str, ...] = ()
    prefix: bool = True

    def __post_init__(self):
        if not self.command:
            raise ValueError(
                "expected a command to run, got none: put it after --, for example wagma launch -n 4 -- python train.py"
            )
        slots = total_slots(self.hosts)
        if self.num_ranks is None and not self.hosts:
            raise ValueError("expected the number of ranks, got none: pass -n, for example -n 4, or --hosts h1:2,h2:2")
        if self.num_ranks is None:
            object.__setattr__(self, "num_ranks", slots)
        elif self.num_ranks < 1:
            raise ValueError(f"-n must be at least 1, got {self.num_ranks}: pass the number of ranks, for example -n 4")
        elif self.hosts and self.num_ranks != slots:
            raise ValueError(
                f"-n must be the sum of the slots in --hosts, {slots}, got {self.num_ranks}: "
                "leave out -n, or change the slots"
            )

    @property
    def size(self) -> int:
        """The number of ranks."""
        assert self.num_ranks is not None
        return self.num_ranks

    @property
    def ranks_per_host(self) -> int:
        """Ranks on the host that has most of them."""
        return max((host.slots for host in self.hosts), default=self.size)
