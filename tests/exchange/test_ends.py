"""How a run ends that fails: real processes under the launcher."""

import importlib.util
import re
import time
from pathlib import Path

import pytest
from processes import ROOT, run_ranks

PROGRAM = ROOT / "tests" / "programs" / "exchange_ends.py"
WITHOUT = ROOT / "tests" / "programs" / "exchange_absent.py"
HANGS = 40.0  # seconds: those who do not fail would go on for 60

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="the extra mpi is not installed")


def run(num_ranks, *arguments, program=PROGRAM):
    """(exit status, output), after all processes have ended by themselves."""
    status, output = run_ranks(num_ranks, program, *arguments, timeout=200)
    ended = time.time()
    pids = re.findall(r"^\[\d\] pid (\d+)$", output, re.MULTILINE)
    assert len(pids) == num_ranks, output
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()], output
    for began in re.findall(r"ends at ([\d.]+)", output):
        assert ended - float(began) < HANGS, output
    return status, output


def raised(rank, output):
    """The last line of the rank's traceback."""
    lines = [line.removeprefix(f"[{rank}] ") for line in output.splitlines() if line.startswith(f"[{rank}] ")]
    assert "Traceback (most recent call last):" in lines, output
    return next(line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception): ", line))


def test_an_exception_ends_those_who_wait_and_those_who_compute():
    status, output = run(3, "exception")
    assert status == 1
    assert raised(1, output) == "LookupError: no more data"
    assert raised(0, output) == "wagma_jax.ExchangeError: rank 1 ended with LookupError: no more data"


@pytest.mark.parametrize("others", ["wait", pytest.param("compute", marks=pytest.mark.long)])
def test_the_exit_code_is_that_of_the_rank_which_began(others):
    status, output = run(2, f"exit_while_others_{others}")
    assert status == 3, output
    if others == "wait":
        assert raised(0, output).endswith("ExchangeError: rank 1 ended with SystemExit: 3")


def test_a_killed_rank_ends_all():
    status, output = run(2, "sigterm")
    assert status == 128 + 15, output
    assert "wagma launch: killed by signal 15 (Terminated)" in output


def test_a_rank_that_forgets_to_close_ends_all():
    status, output = run(2, "forgotten")
    assert status == 1, output
    assert raised(0, output).endswith("ExchangeError: rank 1 ended without close()")


def test_a_rank_that_is_stuck_is_named_and_ended():
    status, output = run(2, "stuck")
    assert status == 1, output
    # rank 1's engine may still serve a round before its trainer takes the GIL for ever
    assert re.fullmatch(
        r"TimeoutError: round \d has waited for \d+\.\d s: rank 1 does not answer: it is gone, or stuck in code that "
        r"holds Python's GIL",
        raised(0, output),
    ), output


def test_an_engine_that_fails_inside_an_exchange_ends_all():
    status, output = run(2, "inside")
    assert status == 1, output
    assert "MemoryError: no room for the sum\n" in output, "the cause"
    assert raised(1, output).endswith("ExchangeError: rank 1's exchange failed: MemoryError: no room for the sum")


def test_a_rank_that_fails_before_its_constructor_ends_all():
    status, output = run(2, "before")
    assert status == 1, output
    assert raised(1, output) == "LookupError: no data"


def test_a_rank_that_leaves_before_it_loads_the_exchange_ends_all():
    status, output = run(2, program=WITHOUT)
    assert status == 3, output
    assert "[1] wagma_jax: rank 1 has ended with exit code 3 before it had an exchange: all end\n" in output


def test_a_rank_that_fails_inside_its_constructor_ends_all():
    status, output = run(2, "inside_start")
    assert status == 1, output
    assert raised(1, output) == "MemoryError: no room for the sum"
    assert raised(0, output) == "wagma_jax.ExchangeError: rank 1 ended with MemoryError: no room for the sum"


def test_a_run_whose_failures_were_handled_ends_well():
    status, output = run(2, "handled")
    assert status == 0, output
    assert all(f"[{rank}] lives on\n" in output for rank in range(2)), output
