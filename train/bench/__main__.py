"""``python -m train.bench PLAN.toml``: compares algorithms, and writes a table and pictures."""

import dataclasses
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from train import console, results
from train.bench import cases as cases_of
from train.bench import collecting, drawing, plan, report, running, tuning
from train.bench.cases import Case
from train.bench.estimate import Estimates, shown
from train.bench.plan import Plan

_PROG = "python -m train.bench"


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare algorithms on the same work, data order and delays, in real processes.

    What is compared is in a plan, a TOML file, of which the options below select a part. Without a plan, name workloads
    and algorithms. Words after -- are options of all runs: ... -- --epochs 0.5 --batch-size 32. A bench that was
    interrupted goes on where it stopped when it is started again.

    Attributes:
        plan: The plan; see train/bench/plan.py, and benchmarks/plans for examples.
        workloads: With a plan, only those with these labels; without one, modules of training scripts.
        algorithms: With a plan, only the arms with these labels; without one NAME, or NAME:OPTION=VALUE,...
        stragglers: With a plan, only the scenarios with these labels; without one as --straggler takes them.
        seeds: In place of all those of the plan.
        workers: Processes of each run; without a plan.
        out: Folder of the runs; None: runs/bench-NAME.
        results: Folder of the table, the JSON file, the pictures and the tuned rates; None: that of the runs.
        tune: Find each arm's learning rate first: a run with each of the plan's rates, nobody late unless it says so.
        rates: Learning rates that --tune tries, in place of those of the plan.
        dry_run: Say what would be run, and how long it would take; run nothing.
        picture: Draw the pictures.
    """

    plan: tyro.conf.Positional[Path | None] = None
    workloads: tuple[str, ...] = ()
    algorithms: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--arms"])] = ()
    stragglers: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--scenarios"])] = ()
    seeds: tuple[int, ...] = ()
    workers: int = 4
    out: Path | None = None
    results: Path | None = None
    tune: bool = False
    rates: tuple[float, ...] = ()
    dry_run: bool = False
    picture: bool = True


def planned(config: Config, words: Sequence[str]) -> Plan:
    """The plan of a command line, and the words after --.

    Raises:
        ValueError: It makes none.
    """
    if config.plan is None:
        if not config.workloads or not config.algorithms:
            raise ValueError("name a plan, or --workloads and --algorithms; see --help")
        made = plan.from_words(config.workloads, config.algorithms, config.stragglers, config.seeds, config.workers)
    else:
        made = plan.read(config.plan).only(config.algorithms, config.stragglers, config.workloads)
    changes: dict[str, Any] = {"rates": config.rates} if config.rates else {}
    if config.seeds:
        arms = {label: dataclasses.replace(arm, more_seeds=()) for label, arm in made.arms.items()}
        changes |= {"seeds": config.seeds, "arms": arms}
    return dataclasses.replace(made, **changes, extra=tuple(words))


def bench(config: Config, words: Sequence[str]) -> int:
    """Runs what is left of a bench, and writes what it has found.

    Returns:
        The exit code: 1 if a run has failed.

    Raises:
        ValueError: Something is wrong with the plan, before anything is run.
    """
    made = planned(config, words)
    out = config.out or Path("runs") / f"bench-{made.name}"
    folder = config.results or out
    tuned = tuning.tuning_cases(made) if config.tune else {}
    if config.tune and not tuned:
        raise ValueError("--tune needs learning rates to try: add rates to the plan, or --rates")
    rates = tuning.known if config.tune or config.dry_run else tuning.load
    every = cases_of.cases(made, rates(made, folder))
    cases_of.check([*tuned.values(), *every])
    if config.dry_run:
        _tell(made, [*tuned.values(), *every], out)
        return 0
    stopped = []
    with running.alone(out):
        if config.tune:
            stopped += _run(list(tuned.values()), out, made)
            found = tuning.chosen(made, tuned, out)
            tuning.save(tuning.rates_file(made, folder), found)
            console.console.print(report.tuning_table(found, made.rates), highlight=False, markup=False)
            every = cases_of.cases(made, tuning.load(made, folder))
        try:
            stopped += _run(every, out, made)
        finally:
            _write(made, every, out, folder, stopped, config.picture)
    return int(any(one.failed for one in stopped))


def _run(every: Sequence[Case], out: Path, made: Plan) -> list[running.Stopped]:
    estimates = Estimates(out, measure=False)
    return running.run_all(every, out, made.limit_seconds, lambda left: shown(estimates.total(left, every)))


def _write(made: Plan, every: Sequence[Case], out: Path, folder: Path, stopped: list, picture: bool) -> None:
    """Writes table, JSON and pictures of whatever is finished."""
    if not any(running.is_finished(case, out) for case in every):
        return
    found = collecting.collect(made, every, out, stopped)
    folder.mkdir(parents=True, exist_ok=True)
    results.write_summary(folder / f"{made.name}.json", found)
    text = report.markdown(found)
    (folder / f"{made.name}.md").write_text(text)
    _say(text)
    paths = drawing.draw(found, folder) if picture else []
    _say(f"results: {folder / made.name}.md, .json" + "".join(f", {path.name}" for path in paths))


def _say(text: str) -> None:
    """A line, however long."""
    console.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _tell(made: Plan, every: Sequence[Case], out: Path) -> None:
    """Says what would be run."""
    estimates = Estimates(out)
    _say(f"{made.title}: {len(every)} runs, in {out}")
    for workload in made.workloads:
        for scenario in dict.fromkeys(case.scenario for case in every):
            there = [case for case in every if (case.workload, case.scenario) == (workload, scenario)]
            left = [case for case in there if not running.is_finished(case, out)]
            arms = ", ".join(dict.fromkeys(case.arm for case in there))
            seconds = shown(estimates.total(left, every))
            _say(f"  {workload} / {scenario}: {arms}: {len(left)} of {len(there)} runs left, {seconds}")
    console.say(f"in all {shown(estimates.total(every, every))}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    at = arguments.index("--") if "--" in arguments else len(arguments)
    config = tyro.cli(Config, prog=_PROG, description=str(Config.__doc__).partition("\n")[0], args=arguments[:at])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the run in progress ends as well
    try:
        sys.exit(bench(config, arguments[at + 1 :]))
    except ValueError as error:
        sys.exit(f"{_PROG}: {error}")
    except KeyboardInterrupt:
        console.warn("interrupted: start the bench again to go on")
        sys.exit(130)


if __name__ == "__main__":
    main()
