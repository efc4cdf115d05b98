"""Group averaging inside XLA beside a global ``pmean``: time per step on this machine, and bytes counted at any scale.

Time: ``GroupAverager.average`` as a jitted, donated step, for 8 workers on a mesh of 8 virtual CPU devices (with
``check_vma`` on and off) and for 8 workers simulated by ``vmap`` on one device; no gradients, no sync rounds, and the
round advances, so that all rotating groups take part. All candidates of a size are measured in one run: every pass
takes one sample of each, in an order shuffled anew, so that a machine that drifts hits all alike. A sample is three
steps, one rotation of the groups. Ratios are taken within a pass and summarized afterwards. The baseline is ``pmean``
on the tree, as one would write it; "consensus" is the same mean from wagma_jax, which joins small leaves.

On Linux most of a step on large models is page faults of fresh memory, unless glibc is told to keep what it has:
``MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=1073741824``. Results name the
``MALLOC_*`` and ``XLA_*`` variables that were set.

Bytes and messages: see ``collective_bytes``; no device is needed for it.

Run ``.venv/bin/python benchmarks/xla_collectives.py``, nothing else at the same time; ``--help`` lists the options.
"""

import dataclasses
import datetime
import hashlib
import json
import math
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax
from jax.sharding import AxisType
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import wagma_jax as wagma
from benchmarks import collective_bytes
from benchmarks.collective_bytes import AXIS, Cost, Row
from wagma_jax.collectives import LOWERINGS, Lowering

NUM_WORKERS = 8
STEPS = 3
"""In a sample: one rotation of the groups, for 8 workers and any group size that is a power of two."""
MIN_PASSES = 6
"""Made whatever time they take (unless ``repeats`` is less); fewer have no 95 % interval of the median."""
SLOW, SLOW_PASSES = 6, 2
"""What takes more than SLOW times as long as pmean after SLOW_PASSES passes is measured no more."""

LOWERINGS_OF: dict[str, tuple[Lowering, ...]] = {
    "check_vma=True": ("auto", "reduce_scatter", "ppermute", "matrix"),
    "check_vma=False": ("auto", "psum", "reduce_scatter", "ppermute", "matrix"),
    "vmap": ("auto", "ppermute", "matrix"),
}
"""The lowerings that exist in each context."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured.

    Attributes:
        sizes: Of the model that each of the 8 workers owns, in MB (10^6 bytes) of float32.
        group_sizes: S, powers of two.
        repeats: Passes over all candidates of a size, at most.
        seconds: Per size, after which no further pass begins (but at least 6 are made).
        seed: Of the order within each pass.
        bytes_only: Count bytes, measure no time.
        time_only: Measure time, count no bytes.
        sync_period: Of the counted programs: every so many steps is a global mean.
        platform: For which the counted programs are lowered: tpu, cuda or cpu.
        out: Where JSON, Markdown tables and pictures go.
    """

    sizes: tuple[float, ...] = (1.0, 25.0, 100.0)
    group_sizes: tuple[int, ...] = (2, 4, 8)
    repeats: int = 40
    seconds: float = 240.0
    seed: int = 0
    bytes_only: bool = False
    time_only: bool = False
    sync_period: int = 10
    platform: str = "tpu"
    out: Path = Path("benchmarks/results")

    def __post_init__(self):
        if self.bytes_only and self.time_only:
            raise ValueError("bytes_only and time_only exclude each other: pass neither for both parts")
        if any(size not in (2, 4, 8) for size in self.group_sizes):
            raise ValueError(f"group_sizes must be 2, 4 or 8 of the 8 workers, got {self.group_sizes}")


class Summary(NamedTuple):
    """Order statistics of a sample.

    Attributes:
        n: Sample size.
        median: Of the sample.
        q1: Lower quartile.
        q3: Upper quartile.
        p95: 95th percentile.
        low: Lower end of the 95 % interval of the population's median (binomial; needs 6 samples, else the minimum).
        high: Its upper end.
    """

    n: int
    median: float
    q1: float
    q3: float
    p95: float
    low: float
    high: float


