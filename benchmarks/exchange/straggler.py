"""Section ``straggler``: how long do the others wait in ordinary rounds while one worker is late by seconds?"""

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.exchange.calls import Call, call_average, waits
from benchmarks.exchange.models import make_model
from benchmarks.exchange.pictures import COLORS, make_figure, panel_of
from benchmarks.exchange.ranks import STEP_SECONDS, World, in_turn, make_exchange
from benchmarks.exchange.report import report
from benchmarks.exchange.section import Section
from benchmarks.samples import summarize
from benchmarks.tables import markdown, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    import wagma_jax as wagma

ARMS = ("nobody", "asleep", "jit", "python", "allreduce, nobody", "allreduce, asleep")
"""Who is late, and how; the last two average by ``MPI_Allreduce``."""
ALLREDUCES = 20
"""Rounds of ``MPI_Allreduce`` with nobody late, per repetition."""
HEADER = (
    *("floats", "the last rank", "late, s", "others waited, ms", "longest, ms", "in its group, ms"),
    *("median / nobody late", "p95 / nobody late", "n"),
)

Episode = tuple[str, float, list[Call]]
"""An arm, the seconds by which the last rank was late, and the calls of the other ranks meanwhile."""


@dataclasses.dataclass(frozen=True)
class Straggler(Section):
    """One worker is late by seconds: how long do the others wait meanwhile?

    Attributes:
        floats: Number of elements of each model that is tried.
        late_seconds: By how much the last rank is late.
        step_seconds: Of the others' steps, which sleep.
        sync_period: Large, since only ordinary rounds are measured.
    """

    floats: tuple[int, ...] = (1_000_000, 25_000_000)
    late_seconds: float = 3.0
    step_seconds: float = STEP_SECONDS
    sync_period: int = 100_000

    def run(self, world: World) -> None:
        """Measures waits in ordinary rounds while the last rank is late, and in the same rounds with nobody late.

        - nobody: all train for as long. The waits of the same ranks count.
        - asleep, jit, python: the last rank is late by ``late_seconds``. The others' waits count until it is back.
          Those in its own group, for which its background thread must answer, are given as well.
        - allreduce: the others' time inside ``MPI_Allreduce``: with nobody late, and in the step in which the last rank
          is.
        """
        results = [{"floats": floats, "arms": _by_arm(_measure(world, self, floats))} for floats in self.floats]
        rows = [row for one in results for row in _rows(one["floats"], one["arms"])]
        title = f"{world.size} ranks, groups of {self.group_size}"
        report(world, self, results, [markdown(HEADER, rows)], lambda: draw(results, title))


class Computation:
    """One XLA program that keeps a core busy for as long as one likes."""

    def __init__(self):
        self._burn = jax.jit(lambda x, n: lax.fori_loop(0, n, lambda _, x: jnp.tanh(x @ x), x))
        self._matrix = jnp.ones((300, 300)) / 300
        self._per_second = math.nan

    def calibrate(self, seconds: float) -> None:
        """Finds out, for some seconds, how many iterations a second has."""
        self.run_iterations(1)  # compiles
        start, count = time.perf_counter(), 0
        while time.perf_counter() < start + seconds:
            self.run_iterations(50)
            count += 50
        self._per_second = count / (time.perf_counter() - start)

    def run_iterations(self, count: int) -> None:
        """Runs one program."""
        jax.block_until_ready(self._burn(self._matrix, count))

    def run(self, seconds: float) -> None:
        """Runs one program for some seconds or a little more."""
        start = time.perf_counter()
        count = math.ceil(1.1 * seconds * self._per_second)
        self.run_iterations(count)
        self._per_second = count / (time.perf_counter() - start)  # slower than when nobody else computed


