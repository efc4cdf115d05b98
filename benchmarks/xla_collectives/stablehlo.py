"""Bytes and messages per device of the collectives in a lowered program, counted without hardware.

A program is lowered for a mesh of abstract devices, any number of them, and its StableHLO is walked. This counts what
JAX asks for, not what XLA makes of it by combining, decomposing and choosing algorithms. The cost model assumes
bandwidth-optimal implementations, for groups of n devices:

==================  ========================  ====================
collective          bytes sent by a device    messages in sequence
==================  ========================  ====================
all_reduce          ``2 (n-1)/n * operand``   ``2 ceil(log2 n)``
reduce_scatter      ``(n-1)/n * operand``     ``ceil(log2 n)``
all_gather          ``(n-1)/n * result``      ``ceil(log2 n)``
all_to_all          ``(n-1)/n * operand``     ``n - 1``
collective_permute  ``operand``               1
==================  ========================  ====================

Bytes are the mean over all devices. Devices that a permutation does not name, or sends to themselves, send nothing;
groups may differ in size. Messages are those of the longest chain of collectives that depend on each other: independent
ones, for example of two leaves of a model, may travel at the same time.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class Cost(NamedTuple):
    """What one execution of a program costs a device, or the mean over several executions.

    Attributes:
        bytes: Bytes that a device sends, the mean over devices.
        messages: Messages in sequence, each of which waits for the one before.
        collectives: Number of collectives executed.
    """

    bytes: float
    messages: float
    collectives: float


def count(lowered: jax.stages.Lowered, num_devices: int) -> list[Cost]:
    """Counts the cost of a lowered program: one for every branch of the switch around its collectives, if there is one.

    Args:
        lowered: From ``jax.jit(...).trace(...).lower(lowering_platforms=...)`` or ``jax.jit(...).lower(...)``.
        num_devices: Number of devices in the program's mesh.

    Raises:
        ValueError: Collectives are in several switches or in a loop, so that the cost of a step is not fixed.
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


# The walk over StableHLO. The classes of jaxlib's MLIR bindings are not public, so operations are told apart by name.

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
        """Messages that each returned value waits for, given those of the arguments and of the enclosing values."""
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
    """Number of devices in each group of a collective."""
    text = str(groups)
    if "mesh_axes" in text:  # since JAX 0.12, for groups that are whole mesh axes
        if "sub_axis" in text:
            raise ValueError(f"expected groups along whole mesh axes, got {text}: write them as lists of devices")
        (mesh,) = re.findall(r"mesh = @([\w.]+)", text)
        axes = dict(re.findall(r'"(\w+)"=(\d+)', str(meshes[mesh])))
        size = math.prod(int(axes[name]) for name in re.findall(r'axis_ref<name = "(\w+)"', text))
        return [size] * (num_devices // size)
    members = np.array(groups)  # [groups, members]; short groups are padded with -1
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
    """All operations inside this one and inside the functions that they call."""
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield inner
                yield from _nested(_callee(inner, functions) if _name(inner) == "func.call" else inner, functions)


def _used(op: Any, functions: dict[str, Any]) -> bool:
    """Whether there are collectives inside this operation."""
    return any(_name(inner) in _COLLECTIVES for inner in _nested(op, functions))
