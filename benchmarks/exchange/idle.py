"""Section ``idle``: what the background thread costs in CPU time, latency and memory."""

import dataclasses
import threading
import time
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from benchmarks.exchange.memory import Peaks, measure_memory
from benchmarks.exchange.models import make_model, parse_size
from benchmarks.exchange.ranks import STEP_SECONDS, World, in_turn, make_exchange, warm_up
from benchmarks.exchange.report import report
from benchmarks.exchange.section import Section
from benchmarks.tables import markdown, spread

if TYPE_CHECKING:
    import wagma_jax as wagma

Spent = dict[str, dict[str, list[float]]]
"""CPU time of each activity, of the "engine" (its thread) and the "process"; a value for each rank and repetition."""


@dataclasses.dataclass(frozen=True)
class Idle(Section):
    """What the background thread costs.

    Attributes:
        repeats: Repetitions of the measurements of CPU time.
        seconds: For which trainers sleep, or wait, while CPU time is counted.
        activations: Repetitions of the measurement of latency.
        floats: Number of elements of the model whose rounds' CPU time is counted.
        rounds: Rounds in one measurement of CPU time per round.
        step_seconds: Of the steps in these rounds, which sleep.
        memory: Size of the model whose copies are counted.
        late_seconds: By how much workers are late while copies are counted.
    """

    seconds: float = 5.0
    activations: int = 100
    floats: int = 1_000_000
    rounds: int = 100
    step_seconds: float = STEP_SECONDS
    memory: str = "100M"
    late_seconds: float = 0.5

    def __post_init__(self):
        parse_size(self.memory)

    def run(self, world: World) -> None:
        """Measures CPU time (which the kernel counts for each thread), latency, and memory.

        - sleeping: CPU time of the engine while all trainers sleep, in per cent of a core.
        - waiting: that of engine and process while the trainer waits inside ``average()`` for a late peer, beside a
          process that waits for it in ``MPI_Allreduce``.
        - latency: how long rank 0 (and the first rank of every other group) waits in ``average()`` of 1,000 floats for
          a group whose other trainers sleep, less the same with all on time. It is the time to wake their engines.
        - per round: CPU time of engine and process in rounds whose steps sleep, beside ``MPI_Allreduce`` of as much.
        - memory: what is resident and what is allocated beyond the user's own parameters, W' and result, in models
          (see :func:`measure_memory`). The MB resident for a model of a hundredth are what does not grow with the
          model.
        """
        small = {"w": jnp.ones(1000)}
        fixed = {"group_size": self.group_size, "sync_period": None, "rotate": False}
        world.progress("CPU time of idle and waiting engines")
        with make_exchange(world, small, quorum=self.group_size, **fixed) as exchange:
            cpu = _idle_and_waiting(world, self, exchange)
        world.progress("latency")
        with make_exchange(world, small, **fixed) as exchange:
            latency = _activation(world, self, exchange)
        world.progress("CPU time of rounds")
        with make_exchange(world, make_model(self.floats), self.group_size, sync_period=10) as exchange:
            per_round = _per_round(world, self, exchange)
        world.progress("memory")
        size = parse_size(self.memory) // 4
        # the small model first: what does not grow with the model is there when the large one is measured
        constant = measure_memory(world, self.group_size, size // 100, self.late_seconds)
        memory = measure_memory(world, self.group_size, size, self.late_seconds)
        results = {
            "cpu": cpu,
            "latency": latency,
            "per_round": per_round,
            "memory": memory,
            "memory_of_a_model_a_hundredth_as_large": constant,
        }
        tables = [
            _cpu_table("per cent of a core while the trainer", cpu),
            _latency_table(latency),
            _cpu_table(f"CPU ms per round of {self.floats:,} floats", per_round, 1e3),
            _memory_table(self.memory, memory, constant),
        ]
        report(world, self, results, tables)


class Cpu:
    """CPU time since this was made: of the engine's thread and of the process."""

    def __init__(self):
        (engine,) = [one for one in threading.enumerate() if one.name.startswith("wagma exchange")]
        assert engine.ident is not None
        self._clock = time.pthread_getcpuclockid(engine.ident)
        self._start = self._now()

    def _now(self) -> tuple[float, float, float]:
        return time.clock_gettime(self._clock), time.process_time(), time.perf_counter()

    def since(self) -> tuple[float, float, float]:
        """Seconds: of the engine's thread, of the process, and elapsed."""
        engine, process, elapsed = (b - a for a, b in zip(self._start, self._now(), strict=True))
        return engine, process, elapsed


def _idle_and_waiting(world: World, section: Idle, exchange: "wagma.GroupExchange") -> Spent:
    """Per cent of a core: of all ranks while they sleep; of the first of each group while they wait for the others."""
    samples: Spent = {
        name: {"engine": [], "process": []} for name in ("sleeps", "waits in average()", "waits in MPI_Allreduce")
    }
    group = exchange.schedule.group_of(world.rank, 0)
    first = group[0]
    waits = world.rank == first and len(group) > 1
    group_comm = world.comm.Split(first, world.rank)
    mine, total = np.ones(1000, np.float32), np.empty(1000, np.float32)
    params, _ = exchange.average(exchange.params)
    for _ in range(section.repeats):
        for name, one in samples.items():
            sleeps = name == "sleeps" or not waits
            world.comm.Barrier()
            if sleeps:
                time.sleep(0.1)  # those who wait arrive first
            cpu = Cpu()
            if sleeps:
                time.sleep(section.seconds)
            spent = cpu.since()
            if name == "waits in average()":
                params, _ = exchange.average(params)
            elif name == "waits in MPI_Allreduce":
                group_comm.Allreduce(mine, total)
            if not sleeps:
                spent = cpu.since()
            counts = name == "sleeps" or waits
            everyone = [spent for counts, spent in world.gather((counts, spent)) if counts]
            one["engine"] += [100 * engine / elapsed for engine, _, elapsed in everyone]
            one["process"] += [100 * process / elapsed for _, process, elapsed in everyone]
    group_comm.Free()
    return samples


def _activation(world: World, section: Idle, exchange: "wagma.GroupExchange") -> dict[str, list[float]]:
    """Seconds that the first of every group waits: with all others asleep for long, and with all on time."""
    params = exchange.params
    is_first = world.rank == exchange.schedule.group_of(world.rank, 0)[0]
    rng = np.random.default_rng(section.seed)
    samples: dict[str, list[float]] = {"asleep": [], "on time": []}
    for repeat in range(-5, section.activations):
        for name in in_turn(rng, list(samples)):
            pause = 0.02 + 0.004 * rng.random()  # at any phase of the others' polling
            world.comm.Barrier()
            time.sleep(pause if is_first or name == "on time" else 0.06)
            params, info = exchange.average(params)
            everyone = world.gather((is_first, info.waited_seconds))
            if repeat >= 0:
                samples[name] += [waited for first, waited in everyone if first]
    return samples


def _per_round(world: World, section: Idle, exchange: "wagma.GroupExchange") -> Spent:
    """CPU seconds per round; "only sleep" is the same loop without any averaging."""
    samples: Spent = {name: {"engine": [], "process": []} for name in ("average()", "MPI_Allreduce", "only sleep")}
    mine, total = np.ones(section.floats, np.float32), np.empty(section.floats, np.float32)
    params = warm_up(world, exchange, exchange.params, 10, section.step_seconds)
    for _ in range(section.repeats):
        for name, one in samples.items():
            world.comm.Barrier()
            cpu = Cpu()
            for _ in range(section.rounds):
                time.sleep(section.step_seconds)
                if name == "average()":
                    params, _ = exchange.average(params)
                elif name == "MPI_Allreduce":
                    world.comm.Allreduce(mine, total)
            everyone = world.gather(cpu.since())
            one["engine"] += [engine / section.rounds for engine, _, _ in everyone]
            one["process"] += [process / section.rounds for _, process, _ in everyone]
    return samples


def _cpu_table(title: str, spent: Spent, scale: float = 1.0) -> str:
    rows = [
        (what, spread(one["engine"], scale), spread(one["process"], scale), len(one["process"]))
        for what, one in spent.items()
    ]
    return markdown((title, "engine's thread", "process", "n"), rows)


def _latency_table(latency: dict[str, list[float]]) -> str:
    extra = [asleep - on_time for asleep, on_time in zip(latency["asleep"], latency["on time"], strict=True)]
    rows = [(what, spread(values, 1e3, 3), len(values)) for what, values in {**latency, "difference": extra}.items()]
    return markdown(("waited for a group of 1,000 floats, ms", "the first of a group", "n"), rows)


def _memory_table(size: str, memory: Peaks, constant: Peaks) -> str:
    rows: list[tuple[Any, ...]] = [
        (
            phase,
            *(f"{max(peaks[kind]):.2f}" for kind in ("resident", "allocated")),
            *(f"{np.median(peaks[kind]):.2f}" for kind in ("resident", "allocated")),
            f"{max(constant[phase]['resident']) * parse_size(size) * 1e-8:.0f}",
        )
        for phase, peaks in memory.items()
    ]
    header = (
        *(f"models of {size} beside the user's", "resident, worst rank", "allocated, worst rank"),
        *("resident, median", "allocated, median", "a model of 1 %: MB resident"),
    )
    return markdown(header, rows)