class Trainers:
    """What the ranks do in each arm, with one model.

    Args:
        world: All ranks.
        section: Options.
        exchange: Of all ranks.
        computation: Calibrated on the last rank.
    """

    def __init__(self, world: World, section: Straggler, exchange: "wagma.GroupExchange", computation: Computation):
        self.world, self.section, self.exchange, self.computation = world, section, exchange, computation
        self.params = exchange.params
        size = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        self.gradient, self.total = np.ones(size, np.float32), np.empty(size, np.float32)

    def episode(self, arm: str) -> Episode:
        """One repetition of an arm."""
        self.world.comm.Barrier()
        late, calls = self._allreduce("asleep" in arm) if arm.startswith("allreduce") else self._train(arm)
        return arm, late, calls

    def _be_late(self, how: str) -> None:
        seconds = self.section.late_seconds
        end = time.perf_counter() + seconds
        if how == "jit":
            self.computation.run(seconds)
        elif how == "python":
            count = 0
            while time.perf_counter() < end:
                count += 1
        else:
            time.sleep(seconds)

    def _train(self, arm: str) -> tuple[float, list[Call]]:
        """All train for ``late_seconds``, except for the straggler."""
        world, exchange = self.world, self.exchange
        last = world.size - 1
        calls: list[Call] = []
        start = time.perf_counter()
        late = 0.0
        if world.is_late and arm != "nobody":
            self._be_late(arm)
            late = time.perf_counter() - start
            self.params, _ = exchange.average(self.params)
        else:
            while time.perf_counter() < start + self.section.late_seconds:
                time.sleep(self.section.step_seconds)
                self.params, call = call_average(exchange, self.params, last)
                calls.append(call)
        everyone = world.gather((start + late if late else math.inf, late, calls))
        until, late, _ = everyone[last]
        self.params = exchange.consensus(self.params)  # after which all are at the same round again
        return late, [call for _, _, calls in everyone[:last] for call in calls if call.ended <= until]

    def _allreduce(self, is_late: bool) -> tuple[float, list[Call]]:
        world, section = self.world, self.section
        calls = []
        for _ in range(1 if is_late else ALLREDUCES):
            time.sleep(section.late_seconds if is_late and world.is_late else section.step_seconds)
            start = time.perf_counter()
            world.comm.Allreduce(self.gradient, self.total)
            end = time.perf_counter()
            calls.append(Call(end, False, end - start, 0, True))
        everyone = world.gather(calls)
        seconds = section.late_seconds - section.step_seconds if is_late else 0.0
        return seconds, [call for calls in everyone[:-1] for call in calls]


def _measure(world: World, section: Straggler, floats: int) -> list[Episode]:
    """All repetitions with one model."""
    computation = Computation()
    if world.is_late:
        computation.calibrate(min(0.5, section.late_seconds / 3))
    else:
        time.sleep(min(1.5, section.late_seconds))  # so that the last rank has the machine for itself
    rng = np.random.default_rng(section.seed)
    episodes = []
    with make_exchange(world, make_model(floats), section.group_size, sync_period=section.sync_period) as exchange:
        trainers = Trainers(world, section, exchange, computation)
        for repeat in range(-1, section.repeats):  # the first is the warm-up
            for arm in in_turn(rng, ARMS):
                world.progress(f"{floats:,} floats, {'warm-up' if repeat < 0 else f'repetition {repeat + 1}'}: {arm}")
                episode = trainers.episode(arm)
                if repeat >= 0:
                    episodes.append(episode)
    return episodes


def _by_arm(episodes: Sequence[Episode]) -> dict[str, dict[str, Any]]:
    """Seconds late and seconds waited, for each arm in the order of ``ARMS``."""
    arms: dict[str, dict[str, Any]] = {}
    for arm in ARMS:
        mine = [(late, calls) for name, late, calls in episodes if name == arm]
        per_repeat = [waits(calls) for _, calls in mine]
        arms[arm] = {
            "late_seconds": [late for late, _ in mine],
            "waits": [seconds for found in per_repeat for seconds in found],
            "waits_with_late": [seconds for _, calls in mine for seconds in waits(calls, with_late=True)],
            "per_repeat": per_repeat,
        }
    return arms


def _rows(floats: int, arms: dict[str, dict[str, Any]]) -> list[tuple[Any, ...]]:
    rows = []
    for arm, one in arms.items():
        base = summarize(arms["allreduce, nobody" if arm.startswith("allreduce") else "nobody"]["waits"])
        mine = summarize(one["waits"])
        rows.append(
            (
                f"{floats:,}",
                arm,
                f"{summarize(one['late_seconds']).median:.2f}",
                spread(mine, 1e3),
                f"{1e3 * max(one['waits']):.1f}",
                "-" if "nobody" in arm else spread(one["waits_with_late"], 1e3),
                f"{mine.median / base.median:.2f}",
                f"{mine.p95 / base.p95:.2f}",
                mine.n,
            )
        )
    return rows


def draw(results: Sequence[dict[str, Any]], title: str) -> "Figure":
    """Median and 95th percentile of the waits in each arm, a panel for each model."""
    figure = make_figure(5.5 * len(results), 4.2)
    for i, result in enumerate(results):
        words = ("the last rank", "others waited in a round, ms", f"{result['floats']:,} floats, {title}")
        panel = panel_of(figure, 101 + 10 * len(results) + i, *words)
        for k, (arm, one) in enumerate(result["arms"].items()):
            mine, color = summarize(one["waits"]), COLORS["allreduce" if arm.startswith("allreduce") else "wagma"]
            panel.plot([k, k], [1e3 * mine.median, 1e3 * mine.p95], color=color)
            panel.plot(k, 1e3 * mine.median, "o", color=color, label="median" if k == 0 else None)
            panel.plot(k, 1e3 * mine.p95, "_", ms=12, color=color, label="95th percentile" if k == 0 else None)
        panel.set_yscale("log")
        panel.set_xticks(range(len(ARMS)), [arm.replace(", ", ",\n") for arm in ARMS], fontsize=8)
        panel.legend(frameon=False)
    return figure
