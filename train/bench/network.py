"""Two hosts on this machine that a slow wire joins: network namespaces and a pair of virtual Ethernet devices.

Needs root, iproute2 and unshare, on Linux. The token bucket of ``tc`` (tbf) limits the rate of both directions.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from train.bench.plan import Network

_BURST = "256kb"  # what may be sent at once; less, and a kernel without fine timers cannot reach high rates
_SSH_AGENT = "PRTE_MCA_plm_ssh_agent"  # how Open MPI's mpirun reaches another host


class NoNetworkError(Exception):
    """There can be no two hosts on this machine, and why."""


class Hosts(NamedTuple):
    """Two hosts.

    Attributes:
        names: Of their namespaces.
        addresses: On the wire between them.
        agent: The program that runs a command on the second, as ssh does.
    """

    names: tuple[str, str]
    addresses: tuple[str, str]
    agent: Path

    def launch(self, num_workers: int) -> list[str]:
        """Words for `wagma launch` that start half of the workers on each host, and let them meet on the wire."""
        here = num_workers - num_workers // 2
        slots = zip(self.addresses, (here, num_workers - here), strict=True)
        subnet = self.addresses[0].rpartition(".")[0] + ".0/24"
        hosts = ",".join(f"{address}:{count}" for address, count in slots)
        return ["--hosts", hosts, "--interface", subnet, "--mpirun-args=--mca pml ob1 --mca btl tcp,self"]

    def command(self, words: Sequence[str]) -> list[str]:
        """A command that runs another on the first host."""
        return ["sh", "-c", f"{on_host(self.names[0])} {shlex.quote(shlex.join(words))}"]

    def environment(self) -> dict[str, str]:
        """Variables of that command. Whatever the user has set for the transports of MPI would keep it off the wire."""
        kept = {name: value for name, value in os.environ.items() if not re.match("OMPI_MCA_(btl|pml|mtl)$", name)}
        return kept | {_SSH_AGENT: str(self.agent)}


def problem() -> str | None:
    """Why there can be no two hosts here, as far as that is known before one tries; None if nothing is in the way."""
    missing = [name for name in ("ip", "tc", "unshare") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} missing: install iproute2 and util-linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    return None


@contextlib.contextmanager
def two_hosts(network: Network) -> Iterator[Hosts]:
    """Makes the hosts and the wire, and removes them in the end.

    Raises:
        NoNetworkError: That is not possible here.
    """
    if (reason := problem()) is not None:
        raise NoNetworkError(reason)
    unique = os.getpid()
    names = f"wb{unique}a", f"wb{unique}b"  # also of the wire's ends: at most 15 characters
    subnet = f"10.{150 + unique % 50}.{unique // 50 % 256}"
    addresses = f"{subnet}.1", f"{subnet}.2"
    with contextlib.ExitStack() as stack:
        try:
            for name in names:
                _run("ip", "netns", "add", name)
                stack.callback(_run, "ip", "netns", "del", name)  # takes its end of the wire along
            ends = [("name", name, "netns", name) for name in names]
            _run("ip", "link", "add", *ends[0][1:], "type", "veth", "peer", *ends[1])
            for name, address in zip(names, addresses, strict=True):
                _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", name)
                _run("ip", "-n", name, "link", "set", name, "up")
                _run("ip", "-n", name, "link", "set", "lo", "up")
                limit = ("rate", network.rate, "burst", _BURST, "latency", network.latency)
                _run("tc", "-n", name, "qdisc", "add", "dev", name, "root", "tbf", *limit)
        except subprocess.CalledProcessError as error:
            raise NoNetworkError(f"{shlex.join(error.cmd)}: {error.stderr.strip()}") from None
        agent = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "agent"
        # as ssh does it: the name of the host, then the command, which finds none of our variables
        agent.write_text(f'#!/bin/sh\nshift\nexec env -i PATH="$PATH" HOME="$HOME" {on_host(names[1])} "$*"\n')
        agent.chmod(0o755)
        yield Hosts(names, addresses, agent)


def on_host(name: str) -> str:
    """The beginning of a shell command that runs what follows it on a host."""
    return f"ip netns exec {name} unshare --uts sh -c 'hostname {name} && eval \"$0\"'"


def _run(*words: str) -> None:
    subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
