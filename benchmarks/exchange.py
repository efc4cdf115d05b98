"""``GroupExchange`` across processes beside raw MPI: what a round costs, and what stragglers cost whom.

Start it on several ranks, ``wagma launch -n 4 --no-prefix -- python benchmarks/exchange.py SECTION``, nothing else at
the same time; ``--help`` after the section lists its options. What is compared runs in the same processes and takes
turns, in an order that changes from repetition to repetition, so that a machine that drifts hits all alike. All ranks
pass a barrier before every repetition, the slowest rank's time counts, and what is compiled or allocated first (the
warm-up) is not counted. Rank 0 prints Markdown tables and writes ``exchange-SECTION-P.json`` (every sample) and
``.png``. "a (b - c; d)" is the median, the quartiles, and the 95th percentile.

Sections:

- ``sizes``: one round with nobody late, per model size: a raw ``MPI_Allreduce`` on the same group, the wire alone, and
  all of ``average()``.
- ``straggler``: one worker is late by seconds, asleep, in one long computation, or in a Python loop: how long the
  others wait in ordinary rounds.
- ``rotating``: another worker is late at every step: steps per second beside Allreduce-SGD's, and beside the bound
  that the sync period sets.
- ``slow``: one worker is always slower: steps per second with both clocks, and how fast the others are between syncs.
- ``idle``: what the background thread costs: CPU time, latency, memory.
"""

import ctypes
import dataclasses
import datetime
import gc
import importlib.metadata
import json
import math
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax
from matplotlib.figure import Figure

import wagma_jax as wagma
from benchmarks import collective_bytes
from benchmarks.xla_collectives import Summary, markdown, ratios, summarize
from wagma_jax.averaging import accumulation_dtype

SIZE_NAMES = {"K": 1_000, "M": 1_000_000, "G": 1_000_000_000}
MODELS_IN_USE = 13
"""Models, as wide as their sums, that a rank holds in the section ``sizes``, at most; sizes that would not fit are left
out."""
COLORS = {"allreduce": "#555555", "wire": "#ff7f0e", "wagma": "#d62728", "step": "#9467bd", "bound": "#1f77b4"}


@dataclasses.dataclass(frozen=True)
class Section:
    """What all sections share.

    Attributes:
        group_size: S.
        repeats: Repetitions (of ``sizes``: at most).
        seed: Of orders and of delays.
        out: Where JSON and pictures go.
    """

    group_size: int = 2
    repeats: int = 5
    seed: int = 0
    out: Path = Path("benchmarks/results")


@dataclasses.dataclass(frozen=True)
class Sizes(Section):
    """One round with nobody late, per model size. All groups exchange at the same time, as they do in training.

    Attributes:
        repeats: Per size and dtype, at most.
        sizes: Bytes of the model: 4K, 1M, ... (powers of ten).
        dtypes: Of the model; raw MPI sums as many bytes of float32 instead, since it knows no bfloat16.
        seconds: Per size and dtype, after which no further repetition begins (but at least 6 are made).
    """

    repeats: int = 200
    sizes: tuple[str, ...] = ("4K", "64K", "1M", "10M", "100M", "400M")
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    seconds: float = 20.0


@dataclasses.dataclass(frozen=True)
class Straggler(Section):
    """One worker is late by seconds: how long do the others wait meanwhile?

    Attributes:
        floats: Of the models, one after the other.
        late_seconds: By how much the last rank is late.
        step_seconds: Of the others' steps, which sleep.
        sync_period: Large, so that ordinary rounds are what is measured; only they are counted.
    """

    floats: tuple[int, ...] = (1_000_000, 25_000_000)
    late_seconds: float = 3.0
    step_seconds: float = 0.03
    sync_period: int = 100_000


@dataclasses.dataclass(frozen=True)
class Training(Section):
    """Sections that train for some rounds.

    Attributes:
        floats: Of the model.
        rounds: Per repetition; whole sync periods.
        sync_period: Of WAGMA.
        step_seconds: Of a step, which sleeps.
    """

    repeats: int = 3
    floats: int = 1_000_000
    rounds: int = 300
    sync_period: int = 10
    step_seconds: float = 0.03

    def check(self) -> None:
        """ValueError if a repetition ends within a sync period."""
        if self.rounds % self.sync_period:
            raise ValueError(f"rounds must be whole sync periods of {self.sync_period}, got {self.rounds}")


@dataclasses.dataclass(frozen=True)
class Rotating(Training):
    """At every step one worker, drawn at random, is late.

    Attributes:
        late_seconds: By which the step of one worker is longer.
    """

    late_seconds: float = 0.15


@dataclasses.dataclass(frozen=True)
class Slow(Training):
    """One worker, the last rank, is always slower.

    Attributes:
        factor: How many times slower the last rank is.
    """

    rounds: int = 200
    factor: float = 4.0


@dataclasses.dataclass(frozen=True)
class Idle(Section):
    """What the background thread costs.

    Attributes:
        repeats: Of the measurements of CPU time.
        seconds: For which trainers sleep, or wait, while CPU time is counted.
        activations: Repetitions of the measurement of latency.
        floats: Of the model whose rounds' CPU time is counted.
        rounds: Of one measurement of CPU time per round.
        step_seconds: Of these rounds' steps, which sleep.
        memory: Size of the model whose copies are counted.
        late_seconds: By which workers are late while they are counted.
    """

    seconds: float = 5.0
    activations: int = 100
    floats: int = 1_000_000
    rounds: int = 100
    step_seconds: float = 0.03
    memory: str = "100M"
    late_seconds: float = 0.5


# --- What needs no MPI ---


def parse_size(text: str) -> int:
    """Bytes from 4K, 1M, 1.5G (powers of ten)."""
    unit = SIZE_NAMES.get(text[-1:].upper(), 1)
    try:
        size = round(float(text.rstrip("kKmMgG")) * unit)
    except ValueError:
        size = 0
    if size <= 0:
        raise ValueError(f"sizes must be positive numbers of bytes, K, M or G, got {text!r}: write for example 100M")
    return size


