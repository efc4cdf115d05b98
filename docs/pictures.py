"""Draws the pictures of the documentation: `python docs/pictures.py` writes docs/pictures/*.png.

Groups, rounds and numbers come from `GroupSchedule`. The timelines come from a small simulation of the rules that
docs/algorithm.md explains (`simulate`), so that a picture cannot show what the rules do not say.
"""

import dataclasses
import io
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.lines
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch, Rectangle
from PIL import Image

from wagma_jax.schedule import GroupSchedule

FOLDER = Path(__file__).parent / "pictures"

BLUE, AMBER, GREEN, RED, GREY, DARK = "#4c78a8", "#f2a93b", "#3a9d5d", "#d1495b", "#b8bec6", "#22303f"
LIGHT_BLUE, PALE = "#dbe7f3", "#eef1f4"
GROUPS = (BLUE, AMBER, GREEN, "#9467bd")

OLDER = {"ls": "", "marker": "^", "ms": 6, "mfc": "white", "mec": GREEN, "mew": 1.4}
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "text.color": DARK,
    "axes.labelcolor": DARK,
    "axes.edgecolor": GREY,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": DARK,
    "ytick.color": DARK,
    "hatch.linewidth": 0.8,
}


# --- The rules, simulated ---


@dataclasses.dataclass
class Call:
    """One step of a worker and the call of `average` after it; times in units of an ordinary step.

    Attributes:
        worker: Whose.
        round: At which the call arrived.
        start: When the step began.
        delay_from: From when on it took longer than an ordinary step.
        arrived: When the step was over.
        end: When the call returned.
        late: Whether the round was complete already.
    """

    worker: int
    round: int
    start: float
    delay_from: float
    arrived: float
    end: float = 0.0
    late: bool = False


@dataclasses.dataclass
class Exchange:
    """One group's exchange: its members, the version that each contributed, and when."""

    round: int
    group: tuple[int, ...]
    versions: tuple[int, ...]
    start: float
    end: float


def simulate(
    schedule: GroupSchedule,
    rounds: int,
    duration: Callable[[int, int], float],
    clock: str = "step",
    seconds: float = 0.12,
) -> tuple[list[Call], list[Exchange]]:
    """Calls and exchanges of a run with quorum 1.

    Args:
        schedule: Who averages with whom.
        rounds: How many.
        duration: From (worker, number of its step) to how long that takes.
        clock: As for `GroupExchange`.
        seconds: How long an exchange takes.
    """
    workers = range(schedule.num_workers)
    calls: list[Call] = []
    exchanges: list[Exchange] = []
    computing: dict[int, Call] = {}
    waiting: dict[int, Call] = {}
    steps, counter, version = ([0 for _ in workers], [-1 for _ in workers], [-1 for _ in workers])
    done = [-1 for _ in workers]  # newest complete round
    busy: list[Exchange | None] = [None for _ in workers]

    def begin(worker: int, now: float):
        length = duration(worker, steps[worker])
        steps[worker] += 1
        computing[worker] = Call(worker, -1, now, now + min(1.0, length), now + length)

    for worker in workers:
        begin(worker, 0.0)
    now = 0.0
    while computing or waiting:
        for worker, call in list(computing.items()):
            if call.arrived > now + 1e-9:
                continue
            del computing[worker]
            following = done[worker] + 1
            if clock == "step":
                call.round = counter[worker] + 1
            elif schedule.is_sync(following):
                call.round = following
            else:
                call.round = max(counter[worker] + 1, done[worker])
            version[worker] = call.round
            waiting[worker] = call
        for exchange in [one for one in exchanges if abs(one.end - now) < 1e-9 and busy[one.group[0]] is one]:
            for worker in exchange.group:
                busy[worker], done[worker] = None, exchange.round
                if schedule.is_sync(exchange.round):
                    version[worker] = exchange.round
        for worker, call in list(waiting.items()):
            if done[worker] >= call.round:
                del waiting[worker]
                call.end, call.late = now, call.arrived >= now and not schedule.is_sync(call.round)
                calls.append(call)
                counter[worker] = call.round if clock == "step" else max(call.round, done[worker])
                if counter[worker] + 1 < rounds:
                    begin(worker, now)
        for worker in workers:
            r = done[worker] + 1
            group = tuple(workers) if schedule.is_sync(r) else schedule.group_of(worker, r)
            if r >= rounds or any(busy[member] or done[member] != r - 1 for member in group):
                continue
            arrived = [member in waiting and waiting[member].round >= r for member in group]
            if all(arrived) if schedule.is_sync(r) else any(arrived):
                exchange = Exchange(r, group, tuple(version[member] for member in group), now, now + seconds)
                exchanges.append(exchange)
                for member in group:
                    busy[member] = exchange
        times = [call.arrived for call in computing.values()] + [one.end for one in busy if one]
        later = [time for time in times if time > now + 1e-9]
        if not later:
            break
        now = min(later)
    return calls, exchanges


