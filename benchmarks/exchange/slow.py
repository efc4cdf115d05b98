"""Section ``slow``: steps per second with both clocks where one worker is always slower."""

import dataclasses
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.exchange.calls import Call, call_average, rates_between_syncs
from benchmarks.exchange.models import make_model
from benchmarks.exchange.pictures import COLORS, bar, make_figure, panel_of
from benchmarks.exchange.ranks import World, in_turn, make_exchange, warm_up
from benchmarks.exchange.report import report
from benchmarks.exchange.section import Training
from benchmarks.samples import ratios, summarize
from benchmarks.tables import markdown, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Arm(NamedTuple):
    """How a run trains: "round" or "step" (a clock of WAGMA) or "allreduce", and whether the last rank is slow."""

    how: str
    slow: bool

    def __str__(self) -> str:
        how = self.how if self.how == "allreduce" else f"wagma, clock={self.how}"
        return how if self.slow else f"{how}, nobody slow"


ARMS = tuple(Arm(how, slow) for slow in (True, False) for how in ("allreduce", "step", "round"))


@dataclasses.dataclass
class Measured:
    """What was measured in one arm.

    Attributes:
        steps_per_second: Of all workers together, one value for each repetition.
        rates_of_others_between_syncs: Steps per second of each worker but the last, one value for each sync period.
        steps_of_last: Local steps of the last rank, one value for each repetition.
    """

    steps_per_second: list[float] = dataclasses.field(default_factory=list)
    rates_of_others_between_syncs: list[float] = dataclasses.field(default_factory=list)
    steps_of_last: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Slow(Training):
    """One worker, the last rank, is always slower.

    Attributes:
        factor: How many times slower the last rank is.
    """

    rounds: int = 200
    factor: float = 4.0

    def run(self, world: World) -> None:
        """Measures local steps per second, summed over the workers.

        - steps/s: all local steps over the time from the start to the slowest rank's end. Each run makes ``rounds``
          rounds; with the clock "round" the slow rank makes fewer steps in them.
        - others, steps/s between syncs: of each of the other workers, from the end of a sync round to the end of the
          last ordinary round before the next. Nobody should wait for the slow worker there.
        """
        measured = _measure(world, self)
        header = (
            *("", "steps/s", "/ allreduce", f"the last rank's steps in {self.rounds} rounds"),
            *("others, steps/s between syncs", "/ nobody slow", "repetitions"),
        )
        results = [{**arm._asdict(), **vars(one)} for arm, one in measured.items()]
        title = f"{world.size} ranks, groups of {self.group_size}; bars: medians, whiskers: quartiles"
        tables = [markdown(header, [_row(arm, measured) for arm in ARMS])]
        report(world, self, results, tables, lambda: draw(measured, self.factor, title))


def _measure(world: World, section: Slow) -> dict[Arm, Measured]:
    initial = make_model(section.floats)
    gradient, total = np.ones(section.floats, np.float32), np.empty(section.floats, np.float32)
    rng = np.random.default_rng(section.seed)
    measured = {arm: Measured() for arm in ARMS}
    options: dict[str, Any] = {"group_size": section.group_size, "sync_period": section.sync_period}
    with (
        make_exchange(world, initial, clock="step", **options) as by_step,
        make_exchange(world, initial, clock="round", **options) as by_round,
    ):
        exchanges = {"step": by_step, "round": by_round}
        models = {
            how: warm_up(world, exchange, exchange.params, section.sync_period, section.step_seconds)
            for how, exchange in exchanges.items()
        }
        del initial

        def train(arm: Arm, calls: list[Call]) -> None:
            seconds = section.step_seconds * (section.factor if arm.slow and world.is_late else 1)
            if arm.how == "allreduce":
                for _ in range(section.rounds):
                    time.sleep(seconds)
                    world.comm.Allreduce(gradient, total)
                    calls.append(Call(time.perf_counter(), True, 0.0, 0, True))
                return
            exchange = exchanges[arm.how]
            end = exchange.round + section.rounds
            while exchange.round < end:
                time.sleep(seconds)
                models[arm.how], call = call_average(exchange, models[arm.how])
                calls.append(call)

        for repeat in range(section.repeats):
            for arm in in_turn(rng, ARMS):
                world.progress(f"repetition {repeat + 1}: {arm}")
                calls: list[Call] = []
                seconds = world.timed(lambda arm=arm, calls=calls: train(arm, calls))
                everyone = world.gather(calls)
                one = measured[arm]
                one.steps_per_second.append(sum(map(len, everyone)) / seconds)
                for calls in everyone[:-1]:
                    one.rates_of_others_between_syncs += rates_between_syncs(calls)
                one.steps_of_last.append(len(everyone[-1]))
    return measured


def _row(arm: Arm, measured: dict[Arm, Measured]) -> tuple[Any, ...]:
    one, allreduce, unhindered = measured[arm], measured[Arm("allreduce", arm.slow)], measured[Arm(arm.how, False)]
    rates, alone = one.rates_of_others_between_syncs, unhindered.rates_of_others_between_syncs
    return (
        str(arm),
        spread(one.steps_per_second, digits=1),
        spread(ratios(one.steps_per_second, allreduce.steps_per_second)),
        spread(one.steps_of_last, digits=0),
        spread(rates, digits=1),
        f"{summarize(rates).median / summarize(alone).median:.2f}" if rates and alone else "-",
        len(one.steps_per_second),
    )


def draw(measured: dict[Arm, Measured], factor: float, title: str) -> "Figure":
    """Bars of all arms: with one worker ``factor`` times slower, and with nobody slow."""
    figure = make_figure(6.5, 4.2)
    panel = panel_of(figure, 111, "", "local steps per second, all workers", title)
    names = {"allreduce": "Allreduce-SGD", "step": 'WAGMA, clock="step"', "round": 'WAGMA, clock="round"'}
    colors = {"allreduce": COLORS["allreduce"], "step": COLORS["step"], "round": COLORS["wagma"]}
    for arm, one in measured.items():
        x = list(names).index(arm.how) + (0 if arm.slow else 4)
        bar(panel, x, one.steps_per_second, colors[arm.how], names[arm.how] if arm.slow else None)
    panel.set_xticks([1, 5], [f"one {factor:g} times slower", "nobody slow"])
    panel.legend(frameon=False)
    panel.margins(y=0.15)
    return figure
