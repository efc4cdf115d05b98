"""The options of `wagma launch`."""

import argparse
import sys
from collections.abc import Sequence

from wagma_jax.commands import parsing
from wagma_jax.commands.launch.command_line import describe
from wagma_jax.commands.launch.job import Job, LaunchError
from wagma_jax.commands.launch.launcher import run


def add(commands) -> None:
    """Adds the command to those of `wagma`."""
    parser = commands.add_parser(
        "launch",
        help="run a command on several ranks under the installed MPI's mpirun",
        usage="wagma launch -n RANKS [options] -- COMMAND [ARGUMENT ...]",
        description="Runs COMMAND on several ranks under the mpirun of the installed MPI. Every line of output begins "
        "with its rank. Each rank sees one GPU of its host, unless CUDA_VISIBLE_DEVICES is set. Signals are passed on: "
        "the first SIGINT, SIGTERM or SIGHUP lets the ranks save and end, the second kills them. The exit code is that "
        "of the first rank that failed.",
    )
    parsing.add_places(parser, "number of ranks; with --hosts, all their slots", "--display map")
    parser.add_argument("--no-prefix", dest="prefix", action="store_false", help="do not begin lines with the rank")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the command and the variables it adds; start nothing"
    )
    parser.set_defaults(run=_run, parser=parser)


def _run(options: argparse.Namespace, command: Sequence[str], parser: parsing.Parser) -> int:
    try:
        job = Job(
            command=tuple(command),
            num_ranks=options.n,
            hosts=parsing.hosts(options),
            interface=options.interface,
            mpirun_args=parsing.mpirun_args(options),
            prefix=options.prefix,
        )
    except ValueError as error:
        parser.error(str(error))
    try:
        if options.dry_run:
            print(describe(job))
            return 0
        return run(job)
    except LaunchError as error:
        print(f"wagma launch: {error}", file=sys.stderr)
        return error.status