def leaf_shapes(elements: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a model: 64 leaves of mixed sizes, or four for models of less than 100,000 elements."""
    if elements >= 100_000:
        return collective_bytes.model_shapes(4 * elements)
    bias = max(1, elements // 32)
    large = (elements - 2 * bias) * 2 // 3
    return {"kernel0": (large,), "bias0": (bias,), "kernel1": (elements - large - 2 * bias,), "bias1": (bias,)}


def received_bytes(size: int, itemsize: int, wide: int, members: int, large_bytes: int, small_bytes: int) -> float:
    """Bytes that a worker receives in an ordinary exchange, as ``wagma_jax.exchange.wire`` makes it.

    Args:
        size: Elements of the buffer.
        itemsize: Bytes of an element, which travels on the first hop.
        wide: Bytes of an element of a partial sum.
        members: n, of the group.
        large_bytes: Above which a buffer is sent ahead.
        small_bytes: Up to which a buffer goes by recursive doubling.

    Returns:
        Per element: two members, and recursive doubling of small buffers, ``itemsize + (log2(n) - 1) wide``; large
        ones, and where n is no power of two, ``(1 - 1/n) (itemsize + wide)``; halving-doubling
        ``itemsize / 2 + (1/2 - 1/n) wide + (1 - 1/n) wide``.
    """
    if members == 1:
        return 0.0
    rest = 1 - 1 / members
    if members == 2 or (not members & (members - 1) and size * itemsize <= small_bytes):
        per_element = itemsize + (math.log2(members) - 1) * wide
    elif members & (members - 1) or size * itemsize > large_bytes:
        per_element = rest * (itemsize + wide)
    else:
        per_element = itemsize / 2 + (0.5 - 1 / members) * wide + rest * wide
    return size * per_element


def moved_bytes(size: int, itemsize: int, wide: int, received: float, members: int = 2) -> float:
    """Bytes that ``average()`` moves through memory on one worker that is on time, of a large model.

    For a model of n bytes and its sum of w bytes (w = n for float32, 2 n for bfloat16): ``pack`` reads W' and writes
    the publication (2 n); the exchange receives from the others (``received``: read from their memory, and summed while
    it is in the cache), reads the publication (n) and writes the mean (w); in groups of more than two the own share of
    the sum is written and read before (2 w / S); a mean that is wider than the model is rounded (read w, write n). The
    leaves of the result are views. ``3 n + w + received``, and ``w + n`` more for narrow models; of float32 in groups
    of two, 5 n.
    """
    model, total = size * itemsize, size * wide
    share = total / members if members > 2 else 0
    return 3 * model + total + received + 2 * share + (total + model if wide != itemsize else 0)


def draw_delays(rounds: int, num_workers: int, seconds: float, seed: Sequence[int]) -> np.ndarray:
    """[rounds, num_workers]: by how much each worker's step is longer; one random worker's in every round."""
    delays = np.zeros((rounds, num_workers))
    delays[np.arange(rounds), np.random.default_rng(seed).integers(num_workers, size=rounds)] = seconds
    return delays


def bound_seconds(delays: np.ndarray, step_seconds: float, sync_period: int) -> float:
    """The least time for the steps if all wait for each other every ``sync_period`` rounds, and never else.

    The sum over the periods of the slowest worker's steps; with ``sync_period=1``, the bound of Allreduce-SGD.
    """
    starts = range(0, len(delays), sync_period)
    return float(sum((delays[t : t + sync_period] + step_seconds).sum(0).max() for t in starts))


class Call(NamedTuple):
    """One local step and its call of ``average``.

    Attributes:
        ended: When it returned (seconds, one clock for all ranks of a machine).
        is_sync: Whether it was a sync round.
        waited: Seconds that it waited.
        staleness: Of this worker's contribution.
        with_late: Whether the last rank is in the group.
    """

    ended: float
    is_sync: bool
    waited: float
    staleness: int
    with_late: bool


def rates_between_syncs(calls: Sequence[Call]) -> list[float]:
    """Local steps per second, one value for each sync period: from a sync's end to that of the last ordinary call."""
    rates, last_sync = [], None
    for i, call in enumerate(calls):
        if not call.is_sync:
            continue
        if last_sync is not None and i - last_sync > 1:
            rates.append((i - 1 - last_sync) / (calls[i - 1].ended - calls[last_sync].ended))
        last_sync = i
    return rates


def waits(calls: Iterable[Call], until: float = math.inf, with_late: bool | None = None) -> list[float]:
    """Seconds waited in ordinary rounds that ended by ``until``; those with (True) or without the last rank, or all."""
    return [
        call.waited
        for call in calls
        if not call.is_sync and call.ended <= until and with_late in (None, call.with_late)
    ]


def text(values: Sequence[float] | Summary, scale: float = 1.0, digits: int = 2) -> str:
    """``median (q1 - q3; p95)``."""
    if not isinstance(values, Summary) and not len(values):
        return "-"
    one = values if isinstance(values, Summary) else summarize(values)
    median, q1, q3, p95 = (f"{scale * value:.{digits}f}" for value in (one.median, one.q1, one.q3, one.p95))
    return f"{median} ({q1} - {q3}; {p95})"


# --- What all sections use ---


class World:
    """All ranks. Everything is said and written by rank 0."""

    def __init__(self):
        from mpi4py import MPI  # initializes MPI, which the pure parts do without

        self.comm: MPI.Intracomm = MPI.COMM_WORLD
        self.rank, self.size = self.comm.rank, self.comm.size
        self.library = MPI.Get_library_version().split(",")[0].strip()

    @property
    def is_late(self) -> bool:
        """Whether this is the rank that is late, or slow: the last one."""
        return self.rank == self.size - 1

    def timed(self, function: Callable[[], Any]) -> float:
        """Seconds of a call that all ranks begin at the same time, on the slowest rank."""
        self.comm.Barrier()
        start = time.perf_counter()
        function()
        return max(self.comm.allgather(time.perf_counter() - start))

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, on all ranks."""
        return self.comm.allgather(value)

    def agree(self, value: Any) -> Any:
        """Rank 0's value."""
        return self.comm.bcast(value)

    def say(self, words: str) -> None:
        """Prints, on rank 0."""
        if self.rank == 0:
            print(words, flush=True)

    def progress(self, words: str) -> None:
        """Tells the user what is being done, on rank 0's stderr."""
        if self.rank == 0:
            print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def make_exchange(world: World, params: Any, config: Section, **options: Any) -> "wagma.GroupExchange":
    """An exchange of all ranks that all have started."""
    exchange = wagma.GroupExchange(world.comm, params, group_size=config.group_size, **options)
    world.comm.Barrier()
    return exchange


def make_model(elements: int, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    """Parameters that are all one, made without a compiler, which would keep megabytes for each of 64 shapes."""
    shapes = leaf_shapes(elements)
    return jax.block_until_ready({name: jnp.array(np.ones(shape, dtype)) for name, shape in shapes.items()})


def step_of(exchange: "wagma.GroupExchange", params: Any, late_rank: int) -> tuple[Any, Call]:
    """``average``, and what there is to say about it."""
    params, info = exchange.average(params)
    call = Call(time.perf_counter(), info.is_sync, info.waited_seconds, info.staleness, late_rank in info.group)
    return params, call


def warm_up(world: World, exchange: "wagma.GroupExchange", params: Any, sync_period: int) -> Any:
    """Whole sync periods in which every worker has been late, so that nothing remains to be compiled."""
    periods = math.ceil(world.size / max(1, sync_period - 1)) + 1
    while exchange.round + 1 < periods * sync_period:
        time.sleep(0.15 if (exchange.round + 1) % world.size == world.rank else 0.02)
        params, _ = exchange.average(params)
    return params


def in_turn(rng: np.random.Generator, names: Sequence[Any]) -> list[Any]:
    """The names in a random order, the same on all ranks that have the same generator."""
    return [names[i] for i in rng.permutation(len(names))]


def finish(world: World, config: Section, results: Any, tables: Sequence[str], figure: Figure | None) -> None:
    """Prints the tables; writes all samples and the picture."""
    if world.rank != 0:
        return
    name = f"exchange-{type(config).__name__.lower()}-{world.size}"
    about = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "ranks": world.size,
        "mpi": world.library,
        **{package: importlib.metadata.version(package) for package in ("jax", "mpi4jax", "mpi4py")},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "load_average_after": os.getloadavg(),
        "environment": {
            key: value
            for key, value in os.environ.items()
            if key.startswith(("MALLOC_", "GLIBC_", "XLA_", "NPROC", "OMPI_MCA_"))
        },
        "config": {key: str(value) if isinstance(value, Path) else value for key, value in vars(config).items()},
    }
    config.out.mkdir(parents=True, exist_ok=True)
    document = {"about": about, "results": results, "tables": list(tables)}
    (config.out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    if figure is not None:
        figure.savefig(config.out / f"{name}.png", dpi=130)
    note = (
        f"{world.size} ranks, S = {config.group_size}, {os.cpu_count()} cores, JAX {jax.__version__}, {world.library}"
    )
    world.say("\n\n".join(["", f"{note}; a (b - c; d): median (quartiles; 95th percentile).", *tables]))
    world.say(f"\nwritten to {config.out / name}.json")


def panel_of(figure: Figure, position: Any, xlabel: str, ylabel: str, title: str) -> Any:
    """Axes with names."""
    panel = figure.add_subplot(position)
    panel.set_xlabel(xlabel)
    panel.set_ylabel(ylabel)
    panel.set_title(title, fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)
    return panel


def bar(
    panel: Any, x: float, values: Sequence[float], color: str, label: str | None = None, width: float = 0.7
) -> None:
    """The median, from zero, with quartiles as whiskers."""
    one = summarize(values)
    spread = [[one.median - one.q1], [one.q3 - one.median]]
    panel.bar(x, one.median, width, color=color, yerr=spread, capsize=3, label=label)
    panel.annotate(f"{one.median:.3g}", (x, one.q3), (0, 3), textcoords="offset points", ha="center", fontsize=8)


# --- Sections ---


def run_sizes(world: World, config: Sizes) -> None:
    """Time of a round, with nobody late: raw MPI, the wire, and ``average()``.

    - copy: one copy of the model by every rank at the same time, what memory allows (2 n bytes moved each).
    - allreduce: ``MPI_Allreduce`` of as many bytes of float32 on the same group, from and to memory in use.
    - wire: ``Wire.exchange`` of the flat buffers, the result in the memory of the result before, as mostly in
      ``average()``.
    - average: the whole call, from a fresh tree of leaves to another, ``quorum`` = S so that everybody is on time;
      after the others, as often.
    - outside: its time less ``waited_seconds``: packing before, merging and unpacking after (on the slowest rank).
    - GB/s: :func:`moved_bytes` over the time of average; all ranks move as much at the same time.
    """
    from wagma_jax.exchange import wire as wire_module

    wire = wire_module.Wire(world.comm.Dup(), jax.local_devices(backend="cpu")[0])
    group = wagma.GroupSchedule(world.size, config.group_size, None, False).group_of(world.rank, 0)
    group_comm = world.comm.Split(group[0], world.rank)
    results, rows, left_out = [], [], []
    for dtype in config.dtypes:
        itemsize = jnp.dtype(dtype).itemsize
        for name in config.sizes:
            size = parse_size(name) // itemsize
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            wide = jnp.dtype(accumulation_dtype(dtype)).itemsize
            if world.agree(MODELS_IN_USE * world.size * size * wide > free):
                left_out.append(f"{name} {dtype}")
                continue
            world.progress(f"{name} {dtype}")
            samples = _measure_size(world, config, wire, group, group_comm, size, dtype)
            limits = wire_module.LARGE_BYTES, wire_module.SMALL_BYTES
            received = received_bytes(size, itemsize, wide, len(group), *limits)
            moved = moved_bytes(size, itemsize, wide, received, len(group))
            seconds = {key: summarize(values) for key, values in samples.items()}
            results.append({"bytes": size * itemsize, "dtype": dtype, "moved_bytes": moved, "seconds": samples})
            rows.append(
                (
                    f"{name} {dtype}",
                    f"{1e3 * seconds['copy'].median:.3g}",
                    *(text(seconds[key], 1e3) for key in ("allreduce", "wire", "average")),
                    text(ratios(samples["wire"], samples["allreduce"])),
                    text(ratios(samples["average"], samples["allreduce"])),
                    f"{1e3 * seconds['outside'].median:.3g}",
                    f"{moved / 1e6:.3g}",
                    f"{moved / seconds['average'].median / 1e9:.3g}",
                    seconds["average"].n,
                )
            )
            gc.collect()
    header = (
        *("model", "copy, ms", "allreduce, ms", "wire, ms", "average, ms", "wire / allreduce", "average / allreduce"),
        *("outside, ms", "MB moved", "GB/s", "n"),
    )
    tables = [markdown(header, rows)]
    if left_out:
        tables.append("Left out for want of memory: " + ", ".join(left_out) + ".")
    finish(world, config, results, tables, _sizes_figure(results, world, config) if results else None)
    group_comm.Free()


def _measure_size(world, config, wire, group, group_comm, size, dtype) -> dict[str, list[float]]:
    from wagma_jax.exchange.staging import Staging

    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0.999, tree))
    params = make_model(size, dtype)
    staging = Staging(params)
    flat = staging.pack(staging.check(params))
    sent = np.asarray(flat[0]).view(np.float32)
    received = np.empty_like(sent)
    outside: list[float] = []
    rng = np.random.default_rng(config.seed)
    samples: dict[str, list[float]] = {}

    total = wire.memory(flat)

    def use_wire():
        nonlocal total
        _, total = wire.exchange(group, len(group), (0, 0), flat, total)

    def measure(candidates: dict[str, Callable[[], Any]], repeats: int, after: Callable[[], Any]) -> int:
        for _ in range(8):  # the first rounds compile
            for function in candidates.values():
                world.timed(function)
            after()
        outside.clear()
        samples.update({name: [] for name in candidates})
        end = time.perf_counter() + config.seconds
        for repeat in range(repeats):
            if world.agree(repeat >= 6 and time.perf_counter() > end):
                return repeat
            for name in in_turn(rng, list(candidates)):
                samples[name].append(world.timed(candidates[name]))
            after()
        return repeats

    # before the exchange is opened, whose background thread would look for messages meanwhile
    count = measure(
        {
            "copy": lambda: np.copyto(received, sent),
            "allreduce": lambda: group_comm.Allreduce(sent, received),
            "wire": use_wire,
        },
        config.repeats,
        lambda: None,
    )
    del total
    with make_exchange(world, params, config, sync_period=None, rotate=False, quorum=len(group)) as exchange:
        fresh = step(params)
        del params

        def use_average():
            nonlocal fresh
            start = time.perf_counter()
            fresh, info = exchange.average(fresh)
            jax.block_until_ready(fresh)
            outside.append(time.perf_counter() - start - info.waited_seconds)

        def again():
            nonlocal fresh
            fresh = jax.block_until_ready(step(fresh))

        count = min(count, measure({"average": use_average}, count, again))
        samples["outside"] = np.max(world.gather(outside), axis=0).tolist()
    return {name: values[:count] for name, values in samples.items()}