def summarize(values: Sequence[float]) -> Summary:
    """Quartiles by linear interpolation; the interval of the median from order statistics, free of assumptions."""
    ordered = sorted(map(float, values))
    n = len(ordered)
    if n == 0:
        raise ValueError("summarize needs at least one value, got none")
    below, outside = 0.0, 0  # values to leave out on either side, while P(Binomial(n, 1/2) <= outside) <= 2.5 %
    while outside < n // 2:
        below += math.comb(n, outside) / 2**n
        if below > 0.025:
            break
        outside += 1
    outside = max(outside - 1, 0)
    median, q1, q3, p95 = (float(np.percentile(ordered, q)) for q in (50, 25, 75, 95))
    return Summary(n, median, q1, q3, p95, ordered[outside], ordered[n - 1 - outside])


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> Summary:
    """Summary of the ratios within each pass, so that what slows down a whole pass cancels; of the common passes."""
    return summarize([a / b for a, b in zip(numerator, denominator, strict=False)])


def verdict(ratio: Summary, same_program: bool, floor: float) -> str:
    """On "auto" beside the best lowering, from the ratios auto / best.

    Slower means by more than all that could be noise: three quarters of the passes and the median's 95 % interval lie
    above 1, and the median above 1 + ``floor``, by which equal programs differ in the same run.
    """
    if same_program:
        return "same program"
    if ratio.n < MIN_PASSES:
        return "too few passes"
    if ratio.median <= 1:
        return "auto is fastest"
    if min(ratio.q1, ratio.low) <= 1 or ratio.median <= 1 + floor:
        return "within noise"
    return f"SLOWER by {100 * (ratio.median - 1):.0f} %"


class Candidate(NamedTuple):
    """One way to average.

    Attributes:
        context: A key of ``LOWERINGS_OF``.
        group_size: S; P for a global mean.
        name: "pmean", "consensus" or a lowering.
    """

    context: str
    group_size: int
    name: str


@dataclasses.dataclass
class Measured:
    """A candidate's program and times.

    Attributes:
        candidate: What is measured.
        program: Digest of the optimized HLO; equal programs have equal digests.
        scratch: Bytes that a step allocates per worker beside the model that it is given.
        seconds: Per step, one value for each pass, from the first on.
    """

    candidate: Candidate
    program: str
    scratch: float
    seconds: list[float] = dataclasses.field(default_factory=list)


class Comparison(NamedTuple):
    """The lowering "auto" beside the one with the least median time.

    Attributes:
        context: A key of ``LOWERINGS_OF``.
        group_size: S.
        equals: Lowerings whose program is that of "auto".
        best: The fastest lowering other than "auto".
        ratio: Of the times auto / best, within each pass.
        verdict: See :func:`verdict`.
    """

    context: str
    group_size: int
    equals: tuple[str, ...]
    best: str
    ratio: Summary
    verdict: str


def candidates(group_sizes: Sequence[int]) -> list[Candidate]:
    """All that are measured for one size."""
    result = []
    for context, lowerings in LOWERINGS_OF.items():
        result += [Candidate(context, NUM_WORKERS, name) for name in ("pmean", "consensus")]
        result += [Candidate(context, size, name) for size in group_sizes for name in lowerings]
    return result


def relative_to(name: str, measured: Sequence[Measured]) -> dict[Candidate, Summary]:
    """Ratios to the times of a global mean ("pmean" or "consensus") in the same context."""
    base = {one.candidate.context: one.seconds for one in measured if one.candidate.name == name}
    return {one.candidate: ratios(one.seconds, base[one.candidate.context]) for one in measured}


def compare(measured: Sequence[Measured]) -> list[Comparison]:
    """The lowering "auto" versus the best, for every context and group size."""
    result = []
    floor = noise_floor(measured)
    for auto, rivals in _auto_and_rivals(measured):
        best = min(rivals, key=lambda one: summarize(one.seconds).median)
        equals = tuple(one.candidate.name for one in rivals if one.program == auto.program)
        ratio = ratios(auto.seconds, best.seconds)
        text = verdict(ratio, best.candidate.name in equals, floor)
        result.append(Comparison(*auto.candidate[:2], equals, best.candidate.name, ratio, text))
    return result


