"""Compares the accuracy of algorithms: the same data in the same order, as many examples, tuned learning rates.

An experiment has arms (an algorithm with its settings), a grid of learning rates, and three seeds. ``--tune`` first
trains every arm with every rate on a seed that is not among the three, and keeps the best rate of each arm in
``results/EXPERIMENT_rates.json``. Then every arm is trained with its rate on the three seeds. Rates are chosen by
accuracy on the test set, since there is no validation set; all arms have that advantage alike.

Runs are kept in ``runs/benchmark-EXPERIMENT``. Finished runs are not trained again; interrupted ones go on.

Run ``python -m benchmarks.accuracy fashion-mnist`` (about half an hour on 2 cores, and as long again for tuning).
"""

import dataclasses
import json
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import matplotlib.pyplot as plt
import numpy as np
import tyro
from scipy import stats

from train import images, results, run, starting
from train.console import console

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
TUNING_SEED = 100


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is compared.

    Attributes:
        title: For people.
        common: Options of all runs.
        arms: From a label to the options that make the arm.
        baseline: The arm that the others are compared with.
        rates: Learning rates to tune over.
        goal: Accuracy that all runs are expected to reach, or None.
    """

    title: str
    common: dict[str, Any]
    arms: dict[str, dict[str, Any]]
    baseline: str
    rates: tuple[float, ...]
    goal: float | None = None


CLOCKS = {
    "dataset": "fashion-mnist", "model": "resnet_tiny", "transport": "mpi", "workers": 4, "group_size": 2,
    "batch_size": 16, "epochs": 1.0, "sync_period": 10, "log_every": 20, "eval_every": 200, "checkpoint_every": 400,
}  # fmt: skip

BOTH_CLOCKS = {f"clock={clock}": {"clock": clock} for clock in ("step", "round")}

EXPERIMENTS = {
    "fashion-mnist": Experiment(
        "Fashion-MNIST, ResNet of 77,754 parameters, 8 workers of 16 images, sync period 5, 3 epochs",
        {
            "dataset": "fashion-mnist", "model": "resnet_small", "workers": 8, "batch_size": 16, "epochs": 3.0,
            "sync_period": 5,
            "log_every": 20, "eval_every": 469, "checkpoint_every": 469,
        },
        {
            "wagma, S = 2": {"algorithm": "wagma", "group_size": 2},
            "wagma, S = 4": {"algorithm": "wagma", "group_size": 4},
            "allreduce": {"algorithm": "allreduce"},
            "local": {"algorithm": "local"},
        },
        "allreduce",
        (0.8, 1.6),
        0.9,
    ),
    "digits-64": Experiment(
        "digits, ResNet of 19,706 parameters, 64 workers of 8 images simulated by one vmap, 200 steps",
        {
            "dataset": "digits", "model": "resnet_tiny", "workers": 64, "batch_size": 8, "steps": 200,
            "log_every": 10, "eval_every": 50, "checkpoint_every": 100,
        },
        {
            "wagma, S = 8": {"algorithm": "wagma", "group_size": 8},
            "allreduce": {"algorithm": "allreduce"},
        },
        "allreduce",
        (0.1, 0.4),
    ),
    "clock-fixed": Experiment(
        "Fashion-MNIST, ResNet of 19,706 parameters, 4 processes of 16 images, 1 epoch; one worker four times slower",
        CLOCKS | {"straggler": "fixed:3:0.065"},
        BOTH_CLOCKS,
        "clock=step",
        (0.2, 0.4),
    ),
    "clock-rotating": Experiment(
        "Fashion-MNIST, ResNet of 19,706 parameters, 4 processes of 16 images, 1 epoch; a random worker 100 ms late",
        CLOCKS | {"straggler": "rotating:0.1"},
        BOTH_CLOCKS,
        "clock=step",
        (0.2, 0.4),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare the accuracy of algorithms.

    Attributes:
        experiment: Which.
        tune: Choose the learning rates first.
        runs: Where runs are kept; None: runs/benchmark-EXPERIMENT.
        results: Where tables and pictures go.
    """

    experiment: tyro.conf.Positional[Literal["fashion-mnist", "digits-64", "clock-fixed", "clock-rotating"]]
    tune: bool = False
    runs: Path | None = None
    results: Path = RESULTS


