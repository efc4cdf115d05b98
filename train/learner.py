"""One worker's state, and the two halves of a step: before and after workers combine what they have learned."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from train import moments
from train.counts import check_metrics
from train.moments import Moments
from train.pytrees import as_shapes, layout
from train.task import Gradients, Mean, Model, Task


class State(NamedTuple):
    """One worker's state.

    Attributes:
        model: Parameters and statistics.
        optimizer: State of the local optimizer.
        carry: The workload's local state.
        algorithm: State of the algorithm, where the algorithm runs inside XLA; () otherwise.
    """

    model: Model
    optimizer: Any
    carry: Any
    algorithm: Any


class Begin(NamedTuple):
    """What all workers begin with if they do not go on from states of their own.

    Attributes:
        model: NumPy arrays.
        optimizer: State of the local optimizer, NumPy arrays; None: a new one.
    """

    model: Model
    optimizer: Any = None


@dataclasses.dataclass(frozen=True)
class Learner:
    """One worker's computations; all methods are traced and pure.

    Attributes:
        task: The workload.
        optimizer: The local optimizer. If its rate changes, its ``update`` takes ``share``.
        exchanges: What workers combine: "models" after the local step, or "gradients" before it.
        seed: Of all that steps draw.
        moments: Which of the optimizer's moments travel with models, and when they are averaged.
    """

    task: Task
    optimizer: optax.GradientTransformation
    exchanges: Literal["models", "gradients"]
    seed: int
    moments: Moments = "own"

    def optimizer_state(self, model: Model) -> Any:
        """The optimizer's state before the first step."""
        return self.optimizer.init(model["params"])

    def carry(self, worker: jax.Array, first_step: int) -> Any:
        """The workload's local state of a worker (its index, int32 []) that begins at this step."""
        return self.task.carry(self._key(jnp.asarray(-1 - first_step, jnp.int32), worker))

    def check(self) -> None:
        """Raises ValueError for a step that is not as it should be, or moments that do not exist; compiles nothing."""
        worker = jax.ShapeDtypeStruct((), jnp.int32)
        model, batch = as_shapes(self.task.like), self.task.batch_shapes[0]
        if self.task.updates_per_step > 1:
            batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch)
        carry = jax.eval_shape(lambda worker: self.carry(worker, 0), worker)
        jax.eval_shape(self._traced, model, carry, batch, jax.eval_shape(self._key, worker, worker))
        if self.moments != "own":
            jax.eval_shape(lambda model: self.exchanged(model, self.optimizer_state(model)), as_shapes(self.task.like))

    def exchanged(self, model: Model, optimizer: Any) -> Any:
        """A tree with the structure, shapes and dtypes of those that are exchanged, at the first step or any other.

        Raises:
            ValueError: The optimizer has no such moments.
        """
        if self.exchanges == "models":
            chosen = moments.select(optimizer, self.moments)
            return {**model, moments.KEY: chosen} if chosen else model
        return {"params": jax.tree.map(jnp.zeros_like, model["params"]), "stats": model["stats"]}

    def before(
        self, model: Model, optimizer: Any, carry: Any, batch: Any, step: jax.Array, worker: jax.Array, share: jax.Array
    ) -> tuple[Any, Any, Any, dict[str, Mean]]:
        """The first half of a step.

        Args:
            model: The model at which the step begins.
            optimizer: State of the local optimizer.
            carry: The workload's local state.
            batch: One worker's batch.
            step: int32 []: steps that this worker has taken in the whole run.
            worker: int32 []: its index.
            share: float32 [] in [0, 1]: the share of the training that is done.

        Returns:
            (what is to be exchanged, optimizer's state, carry, metrics).
        """
        key = self._key(step, worker)
        if self.task.updates_per_step > 1:
            model, optimizer, carry, metrics = self._several(model, optimizer, carry, batch, key, share)
            return self.exchanged(model, optimizer), optimizer, carry, metrics
        made = self._traced(model, carry, batch, key)
        if self.exchanges == "gradients":
            return {"params": made.grads, "stats": made.stats}, optimizer, made.carry, made.metrics
        model, optimizer = self._apply(made.grads, made.stats, model, optimizer, share)
        return self.exchanged(model, optimizer), optimizer, made.carry, made.metrics

    def _several(
        self, model: Model, optimizer: Any, carry: Any, batch: Any, key: jax.Array, share: jax.Array
    ) -> tuple[Any, Any, Any, dict[str, Mean]]:
        """As :meth:`before`, with several updates; leaves of the batch are [updates, ...]."""
        assert self.exchanges == "models", "gradients are exchanged after every update"

        def update(state: Any, each: Any) -> Any:
            (model, optimizer, carry), (number, part) = state, each
            made = self._traced(model, carry, part, jax.random.fold_in(key, number))
            model, optimizer = self._apply(made.grads, made.stats, model, optimizer, share)
            return (model, optimizer, made.carry), made.metrics

        numbers = jnp.arange(self.task.updates_per_step)
        (model, optimizer, carry), metrics = jax.lax.scan(update, (model, optimizer, carry), (numbers, batch))
        return model, optimizer, carry, jax.tree.map(lambda each: each.sum(0), metrics)

    def _gradients(self, model: Model, carry: Any, batch: Any, key: jax.Array) -> Gradients:
        """What the task computes.

        Raises:
            ValueError: It is not like what came in.
        """
        made = self.task.gradients(model, carry, batch, key)
        check_metrics(made.metrics)
        wanted = {"grads": model["params"], "stats": model["stats"], "carry": carry}
        for name, like in wanted.items():
            got, expected = _layout(getattr(made, name)), _layout(like)
            if name == "grads":  # the optimizer takes any dtype
                got, expected = ({path: shape for path, (shape, _) in each.items()} for each in (got, expected))
            for path in [*expected, *got]:
                its, came = got.get(path, "nothing"), expected.get(path, "nothing")
                if its != came:
                    raise ValueError(
                        f"gradients() of {self.task.name} must return {name} like what came in, got {its} at "
                        f"{path or 'the only leaf'}, where {came} came in: return all leaves, with the same shapes and "
                        "dtypes"
                    )
        return made

    def after(self, model: Model, optimizer: Any, combined: Any, share: jax.Array) -> tuple[Model, Any]:
        """The second half of a step: maps what the exchange returned to (model, optimizer's state)."""
        if self.exchanges == "gradients":
            return self._apply(combined["params"], combined["stats"], model, optimizer, share)
        if self.moments == "own":
            return combined, optimizer
        model = {name: part for name, part in combined.items() if name != moments.KEY}
        return model, moments.replace(optimizer, combined[moments.KEY])

    def square_distance(self, sent: Any, combined: Any) -> jax.Array:
        """float32 []: squared distance by which the exchange moved the parameters; that to the consensus at a sync."""
        if self.exchanges == "gradients":  # parameters are always equal on all workers
            return jnp.zeros((), jnp.float32)
        return square_distance(sent["params"], combined["params"])

    def _apply(self, grads: Any, stats: Any, model: Model, optimizer: Any, share: jax.Array) -> tuple[Model, Any]:
        extra = {"share": share} if self._takes_share else {}
        updates, optimizer = self._update(grads, optimizer, model["params"], **extra)
        return {"params": optax.apply_updates(model["params"], updates), "stats": stats}, optimizer

    @property
    def _update(self) -> Callable[..., Any]:
        return self.optimizer.update

    @functools.cached_property
    def _takes_share(self) -> bool:
        """Whether the optimizer's rate follows the share; one of optax's that never changes does not know it."""
        parameters = inspect.signature(self._update).parameters.values()
        return any(one.name == "share" or one.kind == one.VAR_KEYWORD for one in parameters)

    @functools.cached_property
    def _traced(self) -> Callable[..., Gradients]:
        """As ``_gradients``; JAX remembers what it has traced in the same way, so that :meth:`check` costs little."""
        return jax.jit(self._gradients, inline=True)

    def _key(self, step: jax.Array, worker: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), step), worker)


def _layout(tree: Any) -> dict[str, list[Any]]:
    """As ``pytrees.layout``, also of Python numbers."""
    return layout(jax.tree.map(lambda leaf: leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf), tree))


def square_distance(a: Any, b: Any) -> jax.Array:
    """float32 []: the squared distance of two trees of floating leaves."""
    squares = jax.tree.map(lambda x, y: jnp.sum(jnp.square(x.astype(jnp.float32) - y.astype(jnp.float32))), a, b)
    return jnp.asarray(sum(jax.tree.leaves(squares)), jnp.float32)
