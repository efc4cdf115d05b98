"""The command line: ``python -m benchmarks.exchange SECTION``, on every rank."""

import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import jax
import tyro

import benchmarks.exchange as package
from benchmarks.exchange.idle import Idle
from benchmarks.exchange.local import Local
from benchmarks.exchange.ranks import World
from benchmarks.exchange.rotating import Rotating
from benchmarks.exchange.section import Section
from benchmarks.exchange.sizes import Sizes
from benchmarks.exchange.slow import Slow
from benchmarks.exchange.straggler import Straggler

if TYPE_CHECKING:
    from mpi4py import MPI

PROGRAM = "python -m benchmarks.exchange"

Choice = (
    Annotated[Sizes, tyro.conf.subcommand("sizes")]
    | Annotated[Straggler, tyro.conf.subcommand("straggler")]
    | Annotated[Rotating, tyro.conf.subcommand("rotating")]
    | Annotated[Slow, tyro.conf.subcommand("slow")]
    | Annotated[Idle, tyro.conf.subcommand("idle")]
    | Annotated[Local, tyro.conf.subcommand("local")]
)


def parse(words: Sequence[str] | None = None) -> Section:
    """A section with its options, from the words of a command line; None: this program's.

    Raises:
        SystemExit: The words make no sense, or ask for help.
    """
    config = (tyro.conf.OmitSubcommandPrefixes,)
    return tyro.cli(Choice, prog=PROGRAM, args=words, description=package.__doc__, config=config)


def main(words: Sequence[str] | None = None, comm: "MPI.Intracomm | None" = None) -> None:
    """Runs a section on all ranks, or on those of a communicator. An error on one rank ends all of them."""
    section = parse(words)
    jax.config.update("jax_platforms", "cpu")
    try:
        world = World(comm)
    except ValueError as error:
        sys.exit(f"{PROGRAM}: {error}")
    try:
        section.run(world)
        world.comm.Barrier()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        world.comm.Abort(1)


if __name__ == "__main__":
    main()
