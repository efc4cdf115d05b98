"""The options of `wagma doctor`."""

import argparse
from collections.abc import Sequence

from wagma_jax.commands import parsing
from wagma_jax.commands.doctor.checks import run


def add(commands) -> None:
    """Adds the command to those of `wagma`."""
    parser = commands.add_parser(
        "doctor",
        help="check this installation, between ranks as well",
        description="Checks this installation in less than a minute and says what to do about what fails: versions, "
        "MPI and its threads, mpi4jax, memory settings; then, between ranks, GPUs, latency and bandwidth, whether "
        "averages are right, and whether workers on time do not wait for a late one. The exit code is 0 if nothing "
        "failed.",
    )
    parsing.add_places(parser, "number of ranks, 4 if left out; with --hosts, all their slots", "--mca pml ob1")
    parser.add_argument(
        "--straggle", type=parsing.seconds, metavar="SECONDS", default=1.0, help="how late one rank is, once (1.0)"
    )
    parser.set_defaults(run=_run, parser=parser)


def _run(options: argparse.Namespace, command: Sequence[str], parser: parsing.Parser) -> int:
    try:
        if command:
            raise ValueError(f"expected no command, got {command[0]!r}: leave out -- and what follows it")
        return run(options.n, parsing.hosts(options), options.interface, parsing.mpirun_args(options), options.straggle)
    except ValueError as error:
        parser.error(str(error))
