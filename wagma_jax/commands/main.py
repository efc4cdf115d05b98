"""The entry point of the `wagma` command."""

import os
import signal
import sys
from collections.abc import Sequence

from wagma_jax import descriptors
from wagma_jax.commands import ledger
from wagma_jax.commands.doctor import command as doctor
from wagma_jax.commands.launch import command as launch
from wagma_jax.commands.parsing import Parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the `wagma` command.

    Args:
        arguments: Those of the command line if left out.

    Returns:
        The exit code.
    """
    descriptors.open_standard()
    os.environ.setdefault("HOME", _home())  # Open MPI does not start without
    words, command = _split(list(sys.argv[1:] if arguments is None else arguments))
    parser = Parser(prog="wagma", description="Wait-avoiding group model averaging for JAX.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (launch, ledger, doctor):
        module.add(commands)
    options, unknown = parser.parse_known_args(words)
    if unknown:
        options.parser.error(
            f"expected options of wagma before --, got {unknown[0]!r}: put the command to run and its options "
            "after --; wagma launch --help lists the others"
        )
    try:
        return options.run(options, command, options.parser)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever reads has seen enough, as head has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _home() -> str:
    """This user's folder; ``/`` for a user whom the system does not know, as in containers."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return "/"


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Our words, and those of the command to run."""
    if "--" not in words:
        return words, []
    place = words.index("--")
    return words[:place], words[place + 1 :]