def _sizes_figure(results: Sequence[dict[str, Any]], world: World, config: Sizes) -> Figure:
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    labels = {"allreduce": "MPI_Allreduce", "wire": "wire", "average": "average()"}
    colors = {"allreduce": COLORS["allreduce"], "wire": COLORS["wire"], "average": COLORS["wagma"]}
    title = f"{world.size} ranks, groups of {config.group_size}"
    left = panel_of(figure, 121, "bytes of the model", "milliseconds", f"Time of a round, {title}")
    right = panel_of(figure, 122, "", "time / time of MPI_Allreduce", "Beside MPI_Allreduce of as many bytes")
    for dtype, line in zip(config.dtypes, ("-", "--"), strict=False):
        mine = [one for one in results if one["dtype"] == dtype]
        for name in labels if mine else ():
            times = [summarize(one["seconds"][name]) for one in mine]
            middle, low, high = ([1e3 * t[i] for t in times] for i in (1, 2, 3))
            size = [one["bytes"] for one in mine]
            left.plot(size, middle, line, marker="o", ms=3, color=colors[name], label=f"{labels[name]}, {dtype}")
            left.fill_between(size, low, high, color=colors[name], alpha=0.15)
    for i, one in enumerate(results):
        for k, name in enumerate(("wire", "average")):
            ratio = ratios(one["seconds"][name], one["seconds"]["allreduce"])
            spread = [[ratio.median - ratio.q1], [ratio.q3 - ratio.median]]
            label = labels[name] if i == 0 else None
            right.bar(i + 0.4 * k, ratio.median, 0.4, color=colors[name], yerr=spread, capsize=2, label=label)
    ticks = [f"{one['bytes'] / 1e6:g} MB\n{one['dtype']}" for one in results]
    right.set_xticks([i + 0.2 for i in range(len(results))], ticks, fontsize=7, rotation=45)
    right.axhline(1, color=COLORS["allreduce"], lw=1, ls="--")
    left.set_xscale("log")
    left.set_yscale("log")
    for panel in (left, right):
        panel.legend(frameon=False, fontsize=8)
    return figure