def train_once(options: images.Options) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Trains a run, or what is left of it; returns its summary and rows."""
    out = options.out
    assert out is not None
    if not (out / "summary.json").exists():
        if (out / "options.json").exists():
            options = dataclasses.replace(options, resume=out)
        console.print(f"{out}: {options.algorithm}, rate {options.learning_rate}, seed {options.seed}")
        if options.transport == "mpi":
            train_launched(options)
        else:
            run.train(images.WORKLOAD, options)
    return results.results(out)


def train_launched(options: images.Options) -> None:
    """Trains a run of several processes, or what is left of it.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    fields = dataclasses.fields(options)
    chosen = {field.name: getattr(options, field.name) for field in fields}
    words = {field.name: chosen[field.name] for field in fields if chosen[field.name] != field.default}
    words = words if options.resume is None else {"resume": options.resume}
    status = starting.start("train.images", options.workers, words)
    if status:
        raise subprocess.CalledProcessError(status, "train.images")


def paired_interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of paired differences, by Student's t distribution."""
    mean = statistics.mean(differences)
    half = stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
    return mean, mean - half, mean + half


def within_noise(differences: Sequence[float]) -> bool:
    """Whether paired differences of accuracy are noise: the interval contains 0, or the mean is below 0.5 points."""
    mean, low, high = paired_interval(differences)
    return low <= 0 <= high or abs(mean) < 0.005


def tune(experiment: Experiment, runs: Path) -> dict[str, Any]:
    """The best rate of each arm, and the accuracy with every rate."""
    found: dict[str, Any] = {}
    for number, (label, arm) in enumerate(experiment.arms.items()):
        accuracy = {}
        for rate in experiment.rates:
            out = runs / f"tune-{number}-{rate}"
            settings = {**experiment.common, **arm, "learning_rate": rate, "seed": TUNING_SEED, "out": out}
            accuracy[rate] = train_once(images.Options(**settings))[0]["eval"]["accuracy"]
        found[label] = {"best": max(accuracy, key=lambda rate: accuracy[rate]), "accuracy": accuracy}
        console.print(f"{label}: {found[label]}")
    return found


def compare(experiment: Experiment, rates: dict[str, Any], runs: Path) -> dict[str, list[Any]]:
    """Summary and rows of every seed, by arm."""
    found: dict[str, list[Any]] = {label: [] for label in experiment.arms}
    for seed in SEEDS:
        for number, (label, arm) in enumerate(experiment.arms.items()):
            rate = rates[label]["best"]
            out = runs / f"{number}-{rate}-seed-{seed}"
            settings = {**experiment.common, **arm, "learning_rate": rate, "seed": seed, "out": out}
            found[label].append(train_once(images.Options(**settings)))
    return found


def table(experiment: Experiment, rates: dict[str, Any], found: dict[str, list[Any]]) -> str:
    """The results as Markdown."""
    accuracy = {label: [summary["eval"]["accuracy"] for summary, _ in runs] for label, runs in found.items()}
    lines = [
        f"# {experiment.title}",
        "",
        "Test accuracy of the consensus model in the end; differences to "
        f"`{experiment.baseline}` are paired by seed, with their 95 % interval (t distribution).",
        "",
        f"| arm | rate | {' | '.join(f'seed {seed}' for seed in SEEDS)} | median | difference, points | within noise |",
        f"|---|---|{'---|' * len(SEEDS)}---|---|---|",
    ]
    for label, values in accuracy.items():
        difference = [a - b for a, b in zip(values, accuracy[experiment.baseline], strict=True)]
        if label == experiment.baseline:
            last = " | "
        else:
            mean, low, high = (100 * x for x in paired_interval(difference))
            last = f"{mean:+.2f} ({low:+.2f} to {high:+.2f}) | {'yes' if within_noise(difference) else 'no'}"
        cells = " | ".join(f"{value:.2%}" for value in values)
        lines.append(f"| {label} | {rates[label]['best']:g} | {cells} | {statistics.median(values):.2%} | {last} |")
    lines += ["", f"Tuning (seed {TUNING_SEED}):", ""]
    lines += [
        f"| arm | {' | '.join(f'{rate:g}' for rate in experiment.rates)} |",
        "|---|" + "---|" * len(experiment.rates),
    ]
    for label, entry in rates.items():
        tried = {float(rate): value for rate, value in entry["accuracy"].items()}
        lines.append(f"| {label} | {' | '.join(f'{tried[rate]:.2%}' for rate in experiment.rates)} |")
    summaries = [summary for runs in found.values() for summary, _ in runs]
    speeds = {label: statistics.median(s["examples_per_second"] for s, _ in runs) for label, runs in found.items()}
    if summaries[0]["transport"] == "mpi":
        seconds = {label: statistics.median(s["wall_seconds"] for s, _ in runs) for label, runs in found.items()}
        waits = {label: statistics.median(results.waited_seconds(s) or 0 for s, _ in r) for label, r in found.items()}
        lines += [
            "",
            "Median seconds of training: "
            + ", ".join(f"{label} {value:.1f}" for label, value in seconds.items())
            + ".",
            "Median seconds waited per worker: " + ", ".join(f"{label} {w:.1f}" for label, w in waits.items()) + ".",
        ]
    lines += [
        "",
        "Median examples per second: " + ", ".join(f"{label} {speed:,.0f}" for label, speed in speeds.items()) + ".",
        f"Waiting for data, share of the training time: at most {max(s['data_wait_fraction'] for s in summaries):.2%}.",
        f"JAX {jax.__version__} on {platform.machine()}, {summaries[0]['devices']} (virtual) CPU devices.",
        "",
    ]
    return "\n".join(lines)


