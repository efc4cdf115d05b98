"""Measures times, and reports them: tables, a picture, and every sample as JSON."""

import json
import os
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.machine import describe
from benchmarks.samples import Summary, summarize
from benchmarks.tables import markdown
from benchmarks.xla_collectives.candidates import COLORS, LOWERINGS_OF, NUM_WORKERS, Candidate, Measured
from benchmarks.xla_collectives.comparison import compare, noise_floor, relative_to
from benchmarks.xla_collectives.config import Config
from benchmarks.xla_collectives.timing import STEPS, measure
from wagma_jax.collectives import LOWERINGS


def run_time(config: Config, console: Console) -> None:
    """Measures, and writes ``xla_time.json``, ``.md`` and ``.png``."""
    about: dict[str, Any] = {**describe(("jax",), ("MALLOC_", "XLA_")), "load_average": os.getloadavg()}
    results, texts = [], []
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn(""))
    for size in config.sizes:
        with Progress(*columns, console=console, transient=True) as progress:
            measured, left_out = measure(size, config, progress)
        results.append((size, measured, left_out))
        texts.append(time_tables(size, measured, left_out))
        console.print(texts[-1] + "\n", markup=False, highlight=False, soft_wrap=True)
    about["load_average_after"] = os.getloadavg()
    note = f"{about['cpu_count']} cores, JAX {about['jax']}, {about['date']}"
    variables = ", ".join(f"{name}={value}" for name, value in about["environment"].items()) or "no MALLOC_*, no XLA_*"
    title = (
        f"# Time per step of group averaging, {NUM_WORKERS} workers\n\n{note}; {variables}; load average "
        f"{about['load_average'][0]:.1f} before, {about['load_average_after'][0]:.1f} after (the benchmark's own "
        f"included). Medians and quartiles; a sample is {STEPS} steps. Scratch is what a step allocates per worker "
        "beside the donated model, as a multiple of the model's size."
    )
    (config.out / "xla_time.md").write_text("\n\n".join([title, *texts]) + "\n")
    document = {"about": about, "results": [_result(*result) for result in results]}
    (config.out / "xla_time.json").write_text(json.dumps(document, indent=1) + "\n")
    size, measured, _ = max(results, key=lambda result: result[0])
    time_figure(size, measured, note).savefig(config.out / "xla_time.png", dpi=130)


def _result(size: float, measured: Sequence[Measured], left_out: Sequence[str]) -> dict[str, Any]:
    """The samples of one model size, for JSON."""
    to_pmean = relative_to("pmean", measured)
    return {
        "megabytes": size,
        "left_out": left_out,
        "measured": [
            {
                **one.candidate._asdict(),
                "program": one.program,
                "scratch_bytes": one.scratch,
                "seconds": one.seconds,
                "to_pmean": to_pmean[one.candidate]._asdict(),
            }
            for one in measured
        ],
        "auto": [{**one._asdict(), "ratio": one.ratio._asdict()} for one in compare(measured)],
    }


def time_tables(size: float, measured: Sequence[Measured], left_out: Sequence[str]) -> str:
    """Markdown: the times of one model size (in MB), and "auto" versus the best lowering."""
    to_pmean, to_consensus = relative_to("pmean", measured), relative_to("consensus", measured)
    times = []
    for one in measured:
        milliseconds = summarize([1e3 * seconds for seconds in one.seconds])
        ratio = to_pmean[one.candidate]
        times.append(
            (
                *one.candidate,
                *(f"{value:.2f}" for value in (milliseconds.median, milliseconds.q1, milliseconds.q3)),
                f"{milliseconds.p95:.2f}",
                f"{ratio.median:.2f}",
                f"{ratio.q1:.2f} - {ratio.q3:.2f}",
                f"{to_consensus[one.candidate].median:.2f}",
                f"{one.scratch / (size * 1e6):.1f}",
                milliseconds.n,
            )
        )
    comparisons = [
        (
            one.context,
            one.group_size,
            ", ".join(one.equals) or "-",
            one.best,
            f"{one.ratio.median:.2f}",
            f"{one.ratio.q1:.2f} - {one.ratio.q3:.2f}",
            f"{one.ratio.low:.2f} - {one.ratio.high:.2f}",
            one.verdict,
        )
        for one in compare(measured)
    ]
    header = ("context", "S", "how", "ms", "q1", "q3", "p95", "/ pmean", "q1 - q3", "/ consensus", "scratch", "passes")
    parts = [
        f"## {size:g} MB",
        markdown(header, times),
        f'### "auto" versus the best lowering, {size:g} MB',
        markdown(
            ("context", "S", "auto is", "best", "auto / best", "q1 - q3", "95 % of median", "verdict"), comparisons
        ),
    ]
    parts.append(f"Noise: medians of equal programs differ by up to {100 * noise_floor(measured):.1f} %.")
    if left_out:
        parts.append("Left out for lack of memory: " + "; ".join(left_out) + ".")
    return "\n\n".join(parts)