_MALLINFO = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
BUSY = {"asleep": "sleeps", "jit": "is in one long computation", "python": "is in a loop of Python"}
"""How the straggler is late."""


def run_straggler(world: World, config: Straggler) -> None:
    """How long the others wait in ordinary rounds while the last rank is late, beside the same rounds with nobody late.

    - nobody: all train for as long; the waits of the same ranks count.
    - asleep, jit, python: the last rank is late by ``late_seconds`` (the others' waits until it is back count; those of
      the groups that it is in are given as well: its background thread must answer).
    - allreduce: the others' time inside ``MPI_Allreduce``, with nobody late, and in the step in which the last rank is.
    """
    results, rows, figures = [], [], []
    for floats in config.floats:
        episodes = _straggler_episodes(world, config, floats)
        arms: dict[str, dict[str, Any]] = {}
        for arm, late, calls in episodes:
            one = arms.setdefault(arm, {"late_seconds": [], "waits": [], "waits_with_late": [], "per_repeat": []})
            found = waits(calls)
            one["late_seconds"].append(late)
            one["per_repeat"].append(found)
            one["waits"] += found
            one["waits_with_late"] += waits(calls, with_late=True)
        results.append({"floats": floats, "arms": arms})
        figures.append((floats, arms))
        for arm, one in arms.items():
            base = arms["allreduce, nobody" if arm.startswith("allreduce") else "nobody"]["waits"]
            mine = summarize(one["waits"])
            rows.append(
                (
                    f"{floats:,}",
                    arm,
                    f"{summarize(one['late_seconds']).median:.2f}",
                    text(mine, 1e3),
                    f"{1e3 * max(one['waits']):.1f}",
                    "-" if "nobody" in arm else text(one["waits_with_late"], 1e3),
                    f"{mine.median / summarize(base).median:.2f}",
                    f"{mine.p95 / summarize(base).p95:.2f}",
                    mine.n,
                )
            )
    header = (
        *("floats", "the last rank", "late, s", "others waited, ms", "longest, ms", "in its group, ms"),
        *("median / nobody late", "p95 / nobody late", "n"),
    )
    figure = Figure(figsize=(5.5 * len(figures), 4.2), layout="constrained")
    for i, (floats, arms) in enumerate(figures):
        title = f"{floats:,} floats, {world.size} ranks, groups of {config.group_size}"
        panel = panel_of(figure, 101 + 10 * len(figures) + i, "the last rank", "others waited in a round, ms", title)
        for k, one in enumerate(arms.values()):
            mine, color = summarize(one["waits"]), COLORS["allreduce" if k >= len(BUSY) + 1 else "wagma"]
            panel.plot([k, k], [1e3 * mine.median, 1e3 * mine.p95], color=color)
            panel.plot(k, 1e3 * mine.median, "o", color=color, label="median" if k == 0 else None)
            panel.plot(k, 1e3 * mine.p95, "_", ms=12, color=color, label="95th percentile" if k == 0 else None)
        panel.set_yscale("log")
        panel.set_xticks(range(len(arms)), [arm.replace(", ", ",\n") for arm in arms], fontsize=8)
        panel.legend(frameon=False)
    finish(world, config, results, [markdown(header, rows)], figure)