def plot(path: Path, experiment: Experiment, found: dict[str, list[Any]]) -> None:
    """Draws curves of the median over the seeds, and the final accuracy of every seed."""
    figure, (curves, ends) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for position, (label, runs) in enumerate(found.items()):
        evals = [[row for row in rows if "eval" in row] for _, rows in runs]
        fewest = min(len(rows) for rows in evals)  # by the round clock the same rounds are other examples
        evals = [[*rows[: fewest - 1], rows[-1]] for rows in evals]
        examples = np.median([[row["examples"] for row in rows] for rows in evals], 0)
        accuracy = 100 * np.array([[row["eval"]["accuracy"] for row in rows] for rows in evals])
        line = curves.plot(examples, np.median(accuracy, 0), marker="o", label=label)[0]
        curves.fill_between(examples, accuracy.min(0), accuracy.max(0), alpha=0.15, color=line.get_color())
        ends.plot([position] * len(runs), accuracy[:, -1], "o", color=line.get_color())
        ends.plot([position - 0.2, position + 0.2], [np.median(accuracy[:, -1])] * 2, color=line.get_color())
    curves.set(xlabel="examples seen by all workers", ylabel="test accuracy (%)", title="median and range of the seeds")
    curves.xaxis.set_major_formatter("{x:,.0f}")
    curves.legend(loc="lower right")
    ends.set_xticks(range(len(found)), list(found))
    ends.set(ylabel="test accuracy (%)", title="in the end: every seed, and the median")
    ends.margins(x=0.15, y=0.15)
    if experiment.goal is not None:
        ends.axhline(100 * experiment.goal, color="grey", linestyle="--", linewidth=1)
        ends.annotate("goal", (0, 100 * experiment.goal), xytext=(-25, 3), textcoords="offset points", color="grey")
    for axis in (curves, ends):
        axis.grid(alpha=0.3)
    figure.suptitle(experiment.title)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(config: Config) -> None:
    """Tunes, or compares and writes the results."""
    experiment = EXPERIMENTS[config.experiment]
    runs = config.runs or Path("runs") / f"benchmark-{config.experiment}"
    name = config.experiment.replace("-", "_")
    config.results.mkdir(parents=True, exist_ok=True)
    rates_file = config.results / f"{name}_rates.json"
    if config.tune:
        rates_file.write_text(json.dumps(tune(experiment, runs), indent=2) + "\n")
    rates = json.loads(rates_file.read_text())
    found = compare(experiment, rates, runs)
    text = table(experiment, rates, found)
    (config.results / f"{name}.md").write_text(text)
    kept = {label: [summary for summary, _ in runs] for label, runs in found.items()}
    results.write_summary(config.results / f"{name}.json", kept)
    plot(config.results / f"{name}.png", experiment, found)
    console.print(text, highlight=False)


if __name__ == "__main__":
    main(tyro.cli(Config, description=str(__doc__)))
