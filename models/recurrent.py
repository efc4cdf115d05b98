"""Recurrent cells that forget where an episode begins: one step at a time for acting, a scan over time for training.

The projection of the inputs is one matrix product over all steps. What is left in the scan is the projection of the
state. States are float32 whatever the floating type of the products.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

State = Any
"""Of one core: a tree of float32 `[batch, features]`."""


class Core(nnx.Module):
    """What both cells share; a subclass has `gates`, `parts` and `cell`.

    Attributes:
        features: of the state and of every output.
        inputs: the projection of the inputs, for all gates, with biases.
        hidden: that of the state's output.
    """

    gates: int  # how many vectors the projections have
    parts: int  # how many vectors the state has; the first is the output

    def __init__(self, in_features: int, features: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.features = features
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.inputs = nnx.Linear(in_features, self.gates * features, **options)
        self.hidden = nnx.Linear(features, self.gates * features, kernel_init=_orthogonal(self.gates), **options)

    def initial_state(self, batch: int) -> State:
        """Zeros, as at the start of an episode."""
        return (jnp.zeros((batch, self.features), jnp.float32),) * self.parts

    def step(self, x: jax.Array, start: jax.Array, state: State) -> tuple[jax.Array, State]:
        """One step.

        Args:
            x: floating `[batch, in_features]`.
            start: bool `[batch]`: whether an episode begins with this step, so that the state is zeros before it.
            state: after the step before.

        Returns:
            float32 `[batch, features]`, and the state.
        """
        return self._advance(self.inputs(x), start, state)

    def unroll(self, x: jax.Array, start: jax.Array, state: State) -> tuple[jax.Array, State]:
        """All steps, the same as `step` one after the other; x `[time, batch, in_features]`, start `[time, batch]`.

        Returns:
            float32 `[time, batch, features]`, and the state after the last step.
        """

        def advance(state: State, step: tuple[jax.Array, jax.Array]) -> tuple[State, jax.Array]:
            output, state = self._advance(*step, state)
            return state, output

        state, outputs = jax.lax.scan(advance, state, (self.inputs(x), start))
        return outputs, state

    def cell(self, projected: jax.Array, state: State) -> State:
        """The next state from that before and the projected input `[batch, gates * features]`."""
        raise NotImplementedError

    def _advance(self, projected: jax.Array, start: jax.Array, state: State) -> tuple[jax.Array, State]:
        state = jax.tree.map(lambda leaf: jnp.where(start[:, None], 0, leaf), state)
        state = self.cell(projected, state)
        return state[0], state


class GRU(Core):
    """The gated recurrent unit of Cho et al., 2014 (arXiv:1406.1078), its reset gate after the projection.

    With projections x and h of the input and of the state:
    `r = sigmoid(x_r + h_r)`, `z = sigmoid(x_z + h_z)`, `n = tanh(x_n + r h_n)`, `state = (1 - z) n + z state`.
    """

    gates, parts = 3, 1

    def cell(self, projected: jax.Array, state: State) -> State:
        """The next state, `[batch, features]` in a tuple."""
        (before,) = state
        x_r, x_z, x_n = jnp.split(projected.astype(jnp.float32), 3, axis=-1)
        h_r, h_z, h_n = jnp.split(self.hidden(before).astype(jnp.float32), 3, axis=-1)
        reset, keep = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
        return ((1 - keep) * jnp.tanh(x_n + reset * h_n) + keep * before,)


class LSTM(Core):
    """The long short-term memory of Hochreiter and Schmidhuber, 1997, with a forget gate of Gers et al., 2000.

    With the sum a of both projections: `i, f, o = sigmoid(a_i), sigmoid(a_f + 1), sigmoid(a_o)`,
    `cell = f cell + i tanh(a_g)`, `output = o tanh(cell)`. The 1 makes it remember in the beginning (Jozefowicz et al.,
    2015).
    """

    gates, parts = 4, 2

    def cell(self, projected: jax.Array, state: State) -> State:
        """The next output and memory, `[batch, features]` each."""
        output, memory = state
        gates = projected.astype(jnp.float32) + self.hidden(output).astype(jnp.float32)
        write, forget, new, read = jnp.split(gates, 4, axis=-1)
        memory = jax.nn.sigmoid(forget + 1) * memory + jax.nn.sigmoid(write) * jnp.tanh(new)
        return jax.nn.sigmoid(read) * jnp.tanh(memory), memory


CORES: dict[str, type[Core]] = {"gru": GRU, "lstm": LSTM}
"""By name."""


def _orthogonal(gates: int) -> Any:
    """Initializes `[features, gates * features]` with an orthogonal matrix for each gate."""
    draw = nnx.initializers.orthogonal()

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, *unused: Any, **ignored: Any) -> jax.Array:
        rows, columns = shape
        matrices = [draw(each, (rows, columns // gates), jnp.float32) for each in jax.random.split(key, gates)]
        return jnp.concatenate(matrices, axis=1).astype(dtype)

    return init