# --- Drawing ---


def figure(width: float, height: float) -> Figure:
    """An empty figure in inches."""
    return Figure(figsize=(width, height), facecolor="white", layout="constrained")


def draw_timeline(axes, calls: list[Call], exchanges: list[Exchange], schedule: GroupSchedule, end: float):
    """One row for each worker: computing, delayed, waiting, exchanging, and older models contributed meanwhile."""
    for call in calls:
        y = call.worker
        axes.add_patch(Rectangle((call.start, y - 0.3), call.delay_from - call.start, 0.6, color=BLUE, lw=0))
        axes.add_patch(Rectangle((call.delay_from, y - 0.3), call.arrived - call.delay_from, 0.6, color=AMBER, lw=0))
        if call.end > call.arrived:
            axes.add_patch(
                Rectangle((call.arrived, y - 0.3), call.end - call.arrived, 0.6, fc="white", ec=RED, hatch="////", lw=0)
            )
        middle = (call.start + call.delay_from) / 2
        if middle < end:
            axes.text(middle, y - 0.05, str(call.round), ha="center", va="center", color="white", size=9)
    for exchange in exchanges:
        for worker, version in zip(exchange.group, exchange.versions, strict=True):
            late = version < exchange.round
            top = worker + 0.14 if late else worker - 0.3  # beside the computation, or instead of it
            axes.add_patch(
                Rectangle((exchange.start, top), exchange.end - exchange.start, worker + 0.3 - top, color=GREEN, lw=0)
            )
            if late and exchange.end < end:
                axes.plot((exchange.start + exchange.end) / 2, worker + 0.41, **OLDER)
        if schedule.is_sync(exchange.round) and exchange.end < end:
            axes.axvspan(exchange.start, exchange.end, color=GREEN, alpha=0.25, lw=0)
            if schedule.sync_period != 1:
                axes.text(exchange.start - 0.05, -0.42, "global mean", ha="right", va="center", size=8.5, color=GREEN)
    axes.set_xlim(0, end)
    axes.set_ylim(schedule.num_workers - 0.35, -0.6)
    axes.set_yticks(range(schedule.num_workers), [f"worker {worker}" for worker in range(schedule.num_workers)])
    axes.tick_params(left=False)
    axes.spines["left"].set_visible(False)


def legend(fig: Figure):
    """The legend of timelines, below them."""
    handles: list = [
        Patch(color=BLUE, label="computes (number: the round)"),
        Patch(color=AMBER, label="takes longer than the others"),
        Patch(fc="white", ec=RED, hatch="////", lw=0, label="waits"),
        Patch(color=GREEN, label="exchange"),
        matplotlib.lines.Line2D([], [], label="background thread contributes an older model", **OLDER),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)


