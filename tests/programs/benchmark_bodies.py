"""Every section of the benchmark of the exchange, once and tiny."""

import contextlib
import io

from mpi4py import MPI

from benchmarks.exchange.__main__ import main
from benchmarks.exchange.ranks import World

SECTIONS = (
    "sizes --sizes 4K --dtypes bfloat16 --repeats 2",
    "straggler --floats 1000 --late-seconds 0.15 --repeats 1 --step-seconds 0.01",
    "rotating --floats 1000 --rounds 4 --sync-period 4 --repeats 1 --step-seconds 0.005 --late-seconds 0.01",
    "slow --floats 1000 --rounds 8 --sync-period 4 --repeats 1 --step-seconds 0.005",
    "idle --floats 1000 --rounds 2 --step-seconds 0.005 --seconds 0.1 --activations 2 --repeats 1 --memory 40K "
    "--late-seconds 0.02",
    "local --floats 1000 --steps 5 --repeats 2",
)


def sections(comm, out):
    """Writes results to a folder; what was printed."""
    message = ""
    try:
        World(MPI.COMM_SELF)
    except ValueError as error:
        message = str(error)
    assert "expected at least 2 ranks, got 1: start with wagma launch" in message, message
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for words in SECTIONS:
            main([*words.split(), "--out", str(out)], comm)
    return printed.getvalue()
