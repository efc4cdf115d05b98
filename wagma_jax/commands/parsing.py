"""Command lines: what the commands of `wagma` have in common."""

import argparse
import shlex
from typing import NoReturn

from wagma_jax.commands.launch.job import Host, parse_hosts


class Parser(argparse.ArgumentParser):
    """Adds to an error what can be written instead."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Ends the program with the message and the usage."""
        self.exit(2, f"{self.prog}: error: {message}\n{self.format_usage()}")


def add_places(parser: Parser, ranks_help: str, mpirun_example: str) -> None:
    """Adds the options that say how many ranks to start, where, and how."""
    add = parser.add_argument
    add("-n", type=_integer, metavar="RANKS", help=ranks_help)
    add("--hosts", metavar="NAME:SLOTS,...", help="machines and the ranks each takes; this machine if left out")
    interface_help = "network between the hosts, for example 10.0.0.0/24, or its interface"
    add("--interface", type=_interface, metavar="SUBNET", help=interface_help)
    add("--mpirun-args", metavar="WORDS", default="", help=f'further arguments: --mpirun-args="{mpirun_example}"')


def hosts(options: argparse.Namespace) -> tuple[Host, ...]:
    """The value of ``--hosts``; empty if it was left out.

    Raises:
        ValueError: It is malformed.
    """
    return parse_hosts(options.hosts) if options.hosts is not None else ()


def mpirun_args(options: argparse.Namespace) -> tuple[str, ...]:
    """The words in ``--mpirun-args``.

    Raises:
        ValueError: A quotation mark is not closed.
    """
    text = options.mpirun_args
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError(
            f"--mpirun-args must be words for a shell, got {text!r} ({error}): close all quotation marks"
        ) from None


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number of ranks, got {text!r}: write for example -n 4") from None


def _interface(text: str) -> str:
    if ":" in text:  # mpirun would say that it finds no network
        raise argparse.ArgumentTypeError(
            f"expected a subnet of IPv4 or the name of an interface, got {text!r}: MPI selects no networks by subnets "
            "of IPv6, so write for example --interface eth0"
        )
    return text


def seconds(text: str) -> float:
    """Parses an option's seconds."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected seconds, got {text!r}: write for example 1.0") from None
