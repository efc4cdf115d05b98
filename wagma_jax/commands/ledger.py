"""The options of `wagma ledger`."""

import argparse
import sys
from collections.abc import Sequence

from wagma_jax.commands import parsing


def add(commands) -> None:
    """Adds the command to those of `wagma`."""
    parser = commands.add_parser(
        "ledger",
        help="say who waited for whom in a run, and how stale contributions were",
        description="Reads the ledgers that the ranks of a run have written to DIR: prints who waited for whom, how "
        "stale contributions were and which ranks are slow; saves a picture, ledger.png, and a trace for "
        "https://ui.perfetto.dev, trace.json.",
    )
    parser.add_argument("folder", metavar="DIR", help="the folder with ledger-RANK.jsonl of all ranks")
    parser.add_argument("--out", metavar="DIR", help="where the picture and the trace go; to DIR if left out")
    parser.set_defaults(run=_run, parser=parser)


def _run(options: argparse.Namespace, command: Sequence[str], parser: parsing.Parser) -> int:
    if command:
        parser.error(f"expected nothing after --, got {command[0]!r}: wagma ledger takes a folder")
    from wagma_jax import ledger  # the other commands start faster without it

    try:
        ledgers = ledger.read(options.folder)
    except (ValueError, OSError) as error:
        print(f"wagma ledger: {error}", file=sys.stderr)
        return 1
    try:
        ledger.report(ledgers, options.folder if options.out is None else options.out)
    except BrokenPipeError:
        raise
    except (OSError, ModuleNotFoundError) as error:
        print(f"wagma ledger: {error}", file=sys.stderr)
        return 1
    return 0
