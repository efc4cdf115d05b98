"""Pictures of translation: lengths of sentences, and how long steps take on each worker."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from train.data.text.buckets import Shape
from wagma_jax import ledger
from wagma_jax.ledger.entries import Call


def plot_lengths(path: Path, lengths: np.ndarray, shapes: Sequence[Shape]) -> None:
    """How long sources and targets are, and the shapes that batches of them have.

    Args:
        path: The PNG to write.
        lengths: int [pairs, 2], in tokens with the end.
        shapes: Of the batches.
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    axis = figure.subplots()
    bins = (np.arange(lengths.max() + 2) - 0.5).tolist()
    for side, name, color in ((0, "source", "#1f77b4"), (1, "target", "#d62728")):
        axis.hist(lengths[:, side], bins, histtype="step", color=color, linewidth=1.6, label=name)
    for number, shape in enumerate(shapes):
        axis.axvline(shape.target + 0.5, color="gray", linewidth=0.7, label=None if number else "shapes (target)")
    axis.set(
        xlabel="tokens of a sentence, with its end", ylabel="training pairs", title="lengths of the training pairs"
    )
    axis.set_xlim(0, bins[-1])
    axis.legend()
    figure.savefig(path, dpi=130)


def step_times(folder: Path) -> list[dict[int, float]]:
    """Seconds of each worker's steps without averaging, by round, as ledgers tell; empty where there are none."""
    if not any(folder.glob("ledger-*.jsonl")):
        return []
    times = []
    for rank in ledger.read(folder):
        mine = {}
        for segment in rank.segments:
            for before, after in zip(segment.trainer, segment.trainer[1:], strict=False):
                # after a rest there is more than a step: an evaluation, say
                if isinstance(before, Call) and isinstance(after, Call):
                    mine[after.round] = after.enter - before.leave
        times.append(mine)
    return times


def plot_step_times(path: Path, folder: Path) -> None:
    """How long steps took on each worker; nothing is drawn of a run within one program, whose workers move in step.

    Args:
        path: The PNG to write.
        folder: Of the run, with its ledgers.
    """
    workers = {rank: each for rank, each in enumerate(step_times(folder)) if each}
    if not workers:
        return
    times = [1000 * np.array([*each.values()]) for each in workers.values()]
    figure = Figure(figsize=(11, 4), layout="constrained")
    boxes, histogram = figure.subplots(1, 2)
    boxes.boxplot(times, positions=list(workers), whis=(5, 95), showfliers=False)
    boxes.set(xlabel="worker", ylabel="milliseconds", title="steps of each worker: quartiles, 5 % and 95 %")
    boxes.set_ylim(bottom=0)
    everything = np.concatenate(times)
    top = np.percentile(everything, 99)
    histogram.hist(np.minimum(everything, top), bins=60, color="#1f77b4")
    histogram.set(xlabel="milliseconds (the longest 1 % in the last bar)", ylabel="steps", title="steps of all workers")
    histogram.set_xlim(left=0)
    common = sorted(set.intersection(*map(set, workers.values())))  # rounds that all have taken part in
    title = "time of a step without averaging"
    if common:
        together = np.array([[each[round_] for round_ in common] for each in workers.values()])
        title += f"; the slowest worker of a round takes {together.max(0).mean() / together.mean():.2f} times the mean"
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
