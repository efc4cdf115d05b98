"""Measures the time of all candidates, which take turns."""

import hashlib
import os
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import Progress

from benchmarks.shapes import model_shapes
from benchmarks.xla_collectives.candidates import NUM_WORKERS, Candidate, Measured, candidates, make_mesh, make_step
from benchmarks.xla_collectives.comparison import MIN_PASSES, relative_to
from benchmarks.xla_collectives.config import Config
from benchmarks.xla_collectives.costs import AXIS

STEPS = 3
"""In a sample: one rotation of the groups, for 8 workers and any group size that is a power of two."""
SLOW, SLOW_PASSES = 6, 2
"""A candidate that takes more than SLOW times as long as ``pmean`` after SLOW_PASSES passes is measured no more."""


class Bench:
    """The compiled steps of one model size.

    All steps of a placement (on the mesh, or on one device) hand the same donated tree on, to save memory.

    Args:
        shapes: Of the leaves of one worker's model.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]]):
        self.trees = {on_mesh: _initial(shapes, on_mesh) for on_mesh in (True, False)}
        self.steps: dict[Candidate, Any] = {}
        self.states: dict[Candidate, Any] = {}

    def add(self, candidate: Candidate) -> Measured:
        """Compiles a candidate.

        Raises:
            MemoryError: It would not fit beside what is there already.
        """
        on_mesh = candidate.context != "vmap"
        mapped, init = make_step(candidate)
        state = jax.jit(init)(self.trees[on_mesh])
        compiled = jax.jit(mapped, donate_argnums=(0, 1)).lower(self.trees[on_mesh], state).compile()
        memory: Any = compiled.memory_analysis()
        scratch = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        scratch *= NUM_WORKERS if on_mesh else 1  # sizes are those of one device
        if scratch > 0.6 * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            raise MemoryError(f"{scratch / 1e9:.1f} GB")
        self.steps[candidate], self.states[candidate] = compiled, state
        return Measured(candidate, _digest(compiled), scratch / NUM_WORKERS)

    def sample(self, candidate: Candidate) -> float:
        """Seconds per step, over one rotation of the groups."""
        on_mesh = candidate.context != "vmap"
        step, tree, state = self.steps[candidate], self.trees[on_mesh], self.states[candidate]
        start = time.perf_counter()
        for _ in range(STEPS):
            tree, state = step(tree, state)
        jax.block_until_ready((tree, state))
        seconds = (time.perf_counter() - start) / STEPS
        self.trees[on_mesh], self.states[candidate] = tree, state
        return seconds


def measure(size: float, config: Config, progress: Progress) -> tuple[list[Measured], list[str]]:
    """Measures all candidates of one model size.

    Args:
        size: In MB.
        config: Which candidates, how often, and for how long.
        progress: Shows how far it is.

    Returns:
        What was measured, and a sentence about each candidate that was left out for lack of memory.
    """
    bench = Bench(model_shapes(4 * round(size * 1e6 / 4)))
    measured: list[Measured] = []
    left_out = []
    for candidate in progress.track(candidates(config.group_sizes), description=f"{size:g} MB: compile"):
        try:
            measured.append(bench.add(candidate))
        except MemoryError as error:
            left_out.append(f"{candidate.name} ({candidate.context}, S = {candidate.group_size}) needs {error}")
    order = np.random.default_rng(config.seed)
    for one in progress.track(measured, description=f"{size:g} MB: warm up"):
        bench.sample(one.candidate)
    end = time.perf_counter() + config.seconds
    task = progress.add_task(f"{size:g} MB: measure", total=config.repeats)
    active = measured
    for repeat in range(config.repeats):
        if repeat >= MIN_PASSES and time.perf_counter() > end:
            break
        if repeat == SLOW_PASSES:
            medians = {candidate: ratio.median for candidate, ratio in relative_to("pmean", measured).items()}
            active = [one for one in measured if medians[one.candidate] < SLOW]
        for index in order.permutation(len(active)):
            active[index].seconds.append(bench.sample(active[index].candidate))
            progress.advance(task, 1 / len(active))
    progress.update(task, completed=config.repeats)
    return measured, left_out


def _digest(compiled: jax.stages.Compiled) -> str:
    """Digest of the optimized program, without metadata that names lines of Python."""
    text = compiled.as_text() or ""
    body = re.sub(r", metadata=\{[^}]*\}", "", text[text.find("\n%") :])
    return hashlib.sha256(body.encode()).hexdigest()[:12]


def _initial(shapes: dict[str, tuple[int, ...]], on_mesh: bool) -> dict[str, jax.Array]:
    """Models [num_workers, ...], each worker's its own, placed where the step wants them."""
    sharding = jax.sharding.NamedSharding(make_mesh(), jax.sharding.PartitionSpec(AXIS)) if on_mesh else None

    def build():
        worker = jnp.arange(1.0, NUM_WORKERS + 1)
        return {
            name: jnp.broadcast_to(worker.reshape(-1, *(1 for _ in shape)), (NUM_WORKERS, *shape))
            for name, shape in shapes.items()
        }

    return jax.block_until_ready(jax.jit(build, out_shardings=sharding)())
