"""The run as a picture: staleness and waits by rank and round, and what they come to. Needs matplotlib."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wagma_jax.ledger.alignment import align
from wagma_jax.ledger.entries import Swap
from wagma_jax.ledger.plain_text import alignment_text, title
from wagma_jax.ledger.segments import RankLedger
from wagma_jax.ledger.summary import Summary, age_bins, summarize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_COLUMNS = 900  # of a picture, in rounds or bins of rounds
MOST_TICKS = 16  # of ranks
MOST_MARKS = 400  # of sync rounds, above a picture
MATPLOTLIB = (
    "the picture needs matplotlib, which the extra 'train' brings: run make setup in the project, or "
    "pip install 'wagma_jax[train]'"
)


def plot(ledgers: Sequence[RankLedger], path: Path | str, aligned: Sequence[RankLedger] | None = None) -> None:
    """Saves a picture of staleness and waits by rank and round, who waited for whom, and what it comes to.

    Args:
        ledgers: From ``read``.
        path: The PNG to write.
        aligned: From ``align``, if that is at hand.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; names the extra that brings it.
    """
    draw(ledgers, align(ledgers) if aligned is None else aligned).savefig(path, dpi=130)


def draw(ledgers: Sequence[RankLedger], aligned: Sequence[RankLedger]) -> "Figure":
    """The picture that ``plot`` saves.

    Args:
        ledgers: From ``read``.
        aligned: From ``align``.

    Raises:
        ModuleNotFoundError: As ``plot``.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ModuleNotFoundError:
        raise ModuleNotFoundError(MATPLOTLIB, name="matplotlib") from None

    summary = summarize(ledgers, aligned)
    if summary.start.method == "pairs":
        return _draw_pairs(Figure(figsize=(15, 9), layout="constrained"), aligned, summary)
    num_workers = len(summary.ranks)
    figure = Figure(figsize=(15, 11.5), layout="constrained")
    grid = figure.add_gridspec(3, 1, height_ratios=(1, 1, 1.05))
    upper = grid[:2].subgridspec(2, 3, width_ratios=(5, 0.07, 1.15), wspace=0.02)
    lower = grid[2].subgridspec(1, 3, width_ratios=(1.25, 1, 1.15), wspace=0.06)
    ages, waits, syncs = _by_round(aligned, summary)
    stale, waited = figure.add_subplot(upper[0, 0]), figure.add_subplot(upper[1, 0])
    _plot_staleness(stale, figure.add_subplot(upper[0, 1]), ages, syncs, summary.first_round)
    _plot_waits(waited, figure.add_subplot(upper[1, 1]), waits, summary.first_round)
    for axis in (stale, waited):
        axis.set(xlabel="round", ylabel="rank")
        axis.yaxis.set_major_locator(MaxNLocator(MOST_TICKS, integer=True))

    late = figure.add_subplot(upper[0, 2], sharey=stale)
    ranks = np.arange(num_workers)
    late.barh(ranks, [100 * own.late_fraction for own in summary.ranks], color="tab:orange")
    late.set(xlabel="late contributions (%)", title="how often late")
    caused = figure.add_subplot(upper[1, 2], sharey=waited)
    caused.barh(ranks - 0.2, [own.waited for own in summary.ranks], 0.4, color="tab:purple")
    caused.barh(ranks + 0.2, [own.caused for own in summary.ranks], 0.4, color="tab:red")
    caused.set(xlabel="seconds in all", title="waited (purple),\nothers waited for it (red)")
    for axis in (late, caused):
        axis.tick_params(labelleft=False)
        axis.grid(axis="x", alpha=0.3)
        axis.set_xlim(left=0)

    _plot_matrix(figure, figure.add_subplot(lower[0]), summary.waits)
    _plot_histogram(figure.add_subplot(lower[1]), summary.staleness.sum(0))
    _plot_computation(figure.add_subplot(lower[2]), summary)
    figure.suptitle(f"{title(summary)}\n{alignment_text(summary.alignment)}", fontsize="medium")
    return figure


