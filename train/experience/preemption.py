"""Rollouts that end early once enough other workers have theirs: the preemption of DD-PPO.

Wijmans et al., "DD-PPO: Learning Near-Perfect PointGoal Navigators from 2.5 Billion Frames", ICLR 2020
(arXiv:1911.00357), section 3: where all workers wait for all before they go on, a late one stops collecting once a
share of them (0.6 there) is done, and learns from what it has, which is at least a quarter of a rollout.
"""

import time
from collections.abc import Callable
from typing import Protocol

import jax
import numpy as np

from train import devices
from train.experience import on_devices
from train.experience.feeds import ExperienceFeed
from train.experience.on_devices import World
from train.experience.rollouts import Carry, Size
from train.networks import Network
from train.ppo import PPOOptions
from train.task import Batch, Cutoff, Model, Place

PARTS = 8  # of a rollout; between them it may end
LEAST = 2  # parts that are collected in any case: a quarter


class Collector(Protocol):
    """Collects rollouts that may end early."""

    def prepare(self, model: Model, carry: Carry) -> None:
        """Compiles what can be compiled before times count."""
        ...

    def collect(self, model: Model, carry: Carry, cutoff: Cutoff) -> tuple[Carry, int]:
        """The carries after another rollout, and how many steps of each environment are in it."""
        ...


def ends(cutoff: Cutoff | None, part: int) -> bool:
    """Whether a rollout ends before this part; to be asked once before each."""
    return cutoff is not None and cutoff.pause(1 / PARTS, may_end=part >= LEAST)


class Preempted(ExperienceFeed):
    """A feed of rollouts that may end early; see ``ExperienceFeed``.

    The delay of an iteration passes while it is collected, where preemption can spare a worker the rest of it.

    Args:
        place: Where the worker is; there is one in each process.
        collect: Collects rollouts.
        size: Of a worker's experience.
        updates: In an iteration.
        together: Updates in a step: one, or all of them.
        share: Of the workers that must be done for others to end early.
        close: Called at the end.
    """

    def __init__(
        self,
        place: Place,
        collect: Collector,
        size: Size,
        updates: int,
        together: int,
        share: float,
        close: Callable[[], None],
    ):
        super().__init__(place, lambda model, carry: carry, size, updates, together, self._close)
        self._collector, self._share, self._close_collector = collect, share, close
        self._environments = size.environments
        self._cutoff: Cutoff | None = None

    def next(self, step: int, model: Model, carry: Carry) -> tuple[Batch, Carry]:
        """The batch of a step; collects at the first one of an iteration."""
        done = step * self._together % self._updates
        if self._cutoff is None:
            # all have compiled when the first one begins: else it would cut those short that still compile
            self._collector.prepare(model, carry)
            self._total = int(devices.local(carry.sums["steps"]).sum())  # of an iteration that is resumed
            self._cutoff = self._place.cutoff(self._share)
        begun = time.perf_counter()
        if done == 0:
            self._cutoff.begin(step * self._together // self._updates)
            carry, steps = self._collector.collect(model, carry, self._cutoff)
            self._cutoff.done()
            self._total = steps * self._environments
        return self._batch(done)._replace(worked=time.perf_counter() - begun, delayed=True), carry

    def _close(self) -> None:
        if self._cutoff is not None:
            self._cutoff.close()
        self._close_collector()


class InParts:
    """Collects on devices, in parts of equal length.

    Args:
        place: Where the workers are.
        world: Their environments.
        network: Of the policy.
        ppo: How advantages are computed.
        size: Of a worker's experience.
    """

    def __init__(self, place: Place, world: World, network: Network, ppo: PPOOptions, size: Size):
        assert size.steps % PARTS == 0, "the options have been checked"
        self._place, self._steps = place, size.steps // PARTS
        steps = self._steps
        self._begin = place.map(lambda *given: on_devices.begin(world, network, *given))
        self._part = place.map(lambda *given: on_devices.collect_part(world, network, steps, *given), donate=(3,))
        self._end = place.map(lambda *given: on_devices.end(world, network, ppo, *given))

    def prepare(self, model: Model, carry: Carry) -> None:
        """Compiles all of it, by a rollout that nobody sees."""
        jax.block_until_ready(self.collect(model, carry, None))

    def collect(self, model: Model, carry: Carry, cutoff: Cutoff | None) -> tuple[Carry, int]:
        """The carries after another rollout, and how many steps of each environment are in it."""
        at, made = self._begin(model, carry)
        part = 0
        while part < PARTS and not ends(cutoff, part):
            at, made = self._part(model, carry, at, made, self._number(part * self._steps))
            jax.block_until_ready(at)  # it is collected now, not when the next part begins
            part += 1
        steps = part * self._steps
        return self._end(model, carry, at, made, self._number(steps)), steps

    def _number(self, value: int) -> jax.Array:
        return self._place.put(np.full(len(self._place.workers), value, np.int32))