def _straggler_episodes(world: World, config: Straggler, floats: int) -> list[tuple[str, float, list[Call]]]:
    """(arm, seconds by which the last rank was late, the other ranks' calls meanwhile), for every repetition."""
    last, arms = world.size - 1, ["nobody", *BUSY, "allreduce, nobody", "allreduce, asleep"]
    burn = jax.jit(lambda x, n: lax.fori_loop(0, n, lambda _, x: jnp.tanh(x @ x), x))
    matrix = jnp.ones((300, 300)) / 300
    per_second = _calibrate(burn, matrix, config) if world.is_late else time.sleep(min(1.5, config.late_seconds))
    gradient, total = np.ones(floats, np.float32), np.empty(floats, np.float32)
    params = make_model(floats)
    rng = np.random.default_rng(config.seed)
    result = []

    def be_late(arm: str) -> None:
        nonlocal per_second
        start = time.perf_counter()
        end = start + config.late_seconds
        if arm == "jit":
            assert per_second is not None
            count = math.ceil(1.1 * config.late_seconds * per_second)
            jax.block_until_ready(burn(matrix, count))
            per_second = count / (time.perf_counter() - start)  # it is not alone; the warm-up's is the first guess
        elif arm == "python":
            count = 0
            while time.perf_counter() < end:
                count += 1
        else:
            time.sleep(config.late_seconds)

    def train(arm: str, params: Any) -> tuple[Any, float, list[Call]]:
        """Everybody but a straggler trains for ``late_seconds``."""
        calls = []
        start = time.perf_counter()
        late = 0.0
        if world.is_late and arm != "nobody":
            be_late(arm)
            late = time.perf_counter() - start
            params, _ = exchange.average(params)
        else:
            while time.perf_counter() < start + config.late_seconds:
                time.sleep(config.step_seconds)
                params, call = step_of(exchange, params, last)
                calls.append(call)
        everyone = world.gather((start + late if late else math.inf, late, calls))
        until, late, _ = everyone[last]
        kept = [call for _, _, calls in everyone[:last] for call in calls if call.ended <= until]
        return exchange.consensus(params), late, kept  # which brings all to the same round again

    def allreduce(is_late: bool) -> tuple[float, list[Call]]:
        calls = []
        for _ in range(1 if is_late else 20):
            late = is_late and world.is_late
            time.sleep(config.late_seconds if late else config.step_seconds)
            start = time.perf_counter()
            world.comm.Allreduce(gradient, total)
            end = time.perf_counter()
            calls.append(Call(end, False, end - start, 0, True))
        everyone = world.gather(calls)
        seconds = config.late_seconds - config.step_seconds if is_late else 0.0
        return seconds, [call for calls in everyone[:last] for call in calls]

    with make_exchange(world, params, config, sync_period=config.sync_period) as exchange:
        params = exchange.params
        for repeat in range(-1, config.repeats):  # the first is the warm-up
            for arm in in_turn(rng, arms):
                world.progress(f"{floats:,} floats, {'warm-up' if repeat < 0 else f'repetition {repeat + 1}'}: {arm}")
                world.comm.Barrier()
                if arm.startswith("allreduce"):
                    late, calls = allreduce("asleep" in arm)
                else:
                    params, late, calls = train(arm, params)
                if repeat >= 0:
                    result.append((arm, late, calls))
    return sorted(result, key=lambda one: arms.index(one[0]))


def _calibrate(burn: Callable[..., Any], matrix: jax.Array, config: Straggler) -> float:
    """Iterations per second, while the other ranks sleep."""
    jax.block_until_ready(burn(matrix, 1))
    start, count = time.perf_counter(), 0
    while time.perf_counter() < start + min(0.5, config.late_seconds / 3):
        jax.block_until_ready(burn(matrix, 50))
        count += 50
    return count / (time.perf_counter() - start)