def noise_floor(measured: Sequence[Measured]) -> float:
    """By how much medians of equal programs differ, at worst, as a ratio - 1: "auto" and the lowering that it is."""
    apart = [
        abs(math.log(ratios(auto.seconds, one.seconds).median))
        for auto, rivals in _auto_and_rivals(measured)
        for one in rivals
        if one.program == auto.program
    ]
    return math.expm1(max(apart, default=0.0))


def _auto_and_rivals(measured: Sequence[Measured]) -> list[tuple[Measured, list[Measured]]]:
    """Each measurement of "auto" with those of the other lowerings in its context and group size."""
    others = [one for one in measured if one.candidate.name in LOWERINGS and one.candidate.name != "auto"]
    pairs = [
        (auto, [one for one in others if one.candidate[:2] == auto.candidate[:2]])
        for auto in measured
        if auto.candidate.name == "auto"
    ]
    return [(auto, rivals) for auto, rivals in pairs if rivals]


def make_step(candidate: Candidate) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(a step from (tree, state) of all workers to their successors, the initial state of a tree)."""
    mesh = None if candidate.context == "vmap" else _mesh()
    schedule = wagma.GroupSchedule(NUM_WORKERS, candidate.group_size, sync_period=None)
    lowering: Any = candidate.name if candidate.name in LOWERINGS else "auto"
    averager = wagma.GroupAverager(schedule, AXIS, lowering=lowering)

    def step(tree, state):
        if candidate.name == "pmean":
            return lax.pmean(tree, AXIS), state
        if candidate.name == "consensus":
            return wagma.consensus(tree, AXIS), state
        return averager.average(tree, state)[:2]

    mapped = wagma.for_workers(step, AXIS, mesh, check_vma=candidate.context != "check_vma=False")
    return mapped, jax.vmap(averager.init)


class Bench:
    """The compiled steps of one model size. All of a placement pass one donated tree on, to spare memory.

    Args:
        shapes: Of the model's leaves, for one worker.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]]):
        self.trees = {on_mesh: _initial(shapes, on_mesh) for on_mesh in (True, False)}
        self.steps: dict[Candidate, Any] = {}
        self.states: dict[Candidate, Any] = {}

    def add(self, candidate: Candidate) -> Measured:
        """Compiles a candidate; MemoryError if it would not fit beside what runs already."""
        on_mesh = candidate.context != "vmap"
        mapped, init = make_step(candidate)
        state = jax.jit(init)(self.trees[on_mesh])
        compiled = jax.jit(mapped, donate_argnums=(0, 1)).lower(self.trees[on_mesh], state).compile()
        memory: Any = compiled.memory_analysis()
        scratch = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        scratch *= NUM_WORKERS if on_mesh else 1  # sizes are those of one device
        if scratch > 0.6 * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            raise MemoryError(f"{scratch / 1e9:.1f} GB")
        self.steps[candidate], self.states[candidate] = compiled, state
        return Measured(candidate, _digest(compiled), scratch / NUM_WORKERS)

    def sample(self, candidate: Candidate) -> float:
        """Seconds per step, over one rotation of the groups."""
        on_mesh = candidate.context != "vmap"
        step, tree, state = self.steps[candidate], self.trees[on_mesh], self.states[candidate]
        start = time.perf_counter()
        for _ in range(STEPS):
            tree, state = step(tree, state)
        jax.block_until_ready((tree, state))
        seconds = (time.perf_counter() - start) / STEPS
        self.trees[on_mesh], self.states[candidate] = tree, state
        return seconds


