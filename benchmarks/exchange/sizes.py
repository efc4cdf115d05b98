"""Section ``sizes``: the time of a round with nobody late, beside raw MPI and the wire alone."""

import dataclasses
import gc
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import wagma_jax as wagma
from benchmarks.exchange.models import make_model, parse_size
from benchmarks.exchange.pictures import COLORS, make_figure, panel_of, whiskers
from benchmarks.exchange.ranks import World, in_turn, make_exchange
from benchmarks.exchange.report import report
from benchmarks.exchange.section import Section
from benchmarks.exchange.traffic import moved_bytes, received_bytes
from benchmarks.samples import ratios, summarize
from benchmarks.tables import markdown, spread
from wagma_jax.averaging import accumulation_dtype

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mpi4py import MPI

    from wagma_jax.exchange.wire import Wire

MODELS_IN_USE = 13
"""Models as wide as their sums that a rank holds at most; sizes that would not fit are left out."""
WARM_UP = 8
"""Repetitions that do not count: the first ones compile."""
LEAST_REPEATS = 6
"""Made whatever time they take."""
HEADER = (
    *("model", "copy, ms", "allreduce, ms", "wire, ms", "average, ms", "wire / allreduce", "average / allreduce"),
    *("outside, ms", "MB moved", "GB/s", "n"),
)

Times = dict[str, list[float]]
"""Seconds on the slowest rank, one value for each repetition."""


class Group(NamedTuple):
    """This rank's group, which never changes here, and ways to reach it.

    Attributes:
        members: Its ranks.
        comm: Communicator of the group alone.
        wire: Of all ranks.
    """

    members: tuple[int, ...]
    comm: "MPI.Comm"
    wire: "Wire"


@dataclasses.dataclass(frozen=True)
class Sizes(Section):
    """One round with nobody late, per model size. All groups exchange at the same time, as they do in training.

    Attributes:
        repeats: Repetitions per size and dtype, at most.
        sizes: Bytes of the model: 4K, 1M, ... (powers of ten).
        dtypes: Of the model. Raw MPI knows no bfloat16, and sums as many bytes of float32.
        seconds: Per size and dtype; no repetition begins later than that, but at least 6 are made.
    """

    repeats: int = 200
    sizes: tuple[str, ...] = ("4K", "64K", "1M", "10M", "100M", "400M")
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    seconds: float = 20.0

    def __post_init__(self):
        for size in self.sizes:
            parse_size(size)

    def run(self, world: World) -> None:
        """Measures the time of a round in several ways.

        - copy: every rank copies the model at the same time. It shows what memory allows: 2 n bytes moved each.
        - allreduce: ``MPI_Allreduce`` of as many bytes of float32 on the same group, from and to memory in use.
        - wire: ``Wire.exchange`` of the flat buffers into the memory of the last result, which is what ``average()``
          mostly does.
        - average: the whole call, from a fresh tree of leaves to another. With ``quorum`` = S everyone is on time. It
          is measured after the others, and as often.
        - outside: its time less ``waited_seconds``: packing before, merging and unpacking after (slowest rank).
        - GB/s: :func:`moved_bytes` over the time of average; all ranks move as much at the same time.
        """
        from wagma_jax.exchange import wire  # imports MPI

        members = wagma.GroupSchedule(world.size, self.group_size, None, False).group_of(world.rank, 0)
        comm = world.comm.Split(members[0], world.rank)
        group = Group(members, comm, wire.Wire(world.comm.Dup(), jax.local_devices(backend="cpu")[0]))
        results, rows, left_out = [], [], []
        for dtype in self.dtypes:
            itemsize = jnp.dtype(dtype).itemsize
            wide = jnp.dtype(accumulation_dtype(dtype)).itemsize
            for name in self.sizes:
                size = parse_size(name) // itemsize
                free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
                if world.agree(MODELS_IN_USE * world.size * size * wide > free):
                    left_out.append(f"{name} {dtype}")
                    continue
                world.progress(f"{name} {dtype}")
                received = received_bytes(size, itemsize, wide, len(members), wire.LARGE_BYTES, wire.SMALL_BYTES)
                moved = moved_bytes(size, itemsize, wide, received, len(members))
                seconds = _measure(world, self, group, size, dtype)
                results.append({"bytes": size * itemsize, "dtype": dtype, "moved_bytes": moved, "seconds": seconds})
                rows.append(_row(f"{name} {dtype}", seconds, moved))
                gc.collect()
        comm.Free()
        tables = [markdown(HEADER, rows)]
        if left_out:
            tables.append("Left out for lack of memory: " + ", ".join(left_out) + ".")
        title = f"{world.size} ranks, groups of {self.group_size}"
        report(world, self, results, tables, (lambda: draw(results, title)) if results else None)


def _row(name: str, seconds: Times, moved: float) -> tuple[Any, ...]:
    summaries = {key: summarize(values) for key, values in seconds.items()}
    return (
        name,
        f"{1e3 * summaries['copy'].median:.3g}",
        *(spread(summaries[key], 1e3) for key in ("allreduce", "wire", "average")),
        spread(ratios(seconds["wire"], seconds["allreduce"])),
        spread(ratios(seconds["average"], seconds["allreduce"])),
        f"{1e3 * summaries['outside'].median:.3g}",
        f"{moved / 1e6:.3g}",
        f"{moved / summaries['average'].median / 1e9:.3g}",
        summaries["average"].n,
    )