def groups() -> Figure:
    """How groups rotate, and how far one worker's update has come."""
    fig = figure(10.5, 4.8)
    panels = fig.subplots(1, 2, gridspec_kw={"width_ratios": [4, 3]})
    for axes, size in zip(panels, (2, 4), strict=True):
        schedule = GroupSchedule(8, size, sync_period=None)
        rounds = schedule.rounds_to_mix
        assert rounds is not None
        reached = {0}
        for t in range(rounds + 1):
            before = set(reached)
            for i, group in enumerate(schedule.groups(t - 1) if t else ()):
                reached |= set(group) if before & set(group) else set()
                for source, dest in itertools.product(group, group):
                    carries = source in before
                    color, width, alpha = (RED, 2.2, 1.0) if carries else (GROUPS[i], 1.3, 0.6)
                    axes.plot([t - 1, t], [source, dest], color=color, lw=width, alpha=alpha, zorder=2 + carries)
            for worker in range(8):
                has = worker in reached
                axes.plot(t, worker, "o", ms=16, mfc=RED if has else "white", mec=RED if has else DARK, zorder=4)
                color = "white" if has else DARK
                axes.text(t, worker, str(worker), ha="center", va="center", size=9, color=color, zorder=5)
            if t:
                listed = "\n".join(" ".join(map(str, group)) for group in schedule.groups(t - 1))
                axes.text(t - 0.5, 7.8, f"round {t - 1}", ha="center", va="top", weight="bold")
                axes.text(t - 0.5, 8.45, listed, ha="center", va="top", size=9, linespacing=1.3)
        axes.text(-0.12, 8.45, "groups:", ha="center", va="top", size=9)
        axes.set_title(f"groups of {size}: everywhere after {rounds} rounds")
        axes.set_xlim(-0.3, rounds + 0.2)
        axes.set_ylim(10.9, -0.6)
        axes.axis("off")
    handles = [
        matplotlib.lines.Line2D([], [], color=RED, marker="o", ms=9, lw=2.2, label="contains worker 0's first update"),
        matplotlib.lines.Line2D([], [], color=DARK, marker="o", ms=9, mfc="white", lw=0, label="does not yet"),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return fig


def one_round() -> Figure:
    """A round with a late worker: who contributes what, and takes what."""
    fig = figure(10, 3.3)
    axes = fig.subplots()
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 3.3)
    axes.axis("off")

    def box(x, y, width, height, text, color, text_color=DARK):
        axes.add_patch(
            FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.08", fc=color, ec=DARK, lw=1)
        )
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", size=10, color=text_color)

    def arrow(start, end, color=DARK, style="-"):
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=color, lw=1.5, ls=style))

    axes.text(0.05, 2.55, "worker A\non time", va="center", weight="bold")
    axes.text(0.05, 0.75, "worker B\nlate", va="center", weight="bold")
    box(1.35, 2.2, 1.7, 0.7, "$W'_A$ of round 7", LIGHT_BLUE)
    box(1.35, 0.4, 1.7, 0.7, "$W'_B$ of round 5,\npublished before", "#fdebd0")
    box(4.1, 1.3, 1.9, 0.7, "sum of the group,\nS = 2 contributions", "#d7efdf")
    arrow((3.1, 2.5), (4.3, 2.05))
    arrow((3.1, 0.8), (4.3, 1.27))
    axes.text(
        3.42, 0.6, "B's background thread\ncontributes it, while B\nstill computes", size=8.5, va="top", ha="left"
    )
    box(7.6, 2.2, 2.2, 0.7, r"$W_A = \mathrm{sum}\ /\ 2$", LIGHT_BLUE)
    box(7.6, 0.4, 2.2, 0.7, r"$W_B = (\mathrm{sum} + W'_B)\ /\ 3$", "#fdebd0")
    arrow((6.05, 1.85), (7.52, 2.45))
    arrow((6.05, 1.45), (7.52, 0.85), style="--")
    axes.text(6.55, 2.5, "at once", size=8.5, ha="center")
    axes.text(6.2, 0.72, "when B arrives, with\nits $W'_B$ of round 7", size=8.5, ha="left", va="top")
    return fig


def timeline() -> Figure:
    """Allreduce-SGD and WAGMA-SGD with the same two delays."""
    fig = figure(10.5, 5.2)
    upper, lower = fig.subplots(2, 1, sharex=True)
    late = {(3, 1): 3.0, (0, 3): 3.0}
    duration = lambda worker, step: late.get((worker, step), 1.0)
    everyone = GroupSchedule(4, 4, sync_period=1)
    wagma = GroupSchedule(4, 2, sync_period=6)
    rounds, end = 6, 11.2
    calls, exchanges = simulate(everyone, rounds, duration)
    slow = max(call.end for call in calls)
    draw_timeline(upper, calls, exchanges, everyone, end)
    upper.set_title("Allreduce-SGD: everybody waits for everybody, at every step")
    calls, exchanges = simulate(wagma, rounds, duration)
    fast = max(call.end for call in calls)
    draw_timeline(lower, calls, exchanges, wagma, end)
    lower.set_title("WAGMA-SGD, groups of 2, global mean at round 5: nobody waits for a late worker before round 5")
    lower.set_xlabel("time, in ordinary steps")
    for axes, when in ((upper, slow), (lower, fast)):
        axes.axvline(when, color=DARK, lw=1, ls=":")
        axes.text(when + 0.06, 1.5, f"six rounds\nafter {when:.1f}", va="center", size=9)
    legend(fig)
    return fig


