"""flax (NNX) networks as trees: a graph for training, one for evaluation, and the arrays apart from both."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from train.task import Model

Make = Callable[[nnx.Rngs], nnx.Module]


class Network(NamedTuple):
    """A network without its arrays.

    Attributes:
        make: Makes the module.
        train: The graph for training.
        eval: The graph for evaluation.
        like: Shapes and dtypes of parameters (``nnx.Param``) and statistics (``nnx.BatchStat``), nested dicts.
    """

    make: Make
    train: nnx.GraphDef
    eval: nnx.GraphDef
    like: Model

    def init(self, seed: int) -> Model:
        """Parameters and statistics drawn from a seed, as NumPy arrays."""

        @nnx.jit
        def make():
            return self.make(nnx.Rngs(seed))

        return jax.tree.map(np.asarray, _split(make())[1])

    def for_training(self, params, stats) -> nnx.Module:
        """The module with these arrays, for a traced function that is differentiated."""
        return nnx.merge(self.train, params, stats, copy=True)

    def for_evaluation(self, model: Model) -> nnx.Module:
        """The module with these arrays."""
        return nnx.merge(self.eval, model["params"], model["stats"])


def network(make: Make) -> Network:
    """Splits the network that ``make`` makes; nothing is compiled."""
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    module.train()
    train, like = _split(module)
    module.eval()
    evaluation, _ = _split(module)
    return Network(make, train, evaluation, like)


def statistics(module: nnx.Module) -> dict:
    """The statistics of a module after it has been called."""
    return nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))


def _split(module: nnx.Module) -> tuple[nnx.GraphDef, Model]:
    graph, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)
    return graph, {"params": nnx.to_pure_dict(params), "stats": nnx.to_pure_dict(stats)}