def measure(size: float, config: Config, progress: Progress) -> tuple[list[Measured], list[str]]:
    """All candidates of one size (in MB): what was measured, and what was left out for want of memory."""
    bench = Bench(collective_bytes.model_shapes(4 * round(size * 1e6 / 4)))
    measured: list[Measured] = []
    left_out = []
    for candidate in progress.track(candidates(config.group_sizes), description=f"{size:g} MB: compile"):
        try:
            measured.append(bench.add(candidate))
        except MemoryError as error:
            left_out.append(f"{candidate.name} ({candidate.context}, S = {candidate.group_size}) needs {error}")
    order = np.random.default_rng(config.seed)
    for one in progress.track(measured, description=f"{size:g} MB: warm up"):
        bench.sample(one.candidate)
    end = time.perf_counter() + config.seconds
    task = progress.add_task(f"{size:g} MB: measure", total=config.repeats)
    active = measured
    for repeat in range(config.repeats):
        if repeat >= MIN_PASSES and time.perf_counter() > end:
            break
        if repeat == SLOW_PASSES:
            medians = {candidate: ratio.median for candidate, ratio in relative_to("pmean", measured).items()}
            active = [one for one in measured if medians[one.candidate] < SLOW]
        for index in order.permutation(len(active)):
            active[index].seconds.append(bench.sample(active[index].candidate))
            progress.advance(task, 1 / len(active))
    progress.update(task, completed=config.repeats)
    return measured, left_out


def time_tables(size: float, measured: Sequence[Measured], left_out: Sequence[str]) -> str:
    """Markdown: the times of one size, and "auto" versus the best."""
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
        parts.append("Left out for want of memory: " + "; ".join(left_out) + ".")
    return "\n\n".join(parts)