def _measure(world: World, section: Sizes, group: Group, size: int, dtype: str) -> Times:
    """Times of one model, each measured equally often."""
    rng = np.random.default_rng(section.seed)
    # Before the exchange is opened: its background thread would look for messages meanwhile.
    times = _measure_parts(world, section, group, make_model(size, dtype), rng)
    count = len(times["copy"])
    times |= _measure_calls(world, section, group, make_model(size, dtype), count, rng)
    return {name: values[: len(times["average"])] for name, values in times.items()}


def _measure_parts(world: World, section: Sizes, group: Group, params: Any, rng: np.random.Generator) -> Times:
    """Times of copy, allreduce and wire."""
    from wagma_jax.exchange.staging import Staging

    staging = Staging(params)
    flat = staging.pack(staging.check(params))
    sent = np.asarray(flat[0]).view(np.float32)
    received = np.empty_like(sent)
    total = group.wire.memory(flat)

    def use_wire():
        nonlocal total
        _, total = group.wire.exchange(group.members, len(group.members), (0, 0), flat, total)

    candidates = {
        "copy": lambda: np.copyto(received, sent),
        "allreduce": lambda: group.comm.Allreduce(sent, received),
        "wire": use_wire,
    }
    return _take_turns(world, candidates, section.repeats, section.seconds, rng)


def _measure_calls(
    world: World, section: Sizes, group: Group, params: Any, repeats: int, rng: np.random.Generator
) -> Times:
    """Times of average, and of what it does outside the exchange."""
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0.999, tree))
    outside: list[float] = []
    options = {"sync_period": None, "rotate": False, "quorum": len(group.members)}
    with make_exchange(world, params, section.group_size, **options) as exchange:
        fresh = step(params)
        del params

        def use_average():
            nonlocal fresh
            start = time.perf_counter()
            fresh, info = exchange.average(fresh)
            jax.block_until_ready(fresh)
            outside.append(time.perf_counter() - start - info.waited_seconds)

        def take_step():
            nonlocal fresh
            fresh = jax.block_until_ready(step(fresh))

        times = _take_turns(world, {"average": use_average}, repeats, section.seconds, rng, take_step)
        return {**times, "outside": np.max(world.gather(outside[WARM_UP:]), axis=0).tolist()}


def _take_turns(
    world: World,
    candidates: dict[str, Callable[[], Any]],
    repeats: int,
    seconds: float,
    rng: np.random.Generator,
    between: Callable[[], Any] = lambda: None,
) -> Times:
    """Times of calls that take turns, in an order that is drawn anew for each repetition.

    Args:
        world: All ranks, which begin every call at the same time.
        candidates: What is called, by name.
        repeats: Repetitions, at most.
        seconds: After which no further repetition begins, once ``LEAST_REPEATS`` are made.
        rng: In the same state on all ranks.
        between: Called after each repetition; its time does not count.
    """
    times: Times = {name: [] for name in candidates}
    for _ in range(WARM_UP):
        for function in candidates.values():
            world.timed(function)
        between()
    end = time.perf_counter() + seconds
    for repeat in range(repeats):
        if world.agree(repeat >= LEAST_REPEATS and time.perf_counter() > end):
            break
        for name in in_turn(rng, list(candidates)):
            times[name].append(world.timed(candidates[name]))
        between()
    return times


def draw(results: Sequence[dict[str, Any]], title: str) -> "Figure":
    """Times over bytes, and ratios to ``MPI_Allreduce``. Lines and bars are medians; bands and whiskers, quartiles."""
    figure = make_figure(12, 4.5)
    labels = {"allreduce": "MPI_Allreduce", "wire": "wire", "average": "average()"}
    colors = {"allreduce": COLORS["allreduce"], "wire": COLORS["wire"], "average": COLORS["wagma"]}
    left = panel_of(figure, 121, "bytes of the model", "milliseconds", f"Time of a round, {title}")
    right = panel_of(figure, 122, "", "time / time of MPI_Allreduce", "Beside MPI_Allreduce of as many bytes")
    dtypes = dict.fromkeys(one["dtype"] for one in results)
    for dtype, line in zip(dtypes, ("-", "--"), strict=False):
        mine = [one for one in results if one["dtype"] == dtype]
        for name in labels:
            times = [summarize(one["seconds"][name]) for one in mine]
            middle, low, high = ([1e3 * t[i] for t in times] for i in (1, 2, 3))
            size = [one["bytes"] for one in mine]
            left.plot(size, middle, line, marker="o", ms=3, color=colors[name], label=f"{labels[name]}, {dtype}")
            left.fill_between(size, low, high, color=colors[name], alpha=0.15)
    for i, one in enumerate(results):
        for k, name in enumerate(("wire", "average")):
            ratio = ratios(one["seconds"][name], one["seconds"]["allreduce"])
            label = labels[name] if i == 0 else None
            right.bar(i + 0.4 * k, ratio.median, 0.4, color=colors[name], yerr=whiskers(ratio), capsize=2, label=label)
    ticks = [f"{one['bytes'] / 1e6:g} MB\n{one['dtype']}" for one in results]
    right.set_xticks([i + 0.2 for i in range(len(results))], ticks, fontsize=7, rotation=45)
    right.axhline(1, color=COLORS["allreduce"], lw=1, ls="--")
    left.set_xscale("log")
    left.set_yscale("log")
    for panel in (left, right):
        panel.legend(frameon=False, fontsize=8)
    return figure