def run_rotating(world: World, config: Rotating) -> None:
    """Steps per second, summed over the workers, where every step is late on one worker, drawn at random.

    - allreduce: raw ``MPI_Allreduce`` of a gradient of the model's size after every step, with the same delays.
    - wagma: ``GroupExchange.average`` after every step, ``clock="step"``.
    - of the bound: beside the steps per second that nobody can exceed who waits for all at the end of every sync
      period (of Allreduce: of every step), were averaging free. See :func:`bound_seconds`.
    """
    config.check()
    params = make_model(config.floats)
    gradient, total = np.ones(config.floats, np.float32), np.empty(config.floats, np.float32)
    steps = world.size * config.rounds
    samples: dict[str, list[float]] = {"allreduce": [], "wagma": []}
    bounds: dict[str, list[float]] = {"allreduce": [], "wagma": []}
    calls: list[Call] = []
    with make_exchange(world, params, config, sync_period=config.sync_period) as exchange:
        params = warm_up(world, exchange, exchange.params, config.sync_period)

        def train(arm: str) -> None:
            nonlocal params
            for delay in delays[:, world.rank]:
                time.sleep(config.step_seconds + delay)
                if arm == "wagma":
                    params, call = step_of(exchange, params, -1)
                    calls.append(call)
                else:
                    world.comm.Allreduce(gradient, total)

        for repeat in range(config.repeats):
            delays = draw_delays(config.rounds, world.size, config.late_seconds, (config.seed, repeat))
            for arm in ("wagma", "allreduce") if repeat % 2 == 0 else ("allreduce", "wagma"):
                world.progress(f"repetition {repeat + 1}: {arm}")
                samples[arm].append(steps / world.timed(lambda arm=arm: train(arm)))
                period = config.sync_period if arm == "wagma" else 1
                bounds[arm].append(steps / bound_seconds(delays, config.step_seconds, period))
    everyone = [call for calls in world.gather(calls) for call in calls]
    rows = [
        (
            arm,
            text(samples[arm], digits=1),
            text(ratios(samples[arm], samples["allreduce"])),
            text(bounds[arm], digits=1),
            text(ratios(samples[arm], bounds[arm])),
            len(samples[arm]),
        )
        for arm in samples
    ]
    late = sum(call.staleness > 0 for call in everyone) / len(everyone)
    stalest = max(call.staleness for call in everyone)
    note = (
        f"Waited in ordinary rounds, ms: {text(waits(everyone), 1e3)}. Late contributions: {100 * late:.0f} %, the "
        f"stalest {stalest} rounds old."
    )
    header = ("", "steps/s", "/ allreduce", "bound, steps/s", "of the bound", "repetitions")
    results = {
        "steps_per_second": samples,
        "bound_steps_per_second": bounds,
        "ordinary_waits": waits(everyone),
        "late_fraction": late,
        "max_staleness": stalest,
    }
    figure = Figure(figsize=(5.5, 4.2), layout="constrained")
    title = (
        f"{world.size} ranks, groups of {config.group_size}, {1e3 * config.step_seconds:g} ms a step,\n"
        f"+{1e3 * config.late_seconds:g} ms on one; bars: medians, whiskers: quartiles"
    )
    panel = panel_of(figure, 111, "", "steps per second, all workers", title)
    for x, arm in enumerate(samples):
        bar(panel, x, samples[arm], COLORS[arm])
        height = summarize(bounds[arm]).median
        label = "bound set by waiting" if x == 0 else None
        panel.plot([x - 0.45, x + 0.45], [height, height], "--", color=COLORS["bound"], label=label)
    panel.set_xticks([0, 1], ["Allreduce-SGD", "WAGMA"])
    panel.legend(frameon=False, loc="upper left")
    panel.margins(y=0.15)
    finish(world, config, results, [markdown(header, rows), note], figure)


class Arm(NamedTuple):
    """How a run trains: "round" or "step" (a clock of WAGMA) or "allreduce", and whether the last rank is slow."""

    how: str
    slow: bool

    def __str__(self) -> str:
        how = self.how if self.how == "allreduce" else f"wagma, clock={self.how}"
        return how if self.slow else f"{how}, nobody slow"


def run_slow(world: World, config: Slow) -> None:
    """Local steps per second, summed over the workers, where the last rank is always slower.

    - steps/s: all local steps over the time from the start to the slowest rank's end; each run makes ``rounds`` rounds,
      in which the slow rank makes fewer steps by the clock "round".
    - others, steps/s between syncs: of each of the other workers, from the end of a sync round to that of the last
      ordinary one before the next sync; nobody waits for the slow one there, if all is well.
    """
    config.check()
    initial = make_model(config.floats)
    gradient, total = np.ones(config.floats, np.float32), np.empty(config.floats, np.float32)
    arms = [Arm(how, slow) for slow in (True, False) for how in ("allreduce", "step", "round")]
    rng = np.random.default_rng(config.seed)
    samples: dict[Arm, list[float]] = {arm: [] for arm in arms}
    rates: dict[Arm, list[float]] = {arm: [] for arm in arms}
    own: dict[Arm, list[int]] = {arm: [] for arm in arms}
    options: dict[str, Any] = {"sync_period": config.sync_period}
    with (
        make_exchange(world, initial, config, clock="step", **options) as by_step,
        make_exchange(world, initial, config, clock="round", **options) as by_round,
    ):
        exchanges = {"step": by_step, "round": by_round}
        models = {how: warm_up(world, one, one.params, config.sync_period) for how, one in exchanges.items()}
        del initial

        def train(arm: Arm, calls: list[Call]) -> None:
            seconds = config.step_seconds * (config.factor if arm.slow and world.is_late else 1)
            if arm.how == "allreduce":
                for _ in range(config.rounds):
                    time.sleep(seconds)
                    world.comm.Allreduce(gradient, total)
                    calls.append(Call(time.perf_counter(), True, 0.0, 0, True))
                return
            exchange = exchanges[arm.how]
            end = exchange.round + config.rounds
            while exchange.round < end:
                time.sleep(seconds)
                models[arm.how], call = step_of(exchange, models[arm.how], world.size - 1)
                calls.append(call)

        for repeat in range(config.repeats):
            for arm in in_turn(rng, arms):
                world.progress(f"repetition {repeat + 1}: {arm}")
                calls: list[Call] = []
                seconds = world.timed(lambda arm=arm, calls=calls: train(arm, calls))
                everyone = world.gather(calls)
                samples[arm].append(sum(map(len, everyone)) / seconds)
                rates[arm] += [rate for calls in everyone[:-1] for rate in rates_between_syncs(calls)]
                own[arm].append(len(everyone[-1]))
    rows = []
    for arm in arms:
        alone = summarize(rates[Arm(arm.how, False)]).median if rates[Arm(arm.how, False)] else math.nan
        rows.append(
            (
                str(arm),
                text(samples[arm], digits=1),
                text(ratios(samples[arm], samples[Arm("allreduce", arm.slow)])),
                text(own[arm], digits=0),
                text(rates[arm], digits=1),
                f"{summarize(rates[arm]).median / alone:.2f}" if rates[arm] else "-",
                len(samples[arm]),
            )
        )
    header = (
        *("", "steps/s", "/ allreduce", f"the last rank's steps in {config.rounds} rounds"),
        *("others, steps/s between syncs", "/ nobody slow", "repetitions"),
    )
    results = [
        {
            **arm._asdict(),
            "steps_per_second": samples[arm],
            "rates_of_others_between_syncs": rates[arm],
            "steps_of_last": own[arm],
        }
        for arm in arms
    ]
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    title = f"{world.size} ranks, groups of {config.group_size}; bars: medians, whiskers: quartiles"
    panel = panel_of(figure, 111, "", "local steps per second, all workers", title)
    names = {"allreduce": "Allreduce-SGD", "step": 'WAGMA, clock="step"', "round": 'WAGMA, clock="round"'}
    colors = {"allreduce": COLORS["allreduce"], "step": COLORS["step"], "round": COLORS["wagma"]}
    for arm in arms:
        x = list(names).index(arm.how)
        bar(panel, x + (0 if arm.slow else 4), samples[arm], colors[arm.how], names[arm.how] if arm.slow else None)
    panel.set_xticks([1, 5], [f"one {config.factor:g} times slower", "nobody slow"])
    panel.legend(frameon=False)
    panel.margins(y=0.15)
    finish(world, config, results, [markdown(header, rows)], figure)


