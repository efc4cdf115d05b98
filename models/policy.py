"""Recurrent actor-critic policies for navigation towards a point by depth, from rays or from images.

The parts are those of the agents of Wijmans et al., "DD-PPO", 2020 (https://arxiv.org/abs/1911.00357): an encoder of
what is seen, embeddings of the goal and of the action before, a recurrent core, and linear heads for actor and critic.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.checks import check_choice, check_count, check_floating
from models.recurrent import CORES, State

_GOAL_FEATURES = 4
_CHANNELS = (16, 32, 32)  # of the convolutions; each halves height and width


@dataclass(frozen=True)
class PolicyConfig:
    """Shape and precision of a policy; hashable, and varied with `dataclasses.replace`.

    Attributes:
        depth_shape: of one observation's depths: `(rays,)`, or `(height, width, channels)` of an image.
        num_actions: actions to choose from.
        hidden: features of the recurrent core, and of what is seen when it has been encoded.
        embedding: features of the goal, and of the action before.
        core: "gru" or "lstm".
        max_distance: metres by which distances to the goal are divided; about the largest.
        dtype: floating type of matrix products; recurrent states, logits and values are float32.
        param_dtype: floating type of the parameters.

    Raises:
        ValueError: if a field is out of its range.
    """

    depth_shape: tuple[int, ...] = (16,)
    num_actions: int = 4
    hidden: int = 128
    embedding: int = 32
    core: Literal["gru", "lstm"] = "gru"
    max_distance: float = 10.0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        """Validates every field."""
        shape = self.depth_shape
        if not isinstance(shape, tuple) or len(shape) not in (1, 3):
            raise ValueError(
                f"depth_shape must have 1 axis (rays) or 3 (height, width, channels), got {shape!r}; pass e.g. (16,)"
            )
        for size in shape:
            check_count("each size in depth_shape", size)
        for name in ("num_actions", "hidden", "embedding"):
            check_count(name, getattr(self, name))
        check_choice("core", self.core, tuple(CORES))
        if not isinstance(self.max_distance, int | float) or not self.max_distance > 0:
            raise ValueError(f"max_distance must be above 0, got {self.max_distance!r}; pass metres, e.g. 10.0")
        for name in ("dtype", "param_dtype"):
            check_floating(name, getattr(self, name))


POLICIES: dict[str, PolicyConfig] = {
    "tiny": PolicyConfig(hidden=16, embedding=8),
    "small": PolicyConfig(),
    "lstm": PolicyConfig(core="lstm", hidden=512),  # the core of DD-PPO's agents, but one layer of it
}
"""Configurations by name; `dataclasses.replace` makes others of them, such as one for your observations."""


class Output(NamedTuple):
    """What a policy says, `[batch]` or `[time, batch]` before other axes.

    Attributes:
        logits: float32 `[..., num_actions]` of the actions.
        value: float32 `[...]`: what the critic expects to be rewarded from here.
    """

    logits: jax.Array
    value: jax.Array


class Policy(nnx.Module):
    """A policy that maps observations, and what it remembers of those before, to actions.

    >>> policy = Policy(POLICIES["tiny"], rngs=nnx.Rngs(0))
    >>> state = policy.initial_state(2)
    >>> seen = {"depth": jnp.ones([2, 16]), "goal": jnp.ones([2, 2])}
    >>> none = jnp.full([2], policy.num_actions)  # no action went before
    >>> output, state = policy.step(seen, none, jnp.ones([2], bool), state)
    >>> output.logits.shape, output.value.shape
    ((2, 4), (2,))

    Observations are a mapping:

    - `depth`: floating `[..., *depth_shape]` in [0, 1].
    - `goal`: floating `[..., 2]`: distance in metres, and angle in radians, relative to the agent's heading.

    Attributes:
        config: the configuration.
        num_actions: actions to choose from; as an action before, this number stands for none.
        depth: the encoder of what is seen.
        goal: the embedding of the goal.
        previous: the embedding of the action before.
        core: the recurrent core.
        actor: the linear layer to the logits.
        critic: that to the value.
    """

    def __init__(self, config: PolicyConfig, *, rngs: nnx.Rngs):
        """Makes a policy with freshly drawn parameters, by which all actions are nearly equally likely.

        Args:
            config: shape and precision, for example `POLICIES["small"]`.
            rngs: its `params` stream draws the parameters.
        """
        self.config, self.num_actions = config, config.num_actions
        options: dict[str, Any] = {"dtype": config.dtype, "param_dtype": config.param_dtype, "rngs": rngs}
        encoder = _Rays if len(config.depth_shape) == 1 else _Images
        self.depth = encoder(config.depth_shape, config.hidden, **options)
        self.goal = nnx.Linear(_GOAL_FEATURES, config.embedding, **options)
        self.previous = nnx.Embed(config.num_actions + 1, config.embedding, **options)
        self.core = CORES[config.core](config.hidden + 2 * config.embedding, config.hidden, **options)
        last = {**options, "dtype": jnp.float32}
        orthogonal = nnx.initializers.orthogonal
        self.actor = nnx.Linear(config.hidden, config.num_actions, kernel_init=orthogonal(0.01), **last)
        self.critic = nnx.Linear(config.hidden, 1, kernel_init=orthogonal(1.0), **last)

    def initial_state(self, batch: int) -> State:
        """The recurrent state before the first step, a tree of float32 `[batch, hidden]`."""
        return self.core.initial_state(batch)

    def step(
        self, observation: Mapping[str, jax.Array], previous_action: jax.Array, start: jax.Array, state: State
    ) -> tuple[Output, State]:
        """One step, for acting.

        Args:
            observation: leaves `[batch, ...]`; see the class.
            previous_action: integers `[batch]`; `num_actions` in an episode's first step.
            start: bool `[batch]`: whether this is an episode's first step, before which the state is reset.
            state: after the step before.

        Returns:
            What the policy says, and its state.

        Raises:
            ValueError: if an observation has another shape; under jit, when traced.
        """
        features, state = self.core.step(self._features(observation, previous_action, 1), start, state)
        return self._output(features), state

    def unroll(
        self, observation: Mapping[str, jax.Array], previous_action: jax.Array, start: jax.Array, state: State
    ) -> tuple[Output, State]:
        """All steps, for training: the same as `step` one after the other, but all leaves are `[time, batch, ...]`.

        Returns:
            What the policy says, `[time, batch]`, and its state after the last step.
        """
        features, state = self.core.unroll(self._features(observation, previous_action, 2), start, state)
        return self._output(features), state

    def _features(self, observation: Mapping[str, jax.Array], previous_action: jax.Array, axes: int) -> jax.Array:
        """What the core takes, `[..., features]`; axes: how many come before those of one observation."""
        for name, shape in (("depth", self.config.depth_shape), ("goal", (2,))):
            found = jnp.shape(observation[name])
            if found[axes:] != shape or found[:axes] != jnp.shape(previous_action):
                expected = [*jnp.shape(previous_action), *shape]
                raise ValueError(
                    f"the observation's {name} must have shape {expected}, with as many environments (and steps) as "
                    f"previous_action, got {list(found)}; set depth_shape in the config, or stack the observations"
                )
        distance, angle = observation["goal"][..., 0], observation["goal"][..., 1]
        # The exponential resolves where to stop, cosine and sine have no jump behind the agent.
        goal = (distance / self.config.max_distance, jnp.exp(-distance), jnp.cos(angle), jnp.sin(angle))
        parts = (
            self.depth(observation["depth"]),
            nnx.relu(self.goal(jnp.stack(goal, axis=-1))),
            self.previous(previous_action),
        )
        return jnp.concatenate(parts, axis=-1)

    def _output(self, features: jax.Array) -> Output:
        return Output(self.actor(features), self.critic(features)[..., 0])


class _Rays(nnx.Module):
    """Encodes depths along rays by a linear layer."""

    def __init__(self, shape: tuple[int, ...], features: int, **options: Any):
        (rays,) = shape
        self.layer = nnx.Linear(rays, features, **options)

    def __call__(self, depth: jax.Array) -> jax.Array:
        """Maps `[..., rays]` to `[..., features]`."""
        return nnx.relu(self.layer(depth))


class _Images(nnx.Module):
    """Encodes images of depths by convolutions with stride 2 and a linear layer."""

    def __init__(self, shape: tuple[int, ...], features: int, **options: Any):
        height, width, channels = shape
        layers = []
        for each in _CHANNELS:
            layers.append(nnx.Conv(channels, each, (3, 3), strides=2, padding=1, **options))
            height, width, channels = math.ceil(height / 2), math.ceil(width / 2), each
        self.layers = nnx.List(layers)
        self.out = nnx.Linear(height * width * channels, features, **options)

    def __call__(self, depth: jax.Array) -> jax.Array:
        """Maps `[..., height, width, channels]` to `[..., features]`."""
        x = depth
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return nnx.relu(self.out(x.reshape(*x.shape[:-3], -1)))
