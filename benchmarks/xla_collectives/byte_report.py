"""Counts bytes and messages, and reports them: tables, a picture, and JSON."""

import json
from collections.abc import Sequence

import jax
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress

import wagma_jax as wagma
from benchmarks.shapes import model_shapes
from benchmarks.tables import markdown
from benchmarks.xla_collectives import costs
from benchmarks.xla_collectives.candidates import COLORS
from benchmarks.xla_collectives.config import Config
from benchmarks.xla_collectives.costs import Row
from benchmarks.xla_collectives.stablehlo import Cost
from wagma_jax.collectives import Lowering

EXPONENTS = range(3, 11)
"""Workers are counted in powers of two: 8 to 1,024."""
CHOICES: tuple[tuple[Lowering, bool], ...] = (
    ("auto", True),
    ("auto", False),
    ("psum", False),
    ("reduce_scatter", True),
    ("ppermute", True),
    ("matrix", True),
)
"""(lowering, check_vma), compared at the largest number of workers."""


def run_bytes(config: Config, console: Console) -> None:
    """Counts, and writes ``xla_bytes.json``, ``.md`` and ``.png``."""
    size = max(config.sizes)
    shapes = model_shapes(4 * round(size * 1e6 / 4))
    rows = []
    with Progress(console=console, transient=True) as progress:
        for exponent in progress.track(EXPONENTS, description="count bytes"):
            rows.append(costs.row(1 << exponent, shapes, config.sync_period, config.platform))
    last = rows[-1]
    schedule = wagma.GroupSchedule(last.num_workers, last.group_size, sync_period=None)
    lowerings = []
    for lowering, check_vma in CHOICES:
        cost, _ = costs.average_costs(schedule, shapes, lowering, check_vma, config.platform)
        lowerings.append((f"{lowering} (check_vma={check_vma})", cost))
    text = byte_tables(rows, lowerings, size, config.sync_period)
    console.print(text + "\n", markup=False, highlight=False, soft_wrap=True)
    note = f"Counted in programs lowered for {config.platform} by JAX {jax.__version__}; no device took part."
    (config.out / "xla_bytes.md").write_text(f"{text}\n\n{note}\n")
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
    (config.out / "xla_bytes.json").write_text(json.dumps(document, indent=1) + "\n")
    byte_figure(rows, size, config.sync_period).savefig(config.out / "xla_bytes.png", dpi=130)


def byte_tables(rows: Sequence[Row], lowerings: Sequence[tuple[str, Cost]], size: float, sync_period: int) -> str:
    """Markdown: WAGMA beside an allreduce for every P, and the lowerings at the largest P.

    Args:
        rows: One for each P, ascending.
        lowerings: Name and cost of each lowering, at the last row's P.
        size: Of the model, in MB.
        sync_period: Of WAGMA.
    """
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
            "A round is an ordinary one, in groups of S = sqrt(P), rounded down to a power of two. Ratios are to an "
            "allreduce of the gradients. As S grows, an optimal group mean sends nearly as many bytes as an optimal "
            "allreduce: 2 (S-1)/S of the model against 2 (P-1)/P. What remains is that half as many messages wait for "
            "each other, and that nobody waits for workers outside the group.",
            markdown(header, table),
            f"### Lowerings, one ordinary round, P = {last.num_workers}, S = {last.group_size}",
            markdown(("lowering", "MB", "/ allreduce", "messages in sequence"), per_lowering),
        ]
    )


def byte_figure(rows: Sequence[Row], size: float, sync_period: int) -> Figure:
    """Bytes and messages per device and step over P, for a model of ``size`` MB."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    workers = [one.num_workers for one in rows]
    series = [
        ("allreduce", [one.allreduce for one in rows], "s", COLORS["pmean"]),
        (f"WAGMA, with a sync every {sync_period} steps", [one.average for one in rows], "o", COLORS["auto"]),
        ("WAGMA, ordinary round", [one.ordinary for one in rows], "^", COLORS["ppermute"]),
    ]
    for label, values, marker, color in series:
        left.plot(workers, [cost.bytes / 1e6 for cost in values], marker=marker, color=color, label=label)
        right.plot(workers, [cost.messages for cost in values], marker=marker, color=color, label=label)
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