def time_figure(size: float, measured: Sequence[Measured], note: str) -> Figure:
    """Time relative to ``pmean``, a panel for each context. Bars are medians, whiskers quartiles.

    Args:
        size: Of the model, in MB.
        measured: All candidates of this size.
        note: For the title: where it was measured.
    """
    contexts = list(LOWERINGS_OF)
    to_pmean = relative_to("pmean", measured)
    figure = Figure(figsize=(13, 5), layout="constrained")
    panels = figure.subplots(1, len(contexts), sharey=False)
    for panel, context in zip(panels, contexts, strict=True):
        _draw_context(panel, context, {one: ratio for one, ratio in to_pmean.items() if one.context == context})
    names = [name for name in COLORS if name != "pmean"]
    handles = [panels[0].bar([0], [0], color=COLORS[name], label=name) for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names), frameon=False)
    figure.suptitle(
        f"Group averaging of a {size:g} MB model; dashed: pmean, hatched: bars cut off. {note}", fontsize=10
    )
    return figure


def _draw_context(panel: Any, context: str, to_pmean: dict[Candidate, Summary]) -> None:
    """The bars of one context."""
    mine = {one: ratio for one, ratio in to_pmean.items() if one.name != "pmean"}
    sizes = sorted({one.group_size for one in mine if one.name in LOWERINGS})
    limit = 1.1 * max(1.0, *(min(ratio.q3, 4) for ratio in mine.values()))  # a few bars may be far longer
    x, ticks, labels = 0.0, [], []
    for names, group_size in [(("consensus",), NUM_WORKERS), *((LOWERINGS_OF[context], size) for size in sizes)]:
        bars = [one for name in names for one in [Candidate(context, group_size, name)] if one in mine]
        ticks.append(x + (len(bars) - 1) / 2)
        labels.append("all 8\n(consensus)" if names == ("consensus",) else f"S = {group_size}")
        for one in bars:
            _draw_bar(panel, x, mine[one], limit, COLORS[one.name])
            x += 1
        x += 1
    panel.axhline(1, color=COLORS["pmean"], lw=1, ls="--")
    panel.set_ylim(0, 1.15 * limit)
    panel.set_xticks(ticks, labels)
    panel.set_title(f"shard_map, {context}, 8 devices" if context != "vmap" else "vmap, 1 device")
    panel.set_xlabel("group size")
    panel.set_ylabel("time per step / time of pmean over all 8 workers")
    panel.spines[["top", "right"]].set_visible(False)


def _draw_bar(panel: Any, x: float, ratio: Summary, limit: float, color: str) -> None:
    """A median with its quartiles and number; hatched where it is cut off at ``limit``."""
    cut = ratio.median > limit
    whiskers = None if cut else [[ratio.median - ratio.q1], [min(ratio.q3, limit) - ratio.median]]
    hatch = "//" if cut else None
    panel.bar(x, min(ratio.median, limit), 0.85, color=color, hatch=hatch, yerr=whiskers, capsize=2, edgecolor="white")
    box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
    label: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 8, "rotation": 90, "bbox": box}
    position = (x, limit if cut else min(ratio.q3, limit))
    panel.annotate(f"{ratio.median:.2f}", position, (0, 4), textcoords="offset points", **label)
