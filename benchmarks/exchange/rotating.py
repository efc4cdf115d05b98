"""Section ``rotating``: steps per second where another worker is late at every step."""

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.exchange.calls import Call, call_average, waits
from benchmarks.exchange.models import make_model
from benchmarks.exchange.pictures import COLORS, bar, make_figure, panel_of
from benchmarks.exchange.ranks import World, make_exchange, warm_up
from benchmarks.exchange.report import report
from benchmarks.exchange.section import Training
from benchmarks.samples import ratios, summarize
from benchmarks.tables import markdown, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADER = ("", "steps/s", "/ allreduce", "bound, steps/s", "of the bound", "repetitions")


def draw_delays(rounds: int, num_workers: int, seconds: float, seed: Sequence[int]) -> np.ndarray:
    """Seconds by which each worker's step is longer, [rounds, num_workers]: one random worker's in every round."""
    delays = np.zeros((rounds, num_workers))
    delays[np.arange(rounds), np.random.default_rng(seed).integers(num_workers, size=rounds)] = seconds
    return delays


def bound_seconds(delays: np.ndarray, step_seconds: float, sync_period: int) -> float:
    """The least time for the steps if all wait for each other every ``sync_period`` rounds, and never in between.

    It is the sum over the periods of the slowest worker's steps; with ``sync_period=1``, the bound of Allreduce-SGD.
    """
    starts = range(0, len(delays), sync_period)
    return float(sum((delays[t : t + sync_period] + step_seconds).sum(0).max() for t in starts))


@dataclasses.dataclass(frozen=True)
class Rotating(Training):
    """At every step one worker, drawn at random, is late.

    Attributes:
        late_seconds: By how much the step of the late worker is longer.
    """

    late_seconds: float = 0.15

    def run(self, world: World) -> None:
        """Measures steps per second, summed over the workers.

        - allreduce: raw ``MPI_Allreduce`` of a gradient of the model's size after every step, with the same delays.
        - wagma: ``GroupExchange.average`` after every step, ``clock="step"``.
        - of the bound: beside the steps per second that no algorithm can exceed that waits for all workers at the end
          of every sync period (Allreduce: of every step), even if averaging were free. See :func:`bound_seconds`.
        """
        samples, bounds, calls = _measure(world, self)
        late = sum(call.staleness > 0 for call in calls) / len(calls)
        stalest = max(call.staleness for call in calls)
        results = {
            "steps_per_second": samples,
            "bound_steps_per_second": bounds,
            "ordinary_waits": waits(calls),
            "late_fraction": late,
            "max_staleness": stalest,
        }
        rows = [
            (
                arm,
                spread(samples[arm], digits=1),
                spread(ratios(samples[arm], samples["allreduce"])),
                spread(bounds[arm], digits=1),
                spread(ratios(samples[arm], bounds[arm])),
                len(samples[arm]),
            )
            for arm in samples
        ]
        note = (
            f"Waited in ordinary rounds, ms: {spread(waits(calls), 1e3)}. Late contributions: {100 * late:.0f} %, the "
            f"stalest {stalest} rounds old."
        )
        title = (
            f"{world.size} ranks, groups of {self.group_size}, {1e3 * self.step_seconds:g} ms a step,\n"
            f"+{1e3 * self.late_seconds:g} ms on one; bars: medians, whiskers: quartiles"
        )
        report(world, self, results, [markdown(HEADER, rows), note], lambda: draw(samples, bounds, title))


Rates = dict[str, list[float]]
"""Steps per second of each arm, one value for each repetition."""


def _measure(world: World, section: Rotating) -> tuple[Rates, Rates, list[Call]]:
    """Rates, their bounds, and the calls of ``average()`` on all ranks."""
    params = make_model(section.floats)
    gradient, total = np.ones(section.floats, np.float32), np.empty(section.floats, np.float32)
    steps = world.size * section.rounds
    samples: Rates = {"allreduce": [], "wagma": []}
    bounds: Rates = {"allreduce": [], "wagma": []}
    calls: list[Call] = []
    with make_exchange(world, params, section.group_size, sync_period=section.sync_period) as exchange:
        params = warm_up(world, exchange, exchange.params, section.sync_period, section.step_seconds)

        def train(arm: str, delays: Sequence[float]) -> None:
            nonlocal params
            for delay in delays:
                time.sleep(section.step_seconds + delay)
                if arm == "wagma":
                    params, call = call_average(exchange, params)
                    calls.append(call)
                else:
                    world.comm.Allreduce(gradient, total)

        for repeat in range(section.repeats):
            delays = draw_delays(section.rounds, world.size, section.late_seconds, (section.seed, repeat))
            own = delays[:, world.rank].tolist()
            for arm in ("wagma", "allreduce") if repeat % 2 == 0 else ("allreduce", "wagma"):
                world.progress(f"repetition {repeat + 1}: {arm}")
                samples[arm].append(steps / world.timed(lambda arm=arm, own=own: train(arm, own)))
                period = section.sync_period if arm == "wagma" else 1
                bounds[arm].append(steps / bound_seconds(delays, section.step_seconds, period))
    return samples, bounds, [call for calls in world.gather(calls) for call in calls]


def draw(samples: Rates, bounds: Rates, title: str) -> "Figure":
    """Bars of both algorithms, with their bounds."""
    figure = make_figure(5.5, 4.2)
    panel: Any = panel_of(figure, 111, "", "steps per second, all workers", title)
    for x, arm in enumerate(samples):
        bar(panel, x, samples[arm], COLORS[arm])
        height = summarize(bounds[arm]).median
        label = "bound set by waiting" if x == 0 else None
        panel.plot([x - 0.45, x + 0.45], [height, height], "--", color=COLORS["bound"], label=label)
    panel.set_xticks([0, 1], ["Allreduce-SGD", "WAGMA"])
    panel.legend(frameon=False, loc="upper left")
    panel.margins(y=0.15)
    return figure
