"""What is compared: the ways to average in each context, as steps of all workers."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.sharding import AxisType

import wagma_jax as wagma
from benchmarks.xla_collectives.costs import AXIS
from wagma_jax.collectives import LOWERINGS, Lowering

NUM_WORKERS = 8

LOWERINGS_OF: dict[str, tuple[Lowering, ...]] = {
    "check_vma=True": ("auto", "reduce_scatter", "ppermute", "matrix"),
    "check_vma=False": ("auto", "psum", "reduce_scatter", "ppermute", "matrix"),
    "vmap": ("auto", "ppermute", "matrix"),
}
"""The lowerings that exist in each context."""

COLORS = {
    "pmean": "#555555",
    "consensus": "#aaaaaa",
    "auto": "#d62728",
    "psum": "#1f77b4",
    "reduce_scatter": "#2ca02c",
    "ppermute": "#ff7f0e",
    "matrix": "#9467bd",
}
"""Color of each way to average in the pictures."""


class Candidate(NamedTuple):
    """One way to average.

    Attributes:
        context: A key of ``LOWERINGS_OF``.
        group_size: S; P for a global mean.
        name: "pmean", "consensus" or a lowering.
    """

    context: str
    group_size: int
    name: str


@dataclasses.dataclass
class Measured:
    """The program and times of a candidate.

    Attributes:
        candidate: What is measured.
        program: Digest of the optimized HLO; equal programs have equal digests.
        scratch: Bytes that a step allocates per worker beside the model that it is given.
        seconds: Per step, one value for each pass from the first on.
    """

    candidate: Candidate
    program: str
    scratch: float
    seconds: list[float] = dataclasses.field(default_factory=list)


def candidates(group_sizes: Sequence[int]) -> list[Candidate]:
    """All candidates that are measured for one model size."""
    result = []
    for context, lowerings in LOWERINGS_OF.items():
        result += [Candidate(context, NUM_WORKERS, name) for name in ("pmean", "consensus")]
        result += [Candidate(context, size, name) for size in group_sizes for name in lowerings]
    return result


def make_mesh() -> jax.sharding.Mesh:
    """A device for each worker."""
    return jax.make_mesh((NUM_WORKERS,), (AXIS,), axis_types=(AxisType.Auto,))


def make_step(candidate: Candidate) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The step of a candidate, not compiled.

    Returns:
        A function that maps (tree, state) of all workers to the next ones, and one that maps a tree to its initial
        state.
    """
    mesh = None if candidate.context == "vmap" else make_mesh()
    schedule = wagma.GroupSchedule(NUM_WORKERS, candidate.group_size, sync_period=None)
    lowering: Any = candidate.name if candidate.name in LOWERINGS else "auto"
    averager = wagma.GroupAverager(schedule, AXIS, lowering=lowering)

    def step(tree, state):
        if candidate.name == "pmean":
            return lax.pmean(tree, AXIS), state
        if candidate.name == "consensus":
            return wagma.consensus(tree, AXIS), state
        return averager.average(tree, state)[:2]

    mapped = wagma.for_workers(step, AXIS, mesh, check_vma=candidate.context != "check_vma=False")
    return mapped, jax.vmap(averager.init)
