"""Bytes and messages per device of the collectives in a lowered program, counted without hardware.

A program is lowered for a mesh of abstract devices, as many as one likes, and its StableHLO is walked. What is counted
is what JAX asks for; what XLA makes of it (combining, decomposing, choosing an algorithm) is not. The cost model is
that of bandwidth-optimal implementations, for groups of n devices:

==================  ========================  ===================
collective          bytes sent by a device    messages in sequence
==================  ========================  ===================
all_reduce          ``2 (n-1)/n * operand``   ``2 ceil(log2 n)``
reduce_scatter      ``(n-1)/n * operand``     ``ceil(log2 n)``
all_gather          ``(n-1)/n * result``      ``ceil(log2 n)``
all_to_all          ``(n-1)/n * operand``     ``n - 1``
collective_permute  ``operand``               1
==================  ========================  ===================

Bytes are the mean over all devices: those that a permutation does not name (or sends to themselves) send nothing, and
groups may have different sizes. Messages are those of the longest chain of collectives that wait for each other;
independent ones, such as two leaves of a model, may travel at the same time.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, AxisType

import wagma_jax as wagma
from wagma_jax.collectives import Lowering

AXIS = "data"


class Cost(NamedTuple):
    """What one execution of a program (or the mean over several) costs a device.

    Attributes:
        bytes: Sent by a device, the mean over devices.
        messages: In sequence, one waiting for another.
        collectives: How many collectives are executed.
    """

    bytes: float
    messages: float
    collectives: float


class Row(NamedTuple):
    """Group averaging beside allreduce, per device and step.

    Attributes:
        num_workers: P.
        group_size: S.
        allreduce: A ``pmean`` of the gradients, every step.
        ordinary: An ordinary round of group averaging, the mean over one rotation of the groups.
        average: The mean over a sync period: all ordinary rounds and one global mean.
    """

    num_workers: int
    group_size: int
    allreduce: Cost
    ordinary: Cost
    average: Cost


def count(lowered: jax.stages.Lowered, num_devices: int) -> list[Cost]:
    """The cost of a lowered program; one for every branch of the switch around its collectives, if there is one.

    Args:
        lowered: From ``jax.jit(...).trace(...).lower(lowering_platforms=...)`` or ``jax.jit(...).lower(...)``.
        num_devices: The devices of the program's mesh.

    Raises:
        ValueError: Collectives stand in several switches or in a loop, so that a step's cost is not fixed.
    """
    module: Any = lowered.compiler_ir("stablehlo")
    functions = _symbols(module, "func.func")
    switches = [op for op in _nested(functions["main"], functions) if _name(op) in _BRANCHES and _used(op, functions)]
    if len(switches) > 1:
        raise ValueError(f"expected collectives in at most one switch, got {len(switches)}: count them separately")
    branches = len(switches[0].regions) if switches else 1
    return [_Walk(functions, _symbols(module, "sdy.mesh"), num_devices, branch).run() for branch in range(branches)]


def mean(costs: Sequence[Cost], weights: Sequence[float] | None = None) -> Cost:
    """The weighted mean of costs, component by component."""
    return Cost(*(float(np.average(values, weights=weights)) for values in zip(*costs, strict=True)))


def model_shapes(num_bytes: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a float32 model: four large leaves with nine tenths of the elements, and sixty small ones.

    Args:
        num_bytes: The exact total, a multiple of 4; at least 4,000.
    """
    total, odd = divmod(num_bytes, 4)
    if odd or total < 1000:
        raise ValueError(
            f"num_bytes must be a multiple of 4 and at least 4,000, got {num_bytes}: pass for example 10**6"
        )
    columns = 512 if total >= 1 << 20 else 16
    large = {f"large{i}": (int(total * share) // columns, columns) for i, share in enumerate((0.4, 0.25, 0.15, 0.1))}
    rest = total - sum(map(math.prod, large.values()))
    weights = np.geomspace(1, 100, 60)  # biases and scales beside small kernels
    sizes = np.maximum(1, np.floor(rest * weights / weights.sum())).astype(int)
    sizes[-1] += rest - sizes.sum()
    return {**large, **{f"small{i}": (int(size),) for i, size in enumerate(sizes)}}


def sqrt_group_size(num_workers: int) -> int:
    """S = sqrt(P), the paper's choice, rounded down to a power of two."""
    return 1 << (int(math.log2(num_workers)) // 2)


def lower_average(
    schedule: wagma.GroupSchedule,
    shapes: dict[str, tuple[int, ...]],
    lowering: Lowering = "auto",
    check_vma: bool = True,
    platform: str = "tpu",
) -> jax.stages.Lowered:
    """``GroupAverager.average`` for a mesh of abstract devices, one per worker."""
    averager = wagma.GroupAverager(schedule, AXIS, lowering=lowering)

    def step(tree, state):
        return averager.average(tree, state)[:2]

    tree = _stacked(shapes, schedule.num_workers)
    return _lower(step, schedule.num_workers, check_vma, platform, tree, jax.eval_shape(jax.vmap(averager.init), tree))


def lower_allreduce(
    num_workers: int, shapes: dict[str, tuple[int, ...]], check_vma: bool = True, platform: str = "tpu"
) -> jax.stages.Lowered:
    """A plain ``pmean`` of the same tree (gradients have the shapes of the model), the baseline."""
    step = lambda tree: lax.pmean(tree, AXIS)
    return _lower(step, num_workers, check_vma, platform, _stacked(shapes, num_workers))


def average_costs(
    schedule: wagma.GroupSchedule,
    shapes: dict[str, tuple[int, ...]],
    lowering: Lowering = "auto",
    check_vma: bool = True,
    platform: str = "tpu",
) -> tuple[Cost, Cost]:
    """(an ordinary round, a step): means over one rotation of the groups, and over a sync period.

    The averager's switch has a branch for each distinct grouping, in the order of the rounds, and the sync round's
    last. Where every round is a global mean there is no switch.
    """
    branches = count(lower_average(schedule, shapes, lowering, check_vma, platform), schedule.num_workers)
    if len(branches) == 1:
        return branches[0], branches[0]
    rounds = [schedule.groups(t) for t in range(schedule.period)]
    distinct = list(dict.fromkeys(rounds))
    assert len(branches) == len(distinct) + (schedule.sync_period is not None)
    ordinary = mean([branches[distinct.index(groups)] for groups in rounds])
    if schedule.sync_period is None:
        return ordinary, ordinary
    share = 1 / schedule.sync_period
    return ordinary, mean([ordinary, branches[-1]], [1 - share, share])


def row(num_workers: int, shapes: dict[str, tuple[int, ...]], sync_period: int = 10, platform: str = "tpu") -> Row:
    """Group averaging with S = sqrt(P) beside allreduce, as ``for_workers`` and "auto" lower them by default."""
    schedule = wagma.GroupSchedule(num_workers, sqrt_group_size(num_workers), sync_period)
    (allreduce,) = count(lower_allreduce(num_workers, shapes, platform=platform), num_workers)
    return Row(num_workers, schedule.group_size, allreduce, *average_costs(schedule, shapes, platform=platform))


def _stacked(shapes: dict[str, tuple[int, ...]], num_workers: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct((num_workers, *shape), jnp.float32) for name, shape in shapes.items()}


def _lower(step, num_workers: int, check_vma: bool, platform: str, *arguments) -> jax.stages.Lowered:
    mesh: Any = AbstractMesh((num_workers,), (AXIS,), axis_types=(AxisType.Auto,))
    mapped = wagma.for_workers(step, AXIS, mesh, check_vma=check_vma)
    return jax.jit(mapped).trace(*arguments).lower(lowering_platforms=(platform,))


# The walk over StableHLO. jaxlib's MLIR bindings have no public name, so operations are told apart by theirs.

_COLLECTIVES = {
    f"stablehlo.{kind}" for kind in ("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "collective_permute")
}
_BRANCHES = ("stablehlo.case", "stablehlo.if")
_RETURNS = ("func.return", "stablehlo.return", "sdy.return")


class _Walk:
    """One execution of a program, taking the same branch of the switch around its collectives throughout."""

    def __init__(self, functions: dict[str, Any], meshes: dict[str, Any], num_devices: int, branch: int):
        self.functions = functions
        self.meshes = meshes
        self.num_devices = num_devices
        self.branch = branch
        self.bytes = 0.0
        self.collectives = 0

    def run(self) -> Cost:
        block = self.functions["main"].regions[0].blocks[0]
        results = self._block(block, [0] * len(block.arguments), {})
        return Cost(self.bytes, max(results, default=0), self.collectives)

    def _block(self, block: Any, inputs: list[int], depth: dict[Any, int]) -> list[int]:
        """Messages that each returned value waits for, given those of the arguments and of the values around."""
        depth.update(zip(block.arguments, inputs, strict=True))
        for op in block.operations:
            operands = [depth.get(value, 0) for value in op.operands]
            if _name(op) in _RETURNS:
                return operands
            depth.update(zip(op.results, self._operation(op, operands, depth), strict=True))
        return []

    def _operation(self, op: Any, operands: list[int], depth: dict[Any, int]) -> list[int]:
        if _name(op) in _COLLECTIVES:
            sent, messages = _collective(op, self.meshes, self.num_devices)
            self.bytes += sent
            self.collectives += 1
            return [max(operands) + messages] * len(op.results)
        if _name(op) == "func.call":
            return self._block(_callee(op, self.functions).regions[0].blocks[0], operands, {})
        if _used(op, self.functions):
            if _name(op) in _BRANCHES:
                return self._block(op.regions[self.branch].blocks[0], [], depth)
            if _name(op) == "sdy.manual_computation":  # shard_map
                return self._block(op.regions[0].blocks[0], operands, depth)
            raise ValueError(f"{_name(op)} holds collectives, and how often it runs is unknown: count its body instead")
        inner = [depth.get(value, 0) for nested in _nested(op, self.functions) for value in nested.operands]
        return [max([*operands, *inner], default=0)] * len(op.results)


def _collective(op: Any, meshes: dict[str, Any], num_devices: int) -> tuple[float, int]:
    """(bytes sent per device, messages in sequence) of one collective."""
    kind = _name(op).removeprefix("stablehlo.")
    operands = sum(_tensor_bytes(value.type) for value in op.operands)
    if kind == "collective_permute":
        pairs = np.array(op.attributes["source_target_pairs"]).reshape(-1, 2)
        return operands * int((pairs[:, 0] != pairs[:, 1]).sum()) / num_devices, 1
    moved = sum(_tensor_bytes(value.type) for value in op.results) if kind == "all_gather" else operands
    sizes = _group_sizes(op.attributes["replica_groups"], meshes, num_devices)
    factor = 2 if kind == "all_reduce" else 1
    sent = sum(n * factor * (n - 1) / n * moved for n in sizes) / num_devices
    largest = max(sizes)
    return sent, largest - 1 if kind == "all_to_all" else factor * math.ceil(math.log2(largest))


def _group_sizes(groups: Any, meshes: dict[str, Any], num_devices: int) -> list[int]:
    """The number of devices in each group of a collective."""
    text = str(groups)
    if "mesh_axes" in text:  # since JAX 0.12, for groups that are whole mesh axes
        if "sub_axis" in text:
            raise ValueError(f"expected groups along whole mesh axes, got {text}: write them as lists of devices")
        (mesh,) = re.findall(r"mesh = @([\w.]+)", text)
        axes = dict(re.findall(r'"(\w+)"=(\d+)', str(meshes[mesh])))
        size = math.prod(int(axes[name]) for name in re.findall(r'axis_ref<name = "(\w+)"', text))
        return [size] * (num_devices // size)
    members = np.array(groups)  # [groups, members], short groups filled up by -1
    return [int(size) for size in (members >= 0).sum(1)] if members.size else [num_devices]


def _tensor_bytes(tensor: Any) -> int:
    element, count = tensor.element_type, 1
    if hasattr(element, "element_type"):  # complex
        element, count = element.element_type, 2
    return math.prod(tensor.shape) * count * max(8, element.width) // 8


def _symbols(module: Any, kind: str) -> dict[str, Any]:
    return {op.attributes["sym_name"].value: op for op in module.body.operations if _name(op) == kind}


def _name(op: Any) -> str:
    return op.operation.name


def _callee(op: Any, functions: dict[str, Any]) -> Any:
    return functions[op.attributes["callee"].value]


def _nested(op: Any, functions: dict[str, Any]) -> Iterator[Any]:
    """All operations inside of this one, and inside of the functions that they call."""
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield inner
                yield from _nested(_callee(inner, functions) if _name(inner) == "func.call" else inner, functions)


def _used(op: Any, functions: dict[str, Any]) -> bool:
    """Whether collectives stand inside of this operation."""
    return any(_name(inner) in _COLLECTIVES for inner in _nested(op, functions))
