"""The `wagma` command: its subcommands and their options. What they do is elsewhere."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

from wagma_jax import doctor, launch


class _Parser(argparse.ArgumentParser):
    """Says what can be written where argparse only says what cannot."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n{self.format_usage()}")


def _launch(options: argparse.Namespace, command: Sequence[str], parser: _Parser) -> int:
    try:
        job = launch.Job(
            command=tuple(command),
            num_ranks=options.n,
            hosts=_hosts(options),
            interface=options.interface,
            mpirun_args=_words(options.mpirun_args),
            prefix=options.prefix,
        )
    except ValueError as error:
        parser.error(str(error))
    try:
        if options.dry_run:
            print(launch.describe(job))
            return 0
        return launch.run(job)
    except launch.LaunchError as error:
        print(f"wagma launch: {error}", file=sys.stderr)
        return error.status


def _hosts(options: argparse.Namespace) -> tuple[launch.Host, ...]:
    return launch.parse_hosts(options.hosts) if options.hosts is not None else ()


def _add_hosts(parser: _Parser) -> None:
    add = parser.add_argument
    add("--hosts", metavar="NAME:SLOTS,...", help="machines and the ranks each takes; this machine if left out")
    add("--interface", metavar="SUBNET", help="network between the hosts, for example 10.0.0.0/24, or its interface")


def _words(text: str) -> tuple[str, ...]:
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


def _add_launch(commands):
    parser = commands.add_parser(
        "launch",
        help="run a command on several ranks under the installed MPI's mpirun",
        usage="wagma launch -n RANKS [options] -- COMMAND [ARGUMENT ...]",
        description="Runs COMMAND on several ranks under the mpirun of the installed MPI. Every line of output begins "
        "with its rank. Signals are passed on to the ranks: the first SIGINT, SIGTERM or SIGHUP lets them save and "
        "end, the second kills them. The exit code is that of the first rank that failed.",
    )
    add = parser.add_argument
    add("-n", type=_integer, metavar="RANKS", help="number of ranks; with --hosts, all their slots")
    _add_hosts(parser)
    add("--mpirun-args", metavar="WORDS", default="", help='further arguments: --mpirun-args="--display map"')
    add("--no-prefix", dest="prefix", action="store_false", help="do not begin lines with the rank")
    add("--dry-run", action="store_true", help="print the command and the variables it adds; start nothing")

    parser.set_defaults(run=_launch, parser=parser)


def _doctor(options: argparse.Namespace, command: Sequence[str], parser: _Parser) -> int:
    try:
        if command:
            raise ValueError(f"expected no command, got {command[0]!r}: leave -- and what comes after it out")
        return doctor.run(
            options.n,
            _hosts(options),
            options.interface,
            _words(options.mpirun_args),
            options.straggle,
        )
    except ValueError as error:
        parser.error(str(error))


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected seconds, got {text!r}: write for example 1.0") from None


def _add_doctor(commands):
    parser = commands.add_parser(
        "doctor",
        help="check this installation, between ranks as well",
        description="Checks this installation in less than a minute and says what to do about what fails: versions, "
        "MPI and its threads, mpi4jax, memory settings; then between ranks latency and bandwidth, whether averages "
        "are right, and whether workers on time do not wait for a late one. The exit code is 0 if nothing failed.",
    )
    add = parser.add_argument
    add("-n", type=_integer, metavar="RANKS", help="number of ranks, 4 if left out; with --hosts, all their slots")
    _add_hosts(parser)
    add("--mpirun-args", metavar="WORDS", default="", help='further arguments: --mpirun-args="--mca pml ob1"')
    add("--straggle", type=_seconds, metavar="SECONDS", default=1.0, help="how late one rank is once (1.0)")
    parser.set_defaults(run=_doctor, parser=parser)


def _ledger(options: argparse.Namespace, command: Sequence[str], parser: _Parser) -> int:
    if command:
        parser.error(f"expected nothing after --, got {command[0]!r}: wagma ledger takes a folder")
    from wagma_jax import ledger  # the other subcommands start faster without it

    try:
        ledgers = ledger.read(options.folder)
    except (ValueError, OSError) as error:
        print(f"wagma ledger: {error}", file=sys.stderr)
        return 1
    try:
        ledger.report(ledgers, options.folder if options.out is None else options.out)
    except BrokenPipeError:  # whoever reads has seen enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, ModuleNotFoundError) as error:
        print(f"wagma ledger: {error}", file=sys.stderr)
        return 1
    return 0


def _add_ledger(commands):
    parser = commands.add_parser(
        "ledger",
        help="say who waited for whom in a run, and how stale contributions were",
        description="Reads the ledgers that the ranks of a run have written to DIR: prints who waited for whom, how "
        "stale contributions were and which ranks are slow; saves a picture, ledger.png, and a trace for "
        "https://ui.perfetto.dev, trace.json.",
    )
    add = parser.add_argument
    add("folder", metavar="DIR", help="the folder with ledger-RANK.jsonl of all ranks")
    add("--out", metavar="DIR", help="where the picture and the trace go; beside the ledgers if left out")
    parser.set_defaults(run=_ledger, parser=parser)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the `wagma` command; its exit code."""
    words, command = _split(list(sys.argv[1:] if arguments is None else arguments))
    parser = _Parser(prog="wagma", description="Wait-avoiding group model averaging for JAX.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_launch(commands)
    _add_ledger(commands)
    _add_doctor(commands)
    options, unknown = parser.parse_known_args(words)
    if unknown:
        options.parser.error(
            f"expected options of wagma before --, got {unknown[0]!r}: put the command to run and its options "
            "after --; wagma launch --help lists the others"
        )
    return options.run(options, command, options.parser)


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Our words, and those of the command to run."""
    if "--" not in words:
        return words, []
    place = words.index("--")
    return words[:place], words[place + 1 :]


if __name__ == "__main__":
    sys.exit(main())