def byte_tables(rows: Sequence[Row], lowerings: Sequence[tuple[str, Cost]], size: float, sync_period: int) -> str:
    """Markdown: WAGMA beside allreduce for every P, and the lowerings at the largest P."""
    table = []
    for one in rows:
        table.append(
            (
                one.num_workers,
                one.group_size,
                *(f"{cost.bytes / 1e6:.1f}" for cost in (one.allreduce, one.ordinary, one.average)),
                f"{one.ordinary.bytes / one.allreduce.bytes:.2f}",
                f"{one.average.bytes / one.allreduce.bytes:.2f}",
                *(f"{cost.messages:.3g}" for cost in (one.allreduce, one.ordinary, one.average)),
                f"{one.ordinary.messages / one.allreduce.messages:.2f}",
                f"{one.average.messages / one.allreduce.messages:.2f}",
            )
        )
    last = rows[-1]
    synced = f"with sync every {sync_period}"
    header = (
        *("P", "S", "MB allreduce", "MB round", f"MB {synced}", "MB ratio, round", "MB ratio"),
        *("messages allreduce", "messages round", f"messages {synced}", "messages ratio, round", "messages ratio"),
    )
    per_lowering = [
        (name, f"{cost.bytes / 1e6:,.1f}", f"{cost.bytes / last.allreduce.bytes:.2f}", f"{cost.messages:.3g}")
        for name, cost in (("pmean over all", last.allreduce), *lowerings)
    ]
    return "\n\n".join(
        [
            f"## Sent per device and step, model of {size:g} MB",
            "A round is an ordinary one: groups of S = sqrt(P), rounded down to a power of two. The ratios are to an "
            "allreduce of the gradients. As S grows, an optimal group mean sends nearly as many bytes as an optimal "
            "allreduce, 2 (S-1)/S of the model against 2 (P-1)/P: what stays is half the messages in sequence, and "
            "that nobody waits for workers outside of the group.",
            markdown(header, table),
            f"### Lowerings, one ordinary round, P = {last.num_workers}, S = {last.group_size}",
            markdown(("lowering", "MB", "/ allreduce", "messages in sequence"), per_lowering),
        ]
    )


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table with aligned columns."""
    cells = [tuple(map(str, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(text.rjust(w) for text, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|", *lines[1:]])


_COLORS = {
    "pmean": "#555555",
    "consensus": "#aaaaaa",
    "auto": "#d62728",
    "psum": "#1f77b4",
    "reduce_scatter": "#2ca02c",
    "ppermute": "#ff7f0e",
    "matrix": "#9467bd",
}


def time_figure(size: float, measured: Sequence[Measured], note: str) -> Figure:
    """Time relative to ``pmean``, a panel for each context; bars are medians, whiskers quartiles."""
    contexts = list(LOWERINGS_OF)
    to_pmean = relative_to("pmean", measured)
    figure = Figure(figsize=(13, 5), layout="constrained")
    panels = figure.subplots(1, len(contexts), sharey=False)
    for panel, context in zip(panels, contexts, strict=True):
        mine = {one: ratio for one, ratio in to_pmean.items() if one.context == context and one.name != "pmean"}
        sizes = sorted({one.group_size for one in mine if one.name in LOWERINGS})
        limit = 1.1 * max(1.0, *(min(ratio.q3, 4) for ratio in mine.values()))  # a few bars may be far longer
        x, ticks, labels = 0.0, [], []
        for names, group_size in [(("consensus",), NUM_WORKERS), *((LOWERINGS_OF[context], size) for size in sizes)]:
            bars = [one for name in names for one in [Candidate(context, group_size, name)] if one in mine]
            ticks.append(x + (len(bars) - 1) / 2)
            labels.append("all 8\n(consensus)" if names == ("consensus",) else f"S = {group_size}")
            for one in bars:
                _bar(panel, x, mine[one], limit, _COLORS[one.name])
                x += 1
            x += 1
        panel.axhline(1, color=_COLORS["pmean"], lw=1, ls="--")
        panel.set_ylim(0, 1.15 * limit)
        panel.set_xticks(ticks, labels)
        panel.set_title(f"shard_map, {context}, 8 devices" if context != "vmap" else "vmap, 1 device")
        panel.set_xlabel("group size")
        panel.set_ylabel("time per step / time of pmean over all 8 workers")
        panel.spines[["top", "right"]].set_visible(False)
    names = [name for name in _COLORS if name != "pmean"]
    handles = [panels[0].bar([0], [0], color=_COLORS[name], label=name) for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names), frameon=False)
    figure.suptitle(
        f"Group averaging of a {size:g} MB model; dashed: pmean, hatched: bars cut off. {note}", fontsize=10
    )
    return figure


def _bar(panel: Any, x: float, ratio: Summary, limit: float, color: str) -> None:
    """A median with its quartiles and number; hatched where it is cut off at ``limit``."""
    cut = ratio.median > limit
    whiskers = None if cut else [[ratio.median - ratio.q1], [min(ratio.q3, limit) - ratio.median]]
    hatch = "//" if cut else None
    panel.bar(x, min(ratio.median, limit), 0.85, color=color, hatch=hatch, yerr=whiskers, capsize=2, edgecolor="white")
    label = {"ha": "center", "va": "bottom", "fontsize": 8, "rotation": 90}
    label["bbox"] = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
    position = (x, limit if cut else min(ratio.q3, limit))
    panel.annotate(f"{ratio.median:.2f}", position, (0, 4), textcoords="offset points", **label)


def byte_figure(rows: Sequence[Row], size: float, sync_period: int) -> Figure:
    """Bytes and messages per device and step over P."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    workers = [one.num_workers for one in rows]
    series = [
        ("allreduce", [one.allreduce for one in rows], "s", _COLORS["pmean"]),
        (f"WAGMA, with a sync every {sync_period} steps", [one.average for one in rows], "o", _COLORS["auto"]),
        ("WAGMA, ordinary round", [one.ordinary for one in rows], "^", _COLORS["ppermute"]),
    ]
    for label, costs, marker, color in series:
        left.plot(workers, [cost.bytes / 1e6 for cost in costs], marker=marker, color=color, label=label)
        right.plot(workers, [cost.messages for cost in costs], marker=marker, color=color, label=label)
    left.set_ylabel("MB sent per device and step")
    right.set_ylabel("messages in sequence per step")
    left.set_title(f"Bytes, model of {size:g} MB")
    right.set_title("Latency")
    for panel in (left, right):
        panel.set_xscale("log", base=2)
        panel.set_xticks(workers, [f"{one.num_workers}\nS={one.group_size}" for one in rows])
        panel.minorticks_off()
        panel.set_ylim(bottom=0)
        panel.set_xlabel("workers P, groups of S")
        panel.grid(axis="y", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, loc="lower right")
    return figure


def run_time(config: Config, console: Console) -> None:
    """Measures, and writes ``xla_time.json``, ``.md`` and ``.png``."""
    about = _about()
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
        "beside the donated model, in models."
    )
    _write(config.out / "xla_time.md", "\n\n".join([title, *texts]) + "\n")
    document = {
        "about": about,
        "results": [
            {
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
                    for to_pmean in [relative_to("pmean", measured)]
                    for one in measured
                ],
                "auto": [{**one._asdict(), "ratio": one.ratio._asdict()} for one in compare(measured)],
            }
            for size, measured, left_out in results
        ],
    }
    _write(config.out / "xla_time.json", json.dumps(document, indent=1) + "\n")
    size, measured, _ = max(results, key=lambda result: result[0])
    time_figure(size, measured, note).savefig(config.out / "xla_time.png", dpi=130)


