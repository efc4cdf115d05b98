"""All checks in their order: what needs no MPI first; a check whose precondition failed is skipped."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from wagma_jax.commands.doctor import between_ranks, installation, platforms, printing, probes, surroundings
from wagma_jax.commands.doctor.ranks import LIMITS, Ranks
from wagma_jax.commands.doctor.rows import Row
from wagma_jax.commands.launch.environment import settings
from wagma_jax.commands.launch.job import Host, Job, total_slots
from wagma_jax.commands.launch.mpi import Mpi
from wagma_jax.cpus import cores


def run(
    num_ranks: int | None = None,
    hosts: Sequence[Host] = (),
    interface: str | None = None,
    mpirun_args: Sequence[str] = (),
    straggle_seconds: float = 1.0,
    *,
    file: TextIO | None = None,
    limits: Mapping[str, float] = LIMITS,
) -> int:
    """Checks the installation and prints a table, each line as soon as it is known.

    Args:
        num_ranks: Ranks to start; None: all slots of ``hosts``, or 4.
        hosts: Where; empty means this machine (or what a batch system has allocated).
        interface: The network between the hosts, as for `wagma launch`.
        mpirun_args: Further arguments for mpirun.
        straggle_seconds: How late the last rank is, once.
        file: Where to print; stdout if left out.
        limits: Seconds for each step between ranks, see ``LIMITS``.

    Returns:
        The exit code: 0 if nothing failed (warnings do not count), else 1.

    Raises:
        ValueError: An argument is out of range.
    """
    slots = total_slots(tuple(hosts))
    size = num_ranks if num_ranks is not None else slots if hosts else 4
    if size < 2:
        raise ValueError(f"expected at least 2 ranks, since one has no partner, got {size}: pass for example -n 2")
    if not 0.2 <= straggle_seconds <= 20:
        raise ValueError(f"--straggle must be between 0.2 and 20 seconds, got {straggle_seconds:g}: pass for example 1")
    output: TextIO = file if file is not None else sys.stdout
    show, rows = printing.printer(output), []
    for row in _rows(Ranks(size, hosts, interface, mpirun_args, straggle_seconds, limits)):
        rows.append(row)
        show(row)
    count = {state: sum(row.state == state for row in rows) for state in ("pass", "warn", "fail", "skip")}
    print(
        f"\n{count['pass']} passed, {count['warn']} warned, {count['fail']} failed, {count['skip']} skipped",
        file=output,
        flush=True,
    )
    return int(count["fail"] > 0)


def _rows(ranks: Ranks) -> Iterator[Row]:
    yield installation.versions()
    yield platforms.judge_platforms(os.environ)
    job = Job(("true",), None if ranks.hosts else ranks.size, tuple(ranks.hosts))
    outcomes = probes.probe_all(settings(job, Mpi("", "", ""), os.environ, cores(), False))
    mpi, *others = installation.rows(outcomes)
    found = outcomes["MPI"].value
    yield mpi
    if isinstance(found, dict):
        problem = outcomes["MPI threads"].problem
        yield surroundings.judge_variables(Mpi(**found), os.environ, job.ranks_per_host, problem)
    else:
        yield Row("variables", "skip", "needs MPI")
    yield from others
    yield surroundings.judge_shared_memory(os.environ, job.ranks_per_host)
    yield from rows_between(ranks, outcomes)


def rows_between(ranks: Ranks, outcomes: Mapping[str, probes.Outcome]) -> Iterator[Row]:
    """The rows of what happens between ranks.

    Args:
        ranks: Which to start.
        outcomes: What the probes have found on this machine.
    """
    mpi, threads, mpi4jax = (outcomes[name].value for name in ("MPI", "MPI threads", "mpi4jax"))
    fit = not ranks.hosts or ranks.size == total_slots(tuple(ranks.hosts))
    if not fit:
        hosts, slots = ",".join(map(str, ranks.hosts)), total_slots(tuple(ranks.hosts))
        yield Row(
            "slots",
            "fail",
            f"expected --hosts to have as many slots as there are ranks, {ranks.size}, but {hosts} has {slots}",
            f"leave out -n, or change the slots: wagma doctor --hosts {hosts}",
        )
    needed = {"MPI": isinstance(mpi, dict), "slots": fit, "mpi4jax": mpi4jax, "MPI threads": threads}
    missing = [name for name, works in needed.items() if not works]
    if missing:
        names = ("ranks", "cores", "GPUs", "links", "exchange", "sync", "straggler")
        yield from (Row(name, "skip", f"needs {missing[0]}") for name in names)
        return
    yield from _rows_of_steps(ranks, has_threads=threads["level"] == threads["multiple"])


_JUDGES: Mapping[str, tuple[Sequence[str], Callable[[Any], Sequence[Row]]]] = {
    "links": (("links",), lambda result: [between_ranks.judge_links(result)]),
    "exchange": (("exchange", "sync"), between_ranks.judge_exchange),
    "straggler": (("straggler",), lambda result: [between_ranks.judge_straggler(result)]),
}
"""Step of ``checkup`` -> the names of its rows, and what makes them from its result."""


def _rows_of_steps(ranks: Ranks, has_threads: bool) -> Iterator[Row]:
    steps = list(_JUDGES) if has_threads else ["links"]
    here, results, problems = [], {}, {}
    left = steps
    while left:  # after a step that crashes or hangs, those behind it are run in new processes
        heard = ranks.run(left)
        here = here or heard.ranks
        results |= heard.results
        if heard.problem:
            problems[heard.step] = heard.problem
        if not heard.problem or heard.step in ("start", "end"):
            break
        left = left[left.index(heard.step) + 1 :]
    yield between_ranks.judge_start(ranks, here, problems.get("start"))
    if len(here) == ranks.size:
        yield between_ranks.judge_cores(here)
        yield between_ranks.judge_gpus(here)
    else:
        yield from (Row(name, "skip", "needs ranks") for name in ("cores", "GPUs"))
    for step, (names, judge) in _JUDGES.items():
        if step in results:
            yield from judge(results[step])
        elif step in problems:
            yield between_ranks.judge_problem(step, problems[step])
            yield from (Row(name, "skip", f"needs {step}") for name in names[1:])
        else:
            needed = "ranks" if step in steps else "MPI threads"
            yield from (Row(name, "skip", f"needs {needed}") for name in names)
    if "end" in problems:
        yield Row(
            "end",
            "fail",
            f"expected all ranks to end once they were done, but: {problems['end']}",
            f"see what {ranks.try_command()} says",
        )
