"""Trains agents for point-goal navigation by PPO: ``python -m train.navigation``.

Decentralized, as DD-PPO is (Wijmans et al., ICLR 2020, arXiv:1911.00357): every worker collects experience of its own
and learns from it, and the chosen algorithm averages models or gradients over the workers, after every minibatch or
once in an iteration.

No statistics normalize observations, so that none have to be averaged: depths are in [0, 1] by the rules, and the
policy brings the distance to the goal into a bounded range by itself.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from models.policy import POLICIES, Policy
from train import devices, ppo, recipe, run
from train.environments import gym
from train.environments.point_goal import agents, batches, episodes, rendering, trials
from train.environments.point_goal.episodes import Difficulty
from train.environments.point_goal.maps import Layout
from train.environments.point_goal.rules import ACTIONS, Episode, Rules
from train.environments.simulator import Spaces
from train.experience import feeds, on_devices, preemption, rollouts, simulated
from train.experience.rollouts import Carry, Size
from train.fields import flag, option
from train.networks import network
from train.options import RunOptions
from train.ppo import PPOOptions
from train.task import Defaults, Feed, Gradients, Mean, Model, Place, Score
from wagma_jax.algorithms import find

if TYPE_CHECKING:
    PolicyName = str
else:
    PolicyName = Literal[tuple(POLICIES)]

EPOCH = 1_000_000  # environment steps: experience has no end, so that an epoch is a round number of them
SHOWN = 8  # episodes of the picture and the animation
_SCORES = ("success", "spl")
_LEAST = {"rollout": 1, "episodes": 1, "evaluation_episodes": 1, "max_steps": 1, "map_size": 8, "detour": 1}


@dataclasses.dataclass(frozen=True)
class Options(RunOptions, recipe.RecipeOptions):
    """Train agents for point-goal navigation by PPO.

    An epoch, as in --epochs, is a million environment steps.

    Attributes:
        every: When workers average: after every minibatch, or once in an iteration, after all its minibatches. A step
            is what lies between: one update of the policy, or all of an iteration.
        batch_size: Environments of each worker.
        rollout: Steps of each environment in an iteration.
        ppo: How the policy learns from a rollout.
        policy: Which network.
        max_gradient_norm: Longer gradients are shortened to this norm.
        map_size: Rows and columns of a map, in cells of half a metre.
        detour: By how much the way to a goal is longer than the straight line, at least, as a factor.
        max_steps: An episode ends after so many.
        episodes: How many are made beforehand to learn from, each on a map of its own.
        evaluation_episodes: On maps that nobody learns from.
        map_seed: Of maps, starts and goals; --seed is of all else.
        preempt: Over MPI, with an algorithm whose workers all wait for all in every round: a worker that is still
            collecting when this share of the workers is done, such as 0.6, stops, and learns from what it has (the
            preemption of DD-PPO). With --epochs, the run then ends by the steps that were really taken.
        simulator: Learn in an external simulator instead: habitat:CONFIG with habitat-lab, or what gymnasium.make
            takes (extra 'gymnasium'). A process for each environment.
        simulator_timeout: Seconds that it may take to start, and for a step.
    """

    every: Literal["minibatch", "iteration"] = option("minibatch", resume="restarts")
    workers: int = option(4, resume="restarts")
    steps: int | None = option(12_000, resume="free")
    batch_size: int = option(32, resume="restarts")
    rollout: int = option(32, resume="restarts")
    ppo: PPOOptions = option(PPOOptions(epochs=2, minibatches=4), resume="restarts")
    policy: PolicyName = "small"
    optimizer: recipe.OptimizerName = "adam"
    learning_rate: float = 1e-3
    warmup: float = 0.01
    schedule: recipe.ScheduleName = "linear"
    epsilon: float = 1e-5
    weight_decay: float = 0.0
    max_gradient_norm: float = 0.5
    log_every: int = option(120, resume="free")
    eval_every: int = option(1200, resume="free")
    checkpoint_every: int = option(1200, resume="free")
    map_size: int = 20
    detour: float = 1.2
    max_steps: int = 200
    episodes: int = 4096
    evaluation_episodes: int = option(500, resume="free")
    map_seed: int = 0
    preempt: float | None = option(None, resume="restarts", mpi_only=True)
    simulator: str | None = None
    simulator_timeout: float = option(60.0, resume="free")

    def check(self) -> None:
        """Raises ValueError for numbers out of range."""
        super().check()
        self.ppo.check()
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{flag(name)} must be at least {least}, got {getattr(self, name)}")
        for name in ("max_gradient_norm", "simulator_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{flag(name)} must be above 0, got {getattr(self, name)}")
        if self.batch_size % self.ppo.minibatches:
            raise ValueError(
                f"--batch-size {self.batch_size} environments cannot be split into --ppo.minibatches "
                f"{self.ppo.minibatches} equal parts: use a multiple of that"
            )
        if self.every == "iteration" and find(self.algorithm).exchanges != "models":
            raise ValueError(
                f"--every iteration is for algorithms that exchange models, got --algorithm {self.algorithm}, which "
                "averages the gradients of every minibatch: leave it out"
            )
        if self.sampling != "whole":
            raise ValueError(
                f"--sampling {self.sampling} has no meaning here, where every worker collects experience of its own: "
                "leave it out"
            )

        if self.preempt is not None:
            self._check_preemption(self.preempt)

    def _check_preemption(self, share: float) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"--preempt must be above 0 and at most 1, got {share}: DD-PPO has 0.6")
        if self.averaging_schedule().sync_period != 1:
            raise ValueError(
                f"--preempt {share} is for algorithms whose workers all wait for all in every round, got --algorithm "
                f"{self.algorithm}, where late workers need not be cut short: leave it out"
            )
        if self.rollout % preemption.PARTS:
            raise ValueError(
                f"--preempt {share} collects a rollout in {preemption.PARTS} equal parts, got --rollout "
                f"{self.rollout}: use a multiple of {preemption.PARTS}"
            )

    @property
    def ends_by_units(self) -> bool:
        """Whether the run ends by the steps that were really taken: their number in a round varies."""
        return super().ends_by_units or (self.preempt is not None and self.epochs is not None)

    @property
    def layout(self) -> Layout:
        """What maps look like."""
        return Layout(size=self.map_size)

    @property
    def difficulty(self) -> Difficulty:
        """Which starts and goals are taken."""
        return Difficulty(detour=self.detour)

    @property
    def rules(self) -> Rules:
        """Of an episode."""
        return Rules(max_steps=self.max_steps)


class Findings(NamedTuple):
    """What a part of an evaluation has found.

    Attributes:
        sums: Over its episodes, by name; ``count`` is how many.
        shown: On the first part, some episodes and how the agent fared in them.
    """

    sums: dict[str, float]
    shown: tuple[Episode, trials.Trials] | None


class Navigation(Defaults):
    """Agents that learn by PPO; see ``train.task.Task``.

    Args:
        options: Checked ones.

    Raises:
        ValueError: The simulator cannot be started or does not fit.
    """

    unit, units_per_epoch = "environment steps", EPOCH
    score = Score("spl")

    def __init__(self, options: Options):
        self.options, self.ppo = options, options.ppo
        self.spaces = Spaces((options.rules.rays,), True, len(ACTIONS))
        if options.simulator is not None:
            self.spaces = gym.probe(options.simulator, options.simulator_timeout)
        self.config = dataclasses.replace(
            POLICIES[options.policy], depth_shape=self.spaces.depth_shape, num_actions=self.spaces.num_actions
        )
        self.network = network(lambda rngs: Policy(self.config, rngs=rngs))
        self.like = self.network.like
        self.size = Size(options.rollout, options.batch_size, self.spaces.num_actions)
        self.updates = self.ppo.epochs * self.ppo.minibatches
        self.updates_per_step = self.updates if options.every == "iteration" else 1
        self.steps_per_delay = self.updates // self.updates_per_step  # it is collecting that takes uneven time
        collected = options.rollout * options.batch_size
        self.units_per_step = max(collected * self.updates_per_step // self.updates, 1)
        shape = (self.updates_per_step,) if self.updates_per_step > 1 else ()
        self.batch_shapes = [{"update": jax.ShapeDtypeStruct(shape, np.int32)}]
        self.name = f"{options.simulator or 'point goals'}, {options.policy} policy"
        self.fingerprint = {"observations": self.spaces}
        self._trials = jax.jit(self._run_trials)

    def init(self, seed: int) -> Model:
        """Parameters from a seed."""
        return self.network.init(seed)

    def carry(self, key: jax.Array) -> Carry:
        """A worker that has not collected anything yet."""
        for_world, key = jax.random.split(key)
        world = batches.empty(self.size.environments, for_world) if self.options.simulator is None else ()
        policy = rollouts.policy_of(self.network, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.like))
        may_end = self.options.preempt is not None
        return rollouts.empty(self.size, policy, self.spaces.depth_shape, self.ppo, _SCORES, world, key, may_end)

    def gradients(self, model: Model, carry: Carry, batch: Mapping[str, jax.Array], key: jax.Array) -> Gradients:
        """Gradients of PPO's loss on one minibatch of the rollout in the carry; batch: update int32 []."""
        del key  # the order of minibatches is in the carry
        taken = rollouts.minibatch(carry, batch["update"])

        def loss_function(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            policy = rollouts.policy_of(self.network, {"params": params, "stats": model["stats"]})
            output, _ = policy.unroll(
                taken["observation"], taken["previous_action"], taken["start"], taken["recurrent"]
            )
            return ppo.ppo_loss(output.logits, output.value, taken, self.ppo)

        (loss, metrics), grads = jax.value_and_grad(loss_function, has_aux=True)(model["params"])
        one = jnp.ones((), jnp.float32)
        means = {name: Mean(value.astype(jnp.float32), one) for name, value in {"loss": loss, **metrics}.items()}
        return Gradients(grads, model["stats"], carry, means | rollouts.episode_metrics(carry, batch["update"]))

    def feed(self, place: Place, seed: int, first_unit: int) -> Feed:
        """Experience of this process's workers."""
        options = self.options
        sizes = self.size, self.updates, self.updates_per_step
        if options.simulator is not None:
            collector = simulated.Collector(
                options.simulator, options.simulator_timeout, place, self.network, self.size, self.ppo, seed, first_unit
            )
            if options.preempt is not None:
                return preemption.Preempted(place, collector, *sizes, options.preempt, collector.close)
            return feeds.ExperienceFeed(place, collector, *sizes, collector.close)
        pool = jax.tree.map(jnp.asarray, self.pool("training", options.episodes))
        world = batches.World(options.rules, pool, self.size.environments)
        close = lambda: None
        if options.preempt is not None:
            in_parts = preemption.InParts(place, world, self.network, self.ppo, self.size)
            return preemption.Preempted(place, in_parts, *sizes, options.preempt, close)
        collect = place.map(functools.partial(on_devices.collect, world, self.network, self.ppo), donate=(1,))
        return feeds.ExperienceFeed(place, collect, *sizes, close)

    def evaluate(self, model: Model, place: Place) -> Findings:
        """Success and SPL on this process's part of the evaluation episodes, with actions that are drawn."""
        which, parts = place.part
        numbers = np.arange(which, self.options.evaluation_episodes, parts)
        if self.options.simulator is not None:
            return self._evaluate_in_simulators(model, numbers)
        mine = jax.tree.map(lambda leaf: leaf[numbers], self._evaluation)
        mesh = devices.mesh_of(place.devices, "episodes")
        rows = np.arange(-(-len(numbers) // mesh.size) * mesh.size) % max(len(numbers), 1)  # equally many for each
        given = jax.tree.map(lambda leaf: leaf[rows], (mine, numbers.astype(np.int32)))
        fared = self._trials(jax.device_put(model, devices.replicated(mesh)), *devices.place(given, mesh, "episodes"))
        fared = jax.tree.map(np.asarray, fared)
        sums = {name: float(getattr(fared, name)[: len(numbers)].sum()) for name in _SCORES}
        shown = None
        if which == 0:
            few = min(SHOWN, len(numbers))
            first = jax.tree.map(lambda leaf: leaf[:few], fared._replace(poses=fared.poses.swapaxes(0, 1)))
            shown = jax.tree.map(lambda leaf: leaf[:few], mine), first._replace(poses=first.poses.swapaxes(0, 1))
        return Findings(sums | {"count": float(len(numbers))}, shown)

    def scores(self, parts: Sequence[Findings]) -> dict[str, float]:
        """Mean success and SPL over all evaluation episodes, and in simulators the mean sum of rewards."""
        count = sum(part.sums["count"] for part in parts)
        return {name: sum(p.sums[name] for p in parts) / count for name in parts[0].sums if name != "count"}

    def export(self) -> dict[str, Any]:
        """What a reader of the exported model needs to know."""
        config = {name: value for name, value in dataclasses.asdict(self.config).items() if not name.endswith("dtype")}
        return {"model": self.options.policy, "config": config, "actions": ACTIONS[: self.spaces.num_actions]}

    def finish(self, out: Path, notes: Mapping[str, frozenset[int]], parts: Sequence[Findings]) -> dict[str, Any]:
        """Draws some evaluation episodes, and scores agents that do not learn on all of them."""
        del notes
        shown = parts[0].shown if parts else None
        if shown is None:
            return {}
        rule = self.options.rules
        if self.options.picture:
            rendering.save_picture(out / "episodes.png", rule, *shown, title=f"{self.name}: evaluation episodes")
            rendering.save_animation(out / "episodes.gif", rule, *shown)
        key = jax.random.key(self.options.map_seed)
        fared = {name: trials.run_agent(rule, self._evaluation, each, key) for name, each in agents.BASELINES.items()}
        return {"agents": {name: trials.scores(each) for name, each in fared.items()}}

    def pool(self, split: episodes.Split, count: int) -> Episode:
        """Episodes made beforehand; leaves NumPy arrays [count, ...]."""
        options = self.options
        return episodes.make(count, options.map_seed, split, options.layout, options.difficulty, options.rules)

    @functools.cached_property
    def _evaluation(self) -> Episode:
        return self.pool("evaluation", self.options.evaluation_episodes)

    def _run_trials(self, model: Model, chosen: Episode, numbers: jax.Array) -> trials.Trials:
        """The policy on episodes, whose draws depend on their numbers alone; traced."""
        policy, count = rollouts.policy_of(self.network, model), len(numbers)

        def act(memory: Any, chosen: Episode, states: Any, seen: Any, key: jax.Array) -> Any:
            del chosen, states
            recurrent, previous_action, start = memory
            output, recurrent = policy.step(seen._asdict(), previous_action, start, recurrent)
            draws = jax.vmap(functools.partial(jax.random.fold_in, key))(numbers)
            action = jax.vmap(jax.random.categorical)(draws, output.logits).astype(jnp.int32)
            return (recurrent, action, jnp.zeros_like(start)), action

        none = jnp.full(count, self.size.actions, jnp.int32)
        memory = policy.initial_state(count), none, jnp.ones(count, bool)
        return trials.run(self.options.rules, chosen, act, memory, jax.random.key(self.options.map_seed))

    def _evaluate_in_simulators(self, model: Model, numbers: np.ndarray) -> Findings:
        options = self.options
        assert options.simulator is not None
        seeds = [options.map_seed + int(number) for number in numbers]
        scored = simulated.evaluate(
            options.simulator, options.simulator_timeout, self.network, self.size.actions, model, seeds
        )
        sums = {name: float(value.sum()) for name, value in scored._asdict().items()}
        return Findings(sums | {"count": float(len(numbers))}, None)


def optimizer(options: Options) -> optax.GradientTransformationExtraArgs:
    """The local optimizer of a worker."""
    return optax.chain(optax.clip_by_global_norm(options.max_gradient_norm), recipe.create_optimizer(options))


WORKLOAD = run.Workload("navigation", Options, Navigation, optimizer)

if __name__ == "__main__":
    run.main(WORKLOAD)