def run_bytes(config: Config, console: Console) -> None:
    """Counts, and writes ``xla_bytes.json``, ``.md`` and ``.png``."""
    size = max(config.sizes)
    shapes = collective_bytes.model_shapes(4 * round(size * 1e6 / 4))
    rows = []
    with Progress(console=console, transient=True) as progress:
        for exponent in progress.track(range(3, 11), description="count bytes"):
            rows.append(collective_bytes.row(1 << exponent, shapes, config.sync_period, config.platform))
    last = rows[-1]
    schedule = wagma.GroupSchedule(last.num_workers, last.group_size, sync_period=None)
    lowerings = []
    choices: Sequence[tuple[Lowering, bool]] = (
        ("auto", True),
        ("auto", False),
        ("psum", False),
        ("reduce_scatter", True),
        ("ppermute", True),
        ("matrix", True),
    )
    for lowering, check_vma in choices:
        cost, _ = collective_bytes.average_costs(schedule, shapes, lowering, check_vma, config.platform)
        lowerings.append((f"{lowering} (check_vma={check_vma})", cost))
    text = byte_tables(rows, lowerings, size, config.sync_period)
    console.print(text + "\n", markup=False, highlight=False, soft_wrap=True)
    note = f"Counted in programs lowered for {config.platform} by JAX {jax.__version__}; no device took part."
    _write(config.out / "xla_bytes.md", f"{text}\n\n{note}\n")
    document = {
        "jax": jax.__version__,
        "platform": config.platform,
        "sync_period": config.sync_period,
        "megabytes": size,
        "rows": [
            {name: value._asdict() if isinstance(value, Cost) else value for name, value in one._asdict().items()}
            for one in rows
        ],
        "lowerings": {name: cost._asdict() for name, cost in lowerings},
    }
    _write(config.out / "xla_bytes.json", json.dumps(document, indent=1) + "\n")
    byte_figure(rows, size, config.sync_period).savefig(config.out / "xla_bytes.png", dpi=130)


def main(config: Config) -> None:
    """Both parts, or the one that is asked for."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", NUM_WORKERS)
    config.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    if not config.bytes_only:
        run_time(config, console)
    if not config.time_only:
        run_bytes(config, console)
    console.print(f"written to {config.out}", highlight=False)


def _mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((NUM_WORKERS,), (AXIS,), axis_types=(AxisType.Auto,))


def _digest(compiled: jax.stages.Compiled) -> str:
    """Of the optimized program, without what names the lines of Python that it comes from."""
    text = compiled.as_text() or ""
    body = re.sub(r", metadata=\{[^}]*\}", "", text[text.find("\n%") :])
    return hashlib.sha256(body.encode()).hexdigest()[:12]


def _initial(shapes: dict[str, tuple[int, ...]], on_mesh: bool) -> dict[str, jax.Array]:
    """Models of all workers, each its own, where the step wants them."""
    sharding = jax.sharding.NamedSharding(_mesh(), jax.sharding.PartitionSpec(AXIS)) if on_mesh else None

    def build():
        worker = jnp.arange(1.0, NUM_WORKERS + 1)
        return {
            name: jnp.broadcast_to(worker.reshape(-1, *(1 for _ in shape)), (NUM_WORKERS, *shape))
            for name, shape in shapes.items()
        }

    return jax.block_until_ready(jax.jit(build, out_shardings=sharding)())


def _about() -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "load_average": os.getloadavg(),
        "environment": {name: value for name, value in os.environ.items() if name.startswith(("MALLOC_", "XLA_"))},
    }


def _write(path: Path, text: str) -> None:
    path.write_text(text)


if __name__ == "__main__":
    main(tyro.cli(Annotated[Config, tyro.conf.FlagCreatePairsOff], description=__doc__))