def staleness() -> Figure:
    """The age of one worker's contributions, bounded by the sync period."""
    fig = figure(10.5, 3.0)
    panels = fig.subplots(1, 2, sharey=True)
    rounds = 20
    for axes, period in zip(panels, (5, 10), strict=True):
        schedule = GroupSchedule(4, 2, sync_period=period)
        stuck = {2: 40.0, 10: 40.0}
        _, exchanges = simulate(schedule, rounds, lambda worker, step, s=stuck: s.get(step, 1) if worker == 3 else 1.0)
        ages = {
            exchange.round: exchange.round - exchange.versions[exchange.group.index(3)]
            for exchange in exchanges
            if 3 in exchange.group
        }
        for t in range(rounds):
            if schedule.is_sync(t):
                axes.axvspan(t - 0.5, t + 0.5, color=GREEN, alpha=0.25, lw=0)
                continue
            age = ages[t]
            if age:
                axes.bar(t, age, color=AMBER, width=0.8)
                axes.text(t, age + 0.15, str(age), ha="center", size=8.5)
            else:
                axes.plot([t - 0.4, t + 0.4], [0.06, 0.06], color=BLUE, lw=3)
        axes.axhline(period - 1, color=RED, ls="--", lw=1.2)
        axes.text(-0.4, period - 1 + 0.15, f"bound: sync_period - 1 = {period - 1}", color=RED, ha="left", size=9)
        axes.set_title(f"sync_period = {period}")
        axes.set_xlabel("round")
        axes.set_xticks(range(0, rounds, 5))
        axes.set_xlim(-0.6, rounds - 0.4)
        axes.set_ylim(0, 10.6)
    panels[0].set_ylabel("age in rounds of what\nworker 3 contributes")
    handles = [
        Patch(color=BLUE, label="on time"),
        Patch(color=AMBER, label="older model"),
        Patch(color=GREEN, alpha=0.25, label="sync round: all wait, and take the global mean"),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return fig


def clocks() -> Figure:
    """One worker that is always three times slower, by both clocks."""
    fig = figure(10.5, 5.2)
    panels = fig.subplots(2, 1, sharex=True)
    schedule = GroupSchedule(4, 2, sync_period=6)
    end = 19.9
    for axes, clock in zip(panels, ("step", "round"), strict=True):
        calls, exchanges = simulate(schedule, 18, lambda worker, step: 3.0 if worker == 3 else 1.0, clock)
        draw_timeline(axes, calls, exchanges, schedule, end)
        taken = [sum(call.arrived <= end for call in calls if call.worker == worker) for worker in range(4)]
        titles = {
            "step": 'clock="step": worker 3 takes a step for every round, and all wait for it at the sync round',
            "round": 'clock="round": worker 3 jumps over rounds that are complete, and takes fewer steps',
        }
        axes.set_title(titles[clock])
        for worker, count in enumerate(taken):
            axes.text(end + 0.15, worker, f"{count} steps", va="center", size=9)
    panels[1].set_xlabel("time, in ordinary steps")
    panels[1].set_xticks(range(0, 20, 2))
    legend(fig)
    return fig


def sizes() -> Figure:
    """What the group size and the sync period cost and bring, for 64 workers."""
    fig = figure(10.5, 3.3)
    panels = fig.subplots(1, 3)
    workers, candidates = 64, (1, 2, 4, 8, 16, 32, 64)

    def sent(size, period):
        one = lambda n: 2 * (n - 1) / n
        group = one(size) if period is None else (one(size) * (period - 1) + one(workers)) / period
        return group / one(workers)

    def messages(size, period):
        one = lambda n: 2 * (n - 1).bit_length()
        return (one(size) * (period - 1) + one(workers)) / period

    ticks = range(len(candidates))
    for period, color in ((5, AMBER), (10, BLUE), (None, GREY)):
        label = "no global means" if period is None else f"sync period {period}"
        panels[0].plot(ticks, [sent(size, period) for size in candidates], "o-", color=color, label=label, ms=4)
    panels[0].set_title("bytes sent, beside allreduce")
    panels[0].legend(frameon=False, fontsize=9)
    panels[1].plot(ticks, [messages(size, 10) for size in candidates], "o-", color=BLUE, ms=4)
    panels[1].axhline(12, color=RED, ls="--", lw=1)
    panels[1].text(0, 12.15, "allreduce", color=RED, size=9, va="bottom")
    panels[1].text(6.2, 1, "sync period 10", color=BLUE, size=9, ha="right")
    panels[1].set_title("messages in sequence per step")
    mixing = [GroupSchedule(workers, size).rounds_to_mix or 0 for size in candidates]
    panels[2].plot(ticks[1:], mixing[1:], "o-", color=BLUE, ms=4)
    for tick, value in list(zip(ticks, mixing, strict=True))[1:]:
        panels[2].text(tick + 0.1, value + 0.15, str(value), size=9)
    panels[2].text(-0.1, 6.7, "S = 1: never", size=9, ha="left", va="center", color=RED)
    panels[2].set_title("rounds until all have mixed")
    for axes in panels:
        axes.set_xticks(ticks, map(str, candidates))
        axes.set_xlabel("group size S")
        axes.set_ylim(bottom=0)
    panels[1].set_ylim(0, 14)
    panels[2].set_ylim(0, 7)
    panels[2].set_xlim(-0.3, 6.5)
    return fig


PICTURES = (groups, one_round, timeline, staleness, clocks, sizes)


def main(folder: Path = FOLDER) -> None:
    """Writes all pictures as PNG of few colours, so that they stay small."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for draw in PICTURES:
            fig, buffer = draw(), io.BytesIO()
            FigureCanvasAgg(fig)
            fig.savefig(buffer, dpi=130)
            image = Image.open(buffer).convert("RGB").quantize(64, dither=Image.Dither.NONE)
            image.save(folder / f"{draw.__name__.replace('_', '-')}.png", optimize=True)


if __name__ == "__main__":
    main(*(Path(word) for word in sys.argv[1:]))