def _draw_pairs(figure: "Figure", aligned: Sequence[RankLedger], summary: Summary) -> "Figure":
    """The picture of a run without rounds, whose workers average in pairs."""
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    grid = figure.add_gridspec(2, 1)
    upper = grid[0].subgridspec(1, 2, width_ratios=(5, 0.07), wspace=0.02)
    lower = grid[1].subgridspec(1, 3, width_ratios=(1.1, 1, 1.1), wspace=0.06)
    counts, first = _swaps_by_round(aligned, summary)
    counts, size = _binned(counts, np.sum, 0)
    axis = figure.add_subplot(upper[0])
    image = _image(axis, counts, size, first, cmap=colormaps["Greens"], vmin=0)
    together = f" ({size} rounds together)" if size > 1 else ""
    figure.colorbar(image, cax=figure.add_subplot(upper[1]), label=f"swaps{together}")
    axis.set(xlabel="the rank's own round", ylabel="rank", title="swaps: how often the rank's model was averaged")
    axis.yaxis.set_major_locator(MaxNLocator(MOST_TICKS, integer=True))
    _plot_matrix(
        figure,
        figure.add_subplot(lower[0]),
        summary.swaps,
        "swaps",
        "this rank asked ...",
        "... this one",
        "who asked whom",
    )
    times = figure.add_subplot(lower[1])
    times.hist(1000 * summary.swap_seconds, bins=40, color="tab:green")
    times.set(xlabel="from the question to the average (ms)", ylabel="swaps", title="how long swaps took")
    _plot_computation(figure.add_subplot(lower[2]), summary)
    figure.suptitle(f"{title(summary)}\n{alignment_text(summary.alignment)}", fontsize="medium")
    return figure


def _swaps_by_round(aligned: Sequence[RankLedger], summary: Summary) -> tuple[np.ndarray, int]:
    """How often each rank's model was averaged, [num_workers, rounds], by its own rounds; and the first of these."""
    found = [
        (ledger.rank, entry.round, isinstance(entry, Swap))
        for ledger in aligned
        for part in ledger.segments
        for entry in (*part.swaps, *part.calls)
    ]
    first = min((r for _, r, _ in found), default=summary.first_round)
    counts = np.zeros((len(aligned), max((r for _, r, _ in found), default=first) - first + 1))
    for rank, r, is_swap in found:
        counts[rank, r - first] += is_swap
    return counts, first


