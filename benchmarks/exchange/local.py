"""Section ``local``: what local SGD costs between its global means, beside a loop without any exchange."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.exchange.models import make_model
from benchmarks.exchange.ranks import World, in_turn, make_exchange
from benchmarks.exchange.report import report
from benchmarks.exchange.section import Section
from benchmarks.samples import ratios
from benchmarks.tables import markdown, spread

ARMS = ("plain optax", "local SGD")


@dataclasses.dataclass(frozen=True)
class Local(Section):
    """Local SGD between its global means.

    Attributes:
        floats: Number of elements of the model.
        steps: Between two global means.
    """

    group_size: int = 1
    repeats: int = 20
    floats: int = 1_000_000
    steps: int = 100

    def run(self, world: World) -> None:
        """Measures blocks of steps of optax.adamw on this rank's own model, all ranks computing at once.

        - ms per step: of a block, on each rank, with and without a call of ``average()`` after each step. No global
          mean lies in a block. The blocks take turns in a random order.
        - us per call: of ``average()`` alone, without a step.
        """
        initial, rng = make_model(self.floats), np.random.default_rng(self.seed)
        step, optimizer = _step(initial)
        seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
        calls: list[float] = []
        # there are as many rounds before the first global mean as are needed
        most = 2 * self.steps * (self.repeats + 1)
        with make_exchange(world, initial, group_size=1, sync_period=most + 1) as exchange:
            params = exchange.params

            def block(average: Callable[[Any], Any]) -> float:
                nonlocal params
                state = optimizer.init(params)
                jax.block_until_ready(step(params, state))
                start = time.perf_counter()
                for _ in range(self.steps):
                    params, state = step(params, state)
                    params = average(params)
                jax.block_until_ready(params)
                return (time.perf_counter() - start) / self.steps

            arms = {"plain optax": lambda params: params, "local SGD": lambda params: exchange.average(params)[0]}
            for repeat in range(self.repeats + 1):  # the first one warms up
                world.progress(f"repetition {repeat} of {self.repeats}")
                for arm in in_turn(rng, ARMS):
                    world.comm.Barrier()
                    taken = block(arms[arm])
                    if repeat:
                        seconds[arm].append(taken)
                start = time.perf_counter()
                for _ in range(self.steps):
                    params, _ = exchange.average(params)
                calls.append((time.perf_counter() - start) / self.steps)
        everyone = world.gather((seconds, calls[1:]))
        results = {arm: [value for one, _ in everyone for value in one[arm]] for arm in ARMS}
        of_calls = [value for _, one in everyone for value in one]
        plain = results["plain optax"]
        rows = [(arm, spread(results[arm], 1e3, 3), spread(ratios(results[arm], plain), digits=3)) for arm in ARMS]
        table = markdown(("", "ms per step", "/ plain optax"), rows)
        note = f"A call of average(): {spread(of_calls, 1e6, 0)} us."
        report(world, self, {"seconds_per_step": results, "seconds_per_call": of_calls}, [table, note])


def _step(params: Any) -> tuple[Callable[..., Any], optax.GradientTransformation]:
    """A step that reads and writes the whole model several times, as any optimizer does."""
    optimizer = optax.adamw(1e-3)

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda leaf: 0.1 * leaf + jnp.sin(leaf), params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    jax.block_until_ready(step(params, optimizer.init(params)))
    return step, optimizer
