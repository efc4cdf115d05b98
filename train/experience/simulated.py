"""Rollouts and evaluations in external simulators, which keep their state to themselves."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from train import devices
from train.environments.gym import Simulators
from train.experience import preemption, rollouts
from train.experience.rollouts import Acted, Carry, Size
from train.networks import Network
from train.ppo import PPOOptions
from train.task import Cutoff, Model, Place

_AT_A_TIME = 8  # simulators of an evaluation
_LONGEST = 100_000  # steps of an episode that is evaluated


class Collector:
    """Collects from simulators, which keep their state to themselves: a resumed run begins new episodes.

    Args:
        name: Of the simulator.
        timeout: Seconds for its answers.
        place: Where the workers are.
        network: Of the policy.
        size: Of a worker's experience.
        ppo: How advantages are computed.
        seed: Of the episodes.
        first_unit: Units that all workers had seen before.
    """

    def __init__(
        self,
        name: str,
        timeout: float,
        place: Place,
        network: Network,
        size: Size,
        ppo: PPOOptions,
        seed: int,
        first_unit: int,
    ):
        self._place, self._size = place, size
        workers = list(place.workers)
        label = f"worker {workers[0]}'s simulator" if len(workers) == 1 else "simulator"
        self._simulators = Simulators(name, len(workers) * size.environments, timeout, label)
        seeds = np.random.SeedSequence((seed, first_unit, workers[0])).generate_state(len(self._simulators))
        self._seeds = [int(each % (1 << 31)) for each in seeds]
        self._seen: dict[str, np.ndarray] | None = None
        self._previous = np.full(len(self._simulators), size.actions, np.int32)
        self._start = np.ones(len(self._simulators), bool)

        def act(model: Model, seen: Any, previous_action: Any, start: Any, recurrent: Any, key: Any) -> Any:
            key, draw = jax.random.split(key)
            policy = rollouts.policy_of(network, model)
            return rollouts.act(policy, seen, previous_action, start, recurrent, draw), key

        def finish(carry: Carry, steps: Any, last_value: Any, recurrent: Any, key: Any, taken: Any) -> Carry:
            steps = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf), steps)
            following = carry._replace(recurrent=recurrent, key=key)
            taken = taken if "valid" in carry.rollout else None  # a rollout that cannot end early is whole
            return rollouts.collected(carry, steps, last_value, ppo, following, taken)

        self._act, self._finish = place.map(act), place.map(finish)
        self.close = self._simulators.close

    def __call__(self, model: Model, carry: Carry) -> Carry:
        """The carries after another rollout.

        Raises:
            GaveUpError: A simulator has died, raised or not answered in time.
        """
        return self.collect(model, carry, None)[0]

    def prepare(self, model: Model, carry: Carry) -> None:
        """Begins the first episodes, and compiles what acts."""
        self._seen = self._simulators.reset(self._seeds)
        self._ask(model, self._seen, self._previous, self._start, carry.recurrent, carry.key)

    def collect(self, model: Model, carry: Carry, cutoff: Cutoff | None) -> tuple[Carry, int]:
        """The same for a rollout that may end early, and how many steps of each environment are in it."""
        if self._seen is None:
            self._seen = self._simulators.reset(self._seeds)
        recurrent, key, made = carry.recurrent, carry.key, []
        for step in range(self._size.steps):
            part, within = divmod(step * preemption.PARTS, self._size.steps)
            if within == 0 and preemption.ends(cutoff, part):
                break
            seen, previous_action, start = self._seen, self._previous, self._start
            acted, following_key = self._ask(model, seen, previous_action, start, recurrent, key)
            action, log_prob, value = (self._host(leaf) for leaf in acted[:3])
            stepped = self._simulators.step(action)
            ended = stepped.done | stepped.truncated
            self._seen, self._start = stepped.observation, ended
            self._previous = np.where(ended, np.int32(self._size.actions), action)
            final = np.zeros_like(value)
            if stepped.truncated.any():  # what the episode would have gone on to
                going_on = np.zeros_like(ended)
                answered, _ = self._ask(model, stepped.final, action, going_on, acted.recurrent, key)
                final = np.where(stepped.truncated, self._host(answered.value), np.float32(0))
            made.append(
                {
                    "observation": seen,
                    "previous_action": previous_action,
                    "start": start,
                    "action": action,
                    "log_prob": log_prob,
                    "value": value,
                    "reward": stepped.reward,
                    "done": stepped.done,
                    "truncated": stepped.truncated,
                    "final_value": final,
                    "scores": {"success": stepped.success, "spl": stepped.spl},
                }
            )
            recurrent, key = acted.recurrent, following_key
        last, key = self._ask(model, self._seen, self._previous, self._start, recurrent, key)
        taken = len(made)
        made += [jax.tree.map(np.zeros_like, made[0])] * (self._size.steps - taken)
        steps = jax.tree.map(lambda *leaves: self._by_worker(np.stack(leaves), 1), *made)
        number = self._place.put(np.full(len(self._place.workers), taken, np.int32))
        return self._finish(carry, self._place.put(steps), last.value, recurrent, key, number), taken

    def _ask(
        self, model: Model, seen: Any, previous_action: np.ndarray, start: np.ndarray, recurrent: Any, key: Any
    ) -> tuple[Acted, Any]:
        given = jax.tree.map(lambda leaf: self._by_worker(leaf, 0), (seen, previous_action, start))
        return self._act(model, *self._place.put(given), recurrent, key)

    def _by_worker(self, leaf: np.ndarray, axis: int) -> np.ndarray:
        """Splits the axis of all agents of this process, and moves that of workers to the front."""
        count = len(self._place.workers)
        shape = (*leaf.shape[:axis], count, leaf.shape[axis] // count, *leaf.shape[axis + 1 :])
        return np.moveaxis(leaf.reshape(shape), axis, 0)

    def _host(self, leaf: Any) -> np.ndarray:
        return devices.local(leaf).reshape(-1)


class Scored(NamedTuple):
    """How episodes in simulators ended; float32 [episodes] each.

    Attributes:
        success: As the simulator tells.
        spl: Likewise.
        rewards: Their sum.
    """

    success: np.ndarray
    spl: np.ndarray
    rewards: np.ndarray


def evaluate(name: str, timeout: float, network: Network, actions: int, model: Model, seeds: Sequence[int]) -> Scored:
    """Evaluates a policy in simulators that are started for it, an episode for each seed.

    Args:
        name: Of the simulator.
        timeout: Seconds for its answers.
        network: Of the policy.
        actions: How many there are.
        model: Its arrays, NumPy.
        seeds: Of the episodes, and of the actions that are drawn in them.

    Raises:
        GaveUpError: A simulator has died, raised or not answered in time.
    """

    @jax.jit
    def act(model: Model, seen: Any, previous_action: Any, start: Any, recurrent: Any, keys: Any) -> Any:
        policy = rollouts.policy_of(network, model)
        output, recurrent = policy.step(seen, previous_action, start, recurrent)
        keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        return jax.vmap(jax.random.categorical)(keys[1], output.logits).astype(np.int32), recurrent, keys[0]

    if not seeds:  # more processes than episodes
        return Scored(*np.zeros((3, 0), np.float32))
    count = min(_AT_A_TIME, len(seeds))
    model = jax.device_put(model)
    found = np.zeros((3, len(seeds)), np.float32)
    with Simulators(name, count, timeout, "evaluation's simulator") as simulators:
        for first in range(0, len(seeds), count):
            which = np.arange(first, first + count)  # the last ones may be beyond the end, and do not count
            chosen = [int(seeds[int(index) % len(seeds)]) for index in which]
            seen, keys = simulators.reset(chosen), jax.vmap(jax.random.key)(np.array(chosen, np.uint32))
            previous_action, start = np.full(count, actions, np.int32), np.ones(count, bool)
            recurrent = rollouts.policy_of(network, model).initial_state(count)
            over, scores = np.zeros(count, bool), np.zeros((3, count), np.float32)
            for _ in range(_LONGEST):
                action, recurrent, keys = act(model, seen, previous_action, start, recurrent, keys)
                stepped = simulators.step(np.asarray(action))
                scores += np.where(over, 0, np.stack([stepped.success, stepped.spl, stepped.reward]))
                over |= stepped.done | stepped.truncated
                if over.all():
                    break
                seen, previous_action, start = stepped.observation, np.asarray(action), np.zeros(count, bool)
            counts = which < len(seeds)
            found[:, which[counts]] = scores[:, counts]
    return Scored(*found)
