"""Point-goal navigation by itself: environment steps per second, and how agents fare that do not learn.

Run ``python -m benchmarks.environment`` (a minute on 2 cores). A step is an action of one agent: what it does, what the
agent sees after it, what it gets for it, and the start of the next episode where one ends. Nothing is learned.
"""

import dataclasses
import functools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import machine, tables
from benchmarks.samples import Summary, summarize
from train.console import console
from train.environments.point_goal import agents, batches, episodes, trials
from train.environments.point_goal.rules import Episode, Rules


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure the environment.

    Attributes:
        environments: Agents side by side.
        pool: Episodes made beforehand.
        steps: Of every agent in one pass.
        passes: How often that is timed.
        episodes: Evaluation episodes of each agent that does not learn.
        out: Where the result goes, as JSON.
    """

    environments: int = 256
    pool: int = 4096
    steps: int = 500
    passes: int = 9
    episodes: int = 1000
    out: Path = Path("benchmarks/results/environment.json")


def walk(rule: Rules, count: int, steps: int, pool: Episode, now: batches.Agents, key: jax.Array):
    """Takes random steps, stops among them; returns the agents and a sum of all that they see and get."""

    def advance(now, key):
        action = jax.random.categorical(key, jnp.log(jnp.array([0.6, 0.195, 0.195, 0.01])), shape=(count,))
        now, outcome = batches.step(rule, pool, now, action)
        seen = batches.observe(rule, pool, now)
        return now, outcome.reward.sum() + outcome.spl.sum() + seen.depth.sum() + seen.goal.sum()

    return jax.lax.scan(advance, now, jax.random.split(key, steps))


def speed(config: Config, rule: Rules, pool: Episode) -> tuple[Summary, Summary]:
    """Environment steps per second, and per second of CPU time."""
    pool = jax.device_put(pool)
    now = batches.begin(pool, config.environments, jax.random.key(0))
    run = jax.jit(functools.partial(walk, rule, config.environments, config.steps))
    key = jax.random.key(1)
    now, _ = jax.block_until_ready(run(pool, now, key))
    rates, per_cpu = [], []
    for index in range(config.passes):
        begun, cpu = time.perf_counter(), time.process_time()
        now, _ = jax.block_until_ready(run(pool, now, jax.random.fold_in(key, index)))
        taken = config.environments * config.steps
        rates.append(taken / (time.perf_counter() - begun))
        per_cpu.append(taken / (time.process_time() - cpu))
    return summarize(rates), summarize(per_cpu)


def main(config: Config) -> None:
    """Measures, prints two tables, and writes the numbers."""
    rule = Rules()
    begun = time.perf_counter()
    pool = episodes.make(config.pool, 0, "training")
    making = config.pool / (time.perf_counter() - begun)
    rates, per_cpu = speed(config, rule, pool)
    header = ["environments", "steps/s: median (quartiles; p95)", "per CPU second", "episodes made/s"]
    row = [str(config.environments), *(tables.spread(one, digits=0) for one in (rates, per_cpu)), f"{making:.0f}"]
    console.print(tables.markdown(header, [row]), soft_wrap=True)
    test = episodes.make(config.episodes, 0, "evaluation")
    rows, scores = [], {}
    for name, agent in agents.BASELINES.items():
        fared = trials.run_agent(rule, test, agent, jax.random.key(0))
        scores[name] = {**trials.scores(fared), "steps": float(np.mean(fared.steps))}
        rows.append(
            [name, *(f"{scores[name][each]:.3f}" for each in ("success", "spl")), f"{scores[name]['steps']:.0f}"]
        )
    console.print()
    console.print(tables.markdown(["agent", "success", "SPL", "steps"], rows), soft_wrap=True)
    found = {
        "config": {**dataclasses.asdict(config), "out": str(config.out)},
        "steps_per_second": rates._asdict(),
        "steps_per_cpu_second": per_cpu._asdict(),
        "episodes_made_per_second": making,
        "agents": scores,
        **machine.describe(["jax", "numpy"], ("JAX_", "XLA_")),
    }
    config.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config))
