"""The processes of a run: agreeing, gathering, and which one is the first."""

import contextlib
import functools
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from train.errors import GaveUpError
from train.pytrees import on_host
from wagma_jax.averaging import accumulation_dtype

T = TypeVar("T")

_SHORTEST = 4096  # bytes
_PART = 1 << 20  # sizes travel as two int32: above 2 GiB, too


class ProcessError(RuntimeError):
    """Something that all processes had to do failed on some. The message is that of the first of them."""


class KeepsTogether(Exception):
    """Base of exceptions that all processes raise at the same time."""


class Group:
    """One process alone; the base of groups of several.

    All processes must call the methods in the same order, except ``is_first`` and ``abort``.

    Attributes:
        rank: Of this process.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def everyone(self, value: T) -> list[T]:
        """The values (picklable) of all processes, on all."""
        return [value]

    def from_first(self, value: T) -> T:
        """The first process's value (picklable)."""
        return self.everyone(value if self.is_first else None)[0]  # type: ignore[return-value]

    def abort(self) -> None:
        """Ends all processes at once; does nothing if there is no other."""

    def close(self) -> None:
        """Ends the group; all processes call it."""

    def agreed(self, function: Callable[[], T]) -> T:
        """Calls a function on all processes, and returns its result only if it worked on all.

        Raises:
            ValueError: What the function raised, or another process's.
            ProcessError: For errors of other kinds, where there are several processes.
        """
        if self.size == 1:
            return function()
        result, error = attempt(function)
        found = self.everyone(None if error is None else (isinstance(error, ValueError), str(error) or repr(error)))
        if error is not None:
            raise error
        for rank, failure in enumerate(found):
            if failure is not None:
                raise (ValueError if failure[0] else ProcessError)(f"process {rank}: {failure[1]}")
        return result  # type: ignore[return-value]

    def check_same(self, what: Mapping[str, Any]) -> None:
        """Raises ValueError on all processes if any value differs from the first process's value of that name."""
        mine = {name: str(value) for name, value in what.items()}
        everyone = self.everyone(mine)
        for rank, other in enumerate(everyone):
            different = [name for name in mine if other.get(name) != everyone[0].get(name)]
            if different:
                listed = ", ".join(f"{name}: {other.get(name, '')[:60]}" for name in different)
                raise ValueError(
                    f"process {rank} differs from process 0: {listed}; start all processes with the same options and "
                    "data"
                )

    @contextlib.contextmanager
    def ending_together(
        self, *expected: type[Exception], gave_up: Callable[[GaveUpError], str] = str
    ) -> Iterator[None]:
        """Ends all processes when an unexpected exception occurs on one of several.

        Otherwise the others would wait in a collective for this process, which would wait for them to shut down.

        Args:
            expected: Kinds of exceptions that all processes raise at the same time.
            gave_up: Maps a ``GaveUpError`` to what is printed instead of a traceback.
        """
        try:
            yield
        except Exception as problem:
            if self.size == 1 or isinstance(problem, (KeepsTogether, *expected)):
                raise
            if isinstance(problem, GaveUpError):
                print(gave_up(problem), file=sys.stderr)
            else:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            self.abort()
            os._exit(1)


class JaxGroup(Group):
    """The processes that ``jax.distributed`` has joined.

    Args:
        size: How many there are.
    """

    def __init__(self, size: int):
        self.size = size

    @functools.cached_property
    def rank(self) -> int:
        """Of this process. Asking JAX initializes its devices, before which some options must be set."""
        return jax.process_index()

    def everyone(self, value: T) -> list[T]:
        """The values (picklable) of all processes, on all."""
        from jax.experimental import multihost_utils

        data = np.frombuffer(pickle.dumps(value), np.uint8)
        parts = np.asarray(multihost_utils.process_allgather(np.asarray(divmod(data.size, _PART), np.int32)))
        sizes = [int(high) * _PART + int(low) for high, low in parts.reshape(self.size, 2)]
        rows = np.asarray(multihost_utils.process_allgather(_padded(data, max(sizes)))).reshape(self.size, -1)
        return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]

    def from_first(self, value: T) -> T:
        """The first process's value (picklable); only that one's crosses the network."""
        from jax.experimental import multihost_utils

        data = np.frombuffer(pickle.dumps(value if self.is_first else None), np.uint8)
        high, low = multihost_utils.broadcast_one_to_all(np.asarray(divmod(data.size, _PART), np.int32))
        size = int(high) * _PART + int(low)
        sent = _padded(data, size) if self.is_first else _padded(data[:0], size)
        return pickle.loads(np.asarray(multihost_utils.broadcast_one_to_all(sent))[:size].tobytes())


def _padded(data: np.ndarray, size: int) -> np.ndarray:
    """The bytes with zeros behind them: of few lengths, since JAX compiles for each."""
    padded = np.zeros(max(1 << (size - 1).bit_length(), _SHORTEST), np.uint8)
    padded[: data.size] = data
    return padded


class MpiGroup(Group):
    """The processes of an MPI communicator.

    Args:
        comm: An mpi4py communicator; a duplicate is used.
    """

    def __init__(self, comm: Any):
        self.world = comm
        self.comm = comm.Dup()
        self.rank = comm.rank
        self.size = comm.size
        self._others: list[Any] = []

    def everyone(self, value: T) -> list[T]:
        """The values (picklable) of all processes, on all."""
        return self._met().allgather(value)

    def from_first(self, value: T) -> T:
        """The first process's value (picklable)."""
        return self._met().bcast(value)

    def mean(self, tree: Any) -> Any:
        """The mean of all processes' trees of arrays, on all, as NumPy arrays.

        Sums are taken in float32 or wider. Leaves that are not floating or complex stay as they are, random keys among
        them. Nothing of an exchange changes by it.
        """
        comm = self._met()

        def mean(leaf: Any) -> Any:
            if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                return leaf
            total = np.array(leaf, accumulation_dtype(leaf.dtype))
            comm.Allreduce(_in_place(), total)
            return (total / self.size).astype(leaf.dtype)

        return jax.tree.map(mean, on_host(tree))

    def another(self) -> Any:
        """A further communicator of the same processes, for a use of its own; it lives as long as the group."""
        self._others.append(self._met().Dup())
        return self._others[-1]

    def abort(self) -> None:
        """Ends all processes at once."""
        self.world.Abort(1)

    def close(self) -> None:
        """Frees the communicators."""
        for comm in (*self._others, self.comm):
            comm.Free()

    def _met(self) -> Any:
        """The communicator, once all have come here; they sleep until then instead of polling."""
        from wagma_jax.exchange.barrier import barrier

        barrier(self.comm)
        return self.comm


def _in_place() -> Any:
    from wagma_jax.exchange import MPI

    return MPI.IN_PLACE


def attempt(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """A function's result, or its error. Errors of any kind are caught: others must not wait for this process."""
    try:
        return function(), None
    except (ValueError, KeepsTogether) as problem:
        return None, problem
    except Exception as problem:
        error = ProcessError(in_a_line(problem))
        error.__cause__ = problem
        return None, error


def in_a_line(error: Exception) -> str:
    """The kind of an error and the first line of its message, since those of libraries can be long."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