def _by_round(aligned: Sequence[RankLedger], summary: Summary) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Staleness and waits, [num_workers, rounds], NaN where there was nothing; and the sync rounds."""
    first = summary.first_round
    newest = [
        entry.round
        for ledger in aligned
        for part in ledger.segments
        for entry in (*part.rounds, *part.mixed, *part.calls)
    ]
    shape = len(aligned), max(newest, default=first) - first + 1
    ages, waits, syncs = np.full(shape, np.nan), np.full(shape, np.nan), set()
    for ledger in aligned:
        for segment in ledger.segments:
            for entry in segment.mixed:
                ages[ledger.rank, entry.round - first] = 0
            for entry in segment.rounds:
                is_sync = segment.schedule.is_sync(entry.round)
                ages[ledger.rank, entry.round - first] = 0 if is_sync else entry.staleness(ledger.rank)
                if is_sync:
                    syncs.add(entry.round)
            for call in segment.calls:
                waits[ledger.rank, call.round - first] = sum(call.waits.values())
    return ages, waits, sorted(syncs)


def _binned(values: np.ndarray, reduce: Callable[..., np.ndarray], empty: float) -> tuple[np.ndarray, int]:
    """Values with at most MOST_COLUMNS columns, and the rounds in each; ``empty`` is neutral to ``reduce``."""
    size = -(-values.shape[1] // MOST_COLUMNS)
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % size)), constant_values=np.nan)
    bins = padded.reshape(len(values), -1, size)
    missing = np.isnan(bins)
    return np.where(missing.all(2), np.nan, reduce(np.where(missing, empty, bins), axis=2)), size


def _image(axis: Any, values: np.ndarray, size: int, first: int, **options: Any) -> Any:
    extent = (first - 0.5, first - 0.5 + values.shape[1] * size, len(values) - 0.5, -0.5)
    image = axis.imshow(values, aspect="auto", interpolation="nearest", extent=extent, **options)
    if len(values) <= MOST_TICKS:
        axis.hlines(np.arange(1, len(values)) - 0.5, *extent[:2], color="white", linewidth=2)
    return image


def _plot_staleness(axis: Any, bar: Any, ages: np.ndarray, syncs: list[int], first: int) -> None:
    from matplotlib import colormaps, colors

    ages, size = _binned(ages, np.max, 0)
    highest = int(max(np.nanmax(ages, initial=1), 1))
    colormap = colormaps["YlOrRd"].resampled(max(2 * highest, 4))
    steps = colormap(np.linspace(0.25, 1, min(highest, 256)))
    if highest <= 12:
        norm, ticks = colors.BoundaryNorm(np.arange(0.5, highest + 1), highest), range(1, highest + 1)
    else:
        norm, ticks = colors.Normalize(0.5, highest), None
    shown = colors.ListedColormap(steps).with_extremes(under="#c9dfc9", bad="white")
    image = _image(axis, ages, size, first, cmap=shown, norm=norm)
    largest = f" (largest of {size} rounds)" if size > 1 else ""
    axis.figure.colorbar(image, cax=bar, label=f"rounds late{largest}", ticks=ticks)
    marks = ""
    if 0 < len(syncs) <= MOST_MARKS:
        axis.plot(
            syncs, [1.03] * len(syncs), "|", color="tab:blue", markersize=6, transform=axis.get_xaxis_transform(),
            clip_on=False,
        )  # fmt: skip
        marks = "; blue marks: sync rounds"
    missing = "; white: nothing written" if np.isnan(ages).any() else ""
    axis.set_title(f"late: the rank contributed an older model (green: on time{missing}{marks})", pad=12)


def _plot_waits(axis: Any, bar: Any, waits: np.ndarray, first: int) -> None:
    from matplotlib import colormaps, colors

    waits, size = _binned(waits, np.sum, 0)
    highest = max(np.nanmax(waits, initial=0), 1e-3)
    shown = colors.ListedColormap(colormaps["BuPu"](np.linspace(0.3, 1, 256)))
    shown = shown.with_extremes(under="#e4e4e8", bad="white")
    norm = colors.LogNorm(highest / 1000, highest)
    image = _image(axis, np.maximum(waits, highest / 1e6), size, first, cmap=shown, norm=norm)
    together = f" ({size} rounds together)" if size > 1 else ""
    axis.figure.colorbar(image, cax=bar, label=f"seconds waited{together}", extend="min", format="%g")
    missing = "; white: no call" if np.isnan(waits).any() else ""
    axis.set_title(f"waits: how long the rank waited for others (grey: hardly or not{missing})")


def _plot_matrix(
    figure: Any,
    axis: Any,
    waits: np.ndarray,
    unit: str = "seconds",
    rows: str = "this rank waited ...",
    columns: str = "... for this rank",
    name: str = "who waited for whom",
) -> None:
    from matplotlib import colormaps

    highest = waits.max() or 1.0
    image = axis.imshow(waits, cmap=colormaps["BuPu"], vmin=0, vmax=highest, aspect="auto")
    figure.colorbar(image, ax=axis, label=unit)
    if len(waits) <= 8:
        axis.set(xticks=range(len(waits)), yticks=range(len(waits)))
        for (i, j), value in np.ndenumerate(waits):
            if value:
                color = "white" if value > 0.6 * highest else "black"
                number = f"{value:.2g}" if value < 10 else f"{value:,.0f}"
                axis.text(j, i, number, ha="center", va="center", color=color, fontsize="small")
    axis.set(xlabel=columns, ylabel=rows, title=name)


def _plot_histogram(axis: Any, counts: np.ndarray) -> None:
    bins = age_bins(len(counts))
    shares = [100 * counts[low:high].sum() / max(counts.sum(), 1) for low, high in bins]
    bars = axis.bar(range(len(bins)), shares, color=["#9cbf9c", *["tab:orange"] * (len(bins) - 1)])
    axis.bar_label(bars, [f"{share:.1f}" for share in shares], fontsize="small")
    axis.set_xticks(range(len(bins)), [f"{low}" if high == low + 1 else f"{low}-{high - 1}" for low, high in bins])
    axis.set(xlabel="staleness (rounds; 0: on time)", ylabel="contributions (%)", title="how stale contributions were")
    axis.set_ylim(0, 108 * max(shares, default=1) / 100 + 1)


def _plot_computation(axis: Any, summary: Summary) -> None:
    from matplotlib.ticker import MaxNLocator

    ranks = np.arange(len(summary.ranks))
    colors = ["tab:red" if own.rank in summary.slow else "tab:gray" for own in summary.ranks]
    axis.bar(ranks, [1000 * own.median for own in summary.ranks], color=colors)
    means = [1000 * own.mean for own in summary.ranks]
    axis.hlines(means, ranks - 0.45, ranks + 0.45, color="black", linewidth=2, label="mean")
    axis.set(xlabel="rank", ylabel="computation per step (ms)", title="how long steps take (bars: median)")
    axis.xaxis.set_major_locator(MaxNLocator(MOST_TICKS, integer=True))
    axis.grid(axis="y", alpha=0.3)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize="small")
