"""One external simulator in a process of its own: ``python -m train.environments.simulator DESCRIPTOR NAME``.

It is driven over a pipe, so that the training survives whatever it does. What it prints goes where the training prints.
Needs neither JAX nor anything of the training. Messages to it:

- ``("reset", seed)``; the answer is an observation.
- ``("step", action)``; the answer is (observation, reward, terminated, truncated, final observation, scores). Where an
  episode has ended the observation is the first of the next one, and the final one the last of that; else it is None.
- ``("close",)``.

An answer is ``("ok", value)``, or ``("failed", what was raised)``, after which it ends.
"""

import contextlib
import ctypes
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

HABITAT = "habitat:"
_GOALS = ("goal", "pointgoal_with_gps_compass", "pointgoal")
_SCORES = ("success", "spl")


class Spaces(NamedTuple):
    """What agents see and do.

    Attributes:
        depth_shape: Of ``depth`` in an observation.
        has_goal: Whether there is a goal; otherwise it is zeros.
        num_actions: How many there are.
    """

    depth_shape: tuple[int, ...]
    has_goal: bool
    num_actions: int


def make(name: str) -> Any:
    """The simulator of a name, with gymnasium's or gym's interface.

    Args:
        name: ``habitat:CONFIG``, a configuration of habitat-lab; or what ``gymnasium.make`` takes: an identifier,
            ``MODULE:IDENTIFIER`` where a module registers it.
    """
    if name.startswith(HABITAT):
        import habitat.gym

        return habitat.gym.make_gym_from_config(habitat.get_config(name.removeprefix(HABITAT)))
    import gymnasium

    return gymnasium.make(name)


def spaces_of(environment: Any) -> Spaces:
    """The spaces of a simulator.

    Raises:
        ValueError: They are not those of an agent that sees depth and chooses among actions.
    """
    actions, seen = environment.action_space, environment.observation_space
    count = getattr(actions, "n", None)
    if count is None or getattr(actions, "shape", ()) != ():
        raise ValueError(f"the actions of a simulator must be a Discrete space, got {actions}: wrap it")
    parts = getattr(seen, "spaces", None)
    depth = seen if parts is None else parts.get("depth")
    goal = next((key for key in _GOALS if parts and key in parts), None)
    if depth is None or depth.shape is None or len(depth.shape) not in (1, 3):
        raise ValueError(
            "a simulator must show an array [rays] or [height, width, channels], alone or as 'depth' of a Dict, got "
            f"{seen}: wrap it"
        )
    if parts and goal is not None and parts[goal].shape != (2,):
        raise ValueError(f"the goal must be (distance, angle), got {parts[goal]} for {goal!r}: wrap the simulator")
    return Spaces(tuple(depth.shape), goal is not None, int(count))


def observation_of(seen: Any) -> dict[str, np.ndarray]:
    """What the policy takes of an observation."""
    if not hasattr(seen, "keys"):
        return {"depth": np.asarray(seen, np.float32), "goal": np.zeros(2, np.float32)}
    goal = next((seen[key] for key in _GOALS if key in seen), np.zeros(2))
    return {"depth": np.asarray(seen["depth"], np.float32), "goal": np.asarray(goal, np.float32)}


class Simulator:
    """A simulator with gymnasium's interface, or the older one of gym that habitat-lab has."""

    def __init__(self, environment: Any):
        self._environment = environment
        self.spaces = spaces_of(environment)

    def reset(self, seed: int | None) -> dict[str, np.ndarray]:
        """Begins an episode."""
        environment = self._environment
        try:
            begun = environment.reset(seed=seed)
        except TypeError:  # gym, where a seed is set apart
            if seed is not None and hasattr(environment, "seed"):
                environment.seed(seed)
            begun = environment.reset()
        return observation_of(begun[0] if isinstance(begun, tuple) else begun)

    def step(self, action: int) -> tuple[Any, ...]:
        """Takes an action, and begins the next episode where it ends one."""
        taken = self._environment.step(action)
        if len(taken) == 5:
            seen, reward, terminated, truncated, info = taken
        else:
            seen, reward, terminated, info = taken
            truncated = bool(info.get("TimeLimit.truncated", False))
            terminated = terminated and not truncated
        scores = tuple(float(info.get(name, 0.0) or 0.0) for name in _SCORES)
        observation, final = observation_of(seen), None
        if terminated or truncated:
            observation, final = self.reset(None), observation
        return observation, float(reward), bool(terminated), bool(truncated), final, scores

    def close(self) -> None:
        """Closes it."""
        self._environment.close()


def serve(connection: Connection, name: str) -> int:
    """Answers messages until it is told to end or nobody is there any more; returns the exit status."""
    try:
        simulator = Simulator(make(name))
        connection.send(("ok", tuple(simulator.spaces)))  # this module has another name here
        while True:
            kind, *arguments = connection.recv()
            if kind == "close":
                simulator.close()
                return 0
            connection.send(("ok", getattr(simulator, kind)(*arguments)))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):  # the training has ended
        return 0
    except Exception as error:
        with contextlib.suppress(OSError):  # the training has ended meanwhile
            connection.send(("failed", f"{type(error).__name__}: {error}"))
        return 1


def end_with_parent() -> None:
    """Lives as long as the process that started it: signals that ask a job to stop are that one's business.

    It needs simulators until it has come to a point where it can stop. Linux ends this one with it, even if it hangs.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    end_with_parent()
    sys.exit(serve(Connection(int(sys.argv[1])), sys.argv[2]))