def run_idle(world: World, config: Idle) -> None:
    """What the background thread costs: CPU time, latency, memory. CPU time is the kernel's count for a thread.

    - sleeping: the engine's CPU time while all trainers sleep, per cent of a core.
    - waiting: the same of engine and process while the trainer waits inside ``average()`` for a late peer, beside a
      process that waits for it in ``MPI_Allreduce``.
    - latency: how long rank 0 (and the first of every other group) waits in ``average()`` of 1,000 floats for a group
      whose others sleep, less the same with all on time: the time to wake the sleeping engines.
    - per round: CPU time of engine and process of rounds whose steps sleep, beside ``MPI_Allreduce`` of as much.
    - memory: what is resident and allocated beyond the user's own parameters, W' and result, in models (see
      :func:`_memory`); beside it, in MB, for a model of a hundredth, what does not grow with the model.
    """
    results: dict[str, Any] = {}
    world.progress("CPU time of idle and waiting engines")
    small = {"w": jnp.ones(1000)}
    tables = []
    with make_exchange(world, small, config, sync_period=None, rotate=False, quorum=config.group_size) as exchange:
        results["cpu"] = _idle_and_waiting(world, config, exchange, exchange.params)
    rows = [
        (what, text(values["engine"]), text(values["process"]), len(values["engine"]))
        for what, values in results["cpu"].items()
    ]
    tables.append(markdown(("per cent of a core while the trainer", "engine's thread", "process", "n"), rows))
    world.progress("latency")
    with make_exchange(world, small, config, sync_period=None, rotate=False) as exchange:
        latency = results["latency"] = _activation(world, config, exchange, exchange.params)
    extra = [a - b for a, b in zip(latency["asleep"], latency["on time"], strict=True)]
    rows = [(what, text(values, 1e3, 3), len(values)) for what, values in {**latency, "difference": extra}.items()]
    tables.append(markdown(("waited for a group of 1,000 floats, ms", "the first of a group", "n"), rows))
    world.progress("CPU time of rounds")
    params = make_model(config.floats)
    with make_exchange(world, params, config, sync_period=10) as exchange:
        results["per_round"] = _per_round(world, config, exchange, exchange.params)
    del params
    rows = [
        (what, text(values["engine"], 1e3), text(values["process"], 1e3), len(values["process"]))
        for what, values in results["per_round"].items()
    ]
    tables.append(markdown((f"CPU ms per round of {config.floats:,} floats", "engine's thread", "process", "n"), rows))
    world.progress("memory")
    size = parse_size(config.memory) // 4
    constant = _memory(world, config, size // 100)  # first, so that the larger model finds most memory of this kind
    results["memory"] = _memory(world, config, size)
    results["memory_of_a_model_a_hundredth_as_large"] = constant
    rows = [
        (
            phase,
            *(f"{max(peaks[kind]):.2f}" for kind in ("resident", "allocated")),
            *(f"{np.median(peaks[kind]):.2f}" for kind in ("resident", "allocated")),
            f"{max(constant[phase]['resident']) * size * 4e-8:.0f}",
        )
        for phase, peaks in results["memory"].items()
    ]
    header = (
        *(f"models of {config.memory} beside the user's", "resident, worst rank", "allocated, worst"),
        *("resident, median", "allocated, median", "a model of 1 %: MB resident"),
    )
    tables.append(markdown(header, rows))
    finish(world, config, results, tables, None)


class Cpu:
    """CPU time since it was made: of the engine's thread and of the process."""

    def __init__(self):
        threads = [one for one in threading.enumerate() if one.name.startswith("wagma exchange")]
        (engine,) = threads
        assert engine.ident is not None
        self._clock = time.pthread_getcpuclockid(engine.ident)
        self._start = self._now()

    def _now(self) -> tuple[float, float, float]:
        return time.clock_gettime(self._clock), time.process_time(), time.perf_counter()

    def since(self) -> tuple[float, float, float]:
        """Seconds: of the engine's thread, of the process, and elapsed."""
        engine, process, elapsed = (b - a for a, b in zip(self._start, self._now(), strict=True))
        return engine, process, elapsed


def _idle_and_waiting(world, config, exchange, params) -> dict[str, dict[str, list[float]]]:
    """Per cent of a core: ranks that sleep; and the first of each group, which wait for the others."""
    samples = {
        name: {"engine": [], "process": []} for name in ("sleeps", "waits in average()", "waits in MPI_Allreduce")
    }
    group = exchange.schedule.group_of(world.rank, 0)
    waits = world.rank == group[0] and len(group) > 1
    group_comm = world.comm.Split(group[0], world.rank)
    mine, total = np.ones(1000, np.float32), np.empty(1000, np.float32)
    params, _ = exchange.average(params)
    for _ in range(config.repeats):
        for name, one in samples.items():
            world.comm.Barrier()
            if name == "sleeps" or not waits:
                time.sleep(0.1)
            cpu = Cpu()
            if name == "sleeps" or not waits:
                time.sleep(config.seconds)
            spent = cpu.since()
            if name == "waits in average()":
                params, _ = exchange.average(params)
            elif name == "waits in MPI_Allreduce":
                group_comm.Allreduce(mine, total)
            if name != "sleeps" and waits:
                spent = cpu.since()
            counts = name == "sleeps" or waits
            everyone = [spent for counts, spent in world.gather((counts, spent)) if counts]
            one["engine"] += [100 * engine / elapsed for engine, _, elapsed in everyone]
            one["process"] += [100 * process / elapsed for _, process, elapsed in everyone]
    group_comm.Free()
    return samples


def _activation(world, config, exchange, params) -> dict[str, list[float]]:
    """Seconds that the first of every group waits: with all others asleep for long, and with all there."""
    group = exchange.schedule.group_of(world.rank, 0)
    is_first = world.rank == group[0]
    rng = np.random.default_rng(config.seed)
    samples: dict[str, list[float]] = {"asleep": [], "on time": []}
    for repeat in range(-5, config.activations):
        for name in in_turn(rng, list(samples)):
            pause = 0.02 + 0.004 * rng.random()  # at any phase of the others' polling
            world.comm.Barrier()
            time.sleep(pause if is_first or name == "on time" else 0.06)
            params, info = exchange.average(params)
            if repeat >= 0:
                everyone = world.gather((is_first, info.waited_seconds))
                samples[name] += [waited for first, waited in everyone if first]
            else:
                world.gather(None)
    return samples


def _per_round(world, config, exchange, params) -> dict[str, dict[str, list[float]]]:
    """CPU seconds per round, of every rank and repetition; "sleep" is the same loop without any averaging."""
    samples = {name: {"engine": [], "process": []} for name in ("average()", "MPI_Allreduce", "only sleep")}
    mine, total = np.ones(config.floats, np.float32), np.empty(config.floats, np.float32)
    params = warm_up(world, exchange, params, 10)
    for _ in range(config.repeats):
        for name, one in samples.items():
            world.comm.Barrier()
            cpu = Cpu()
            for _ in range(config.rounds):
                time.sleep(config.step_seconds)
                if name == "average()":
                    params, _ = exchange.average(params)
                elif name == "MPI_Allreduce":
                    world.comm.Allreduce(mine, total)
            everyone = world.gather(cpu.since())
            one["engine"] += [engine / config.rounds for engine, _, _ in everyone]
            one["process"] += [process / config.rounds for _, process, _ in everyone]
    return samples


class Mallinfo(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = [(name, ctypes.c_size_t) for name in _MALLINFO]


class Allocated:
    """The most bytes that this process had allocated since the last :meth:`reset`, sampled every millisecond."""

    def __init__(self):
        self._library = ctypes.CDLL(None)
        self._library.mallinfo2.restype = Mallinfo
        self._over = threading.Event()
        self._lock = threading.Lock()  # calls of the C library let other threads run
        self.peak = self.now()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def now(self) -> int:
        """Bytes in use, in all arenas."""
        info = self._library.mallinfo2()
        return info.uordblks + info.hblkhd

    def _sample(self) -> None:
        while not self._over.wait(1e-3):
            with self._lock:
                self.peak = max(self.peak, self.now())

    def reset(self) -> None:
        """Begins anew."""
        with self._lock:
            self.peak = self.now()

    def close(self) -> None:
        """Ends the thread."""
        self._over.set()
        self._thread.join()


def _memory(world: World, config: Idle, size: int) -> dict[str, dict[str, list[float]]]:
    """Copies of the model that the exchange keeps, one value for each rank, beyond the user's own.

    The user's own are ``params`` while the exchange is constructed, and W' and the result in rounds.

    - resident: peak of resident memory (Linux: VmHWM). It includes what was compiled, and what glibc keeps after it was
      freed for the next allocation, as ``wagma launch`` asks it to: so no phase shows less than one before.
    - allocated: peak of what is allocated and not yet freed, sampled, so that copies which live for less than a
      millisecond may be missed.
    """
    model = 4 * size
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0.999, tree))
    jax.block_until_ready(step(make_model(size)))  # compiles
    gc.collect()
    allocated = Allocated()
    base, base_allocated = _resident("VmRSS"), allocated.now()
    params = make_model(size)
    peaks: dict[str, dict[str, list[float]]] = {}

    def record(phase: str, users: int) -> None:
        resident, in_use = _resident("VmHWM") - base, allocated.peak - base_allocated
        peaks[phase] = {
            "resident": world.gather(resident / model - users),
            "allocated": world.gather(in_use / model - users),
        }
        _reset_peak()
        allocated.reset()

    _reset_peak()
    with make_exchange(world, params, config, sync_period=6) as exchange:
        record("construction", 1)
        params = exchange.params
        record("exchange.params", 2)
        for phase in ("nobody late", "one late each round"):
            for i in range(5):
                world.comm.Barrier()
                if phase != "nobody late" and i % world.size == world.rank:
                    time.sleep(config.late_seconds)
                params = jax.block_until_ready(step(params))
                params, _ = exchange.average(params)
            world.comm.Barrier()
            record(f"5 ordinary rounds, {phase}", 2)
            params = jax.block_until_ready(step(params))
            params, info = exchange.average(params)
            assert info.is_sync
            record(f"sync round after them ({phase})", 2)
        params = exchange.consensus(params)
        record("consensus", 2)
    allocated.close()
    return peaks


def _resident(field: str) -> int:
    """VmRSS, or VmHWM, its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}: the section idle needs Linux")


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


SECTIONS: dict[type, Callable[[World, Any], None]] = {
    Sizes: run_sizes,
    Straggler: run_straggler,
    Rotating: run_rotating,
    Slow: run_slow,
    Idle: run_idle,
}


def main(config: Section) -> None:
    """Runs a section on all ranks. An error on one rank ends all of them."""
    jax.config.update("jax_platforms", "cpu")
    world = World()
    try:
        SECTIONS[type(config)](world, config)
        world.comm.Barrier()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        world.comm.Abort(1)


if __name__ == "__main__":
    Choice = (
        Annotated[Sizes, tyro.conf.subcommand("sizes")]
        | Annotated[Straggler, tyro.conf.subcommand("straggler")]
        | Annotated[Rotating, tyro.conf.subcommand("rotating")]
        | Annotated[Slow, tyro.conf.subcommand("slow")]
        | Annotated[Idle, tyro.conf.subcommand("idle")]
    )
    main(tyro.cli(Choice, description=__doc__, config=(tyro.conf.OmitSubcommandPrefixes,)))
