"""External simulators: real ones of gymnasium, and such that die, raise and hang."""

import signal
import time

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="the extra gymnasium is not installed")

from train.environments import gym, simulator
from train.errors import GaveUpError

MAZES = "tests.train.environments.mazes"


def test_cart_pole_is_driven_as_gymnasium_does():
    import gymnasium

    rng = np.random.default_rng(0)
    alone = [gymnasium.make("CartPole-v1") for _ in range(2)]
    with gym.Simulators("CartPole-v1", 2, 60.0) as simulators:
        assert simulators.spaces == ((4,), False, 2)
        seen = simulators.reset([3, 4])
        expected = [each.reset(seed=seed)[0] for each, seed in zip(alone, [3, 4], strict=True)]
        np.testing.assert_array_equal(seen["depth"], expected)
        ends = 0
        for _ in range(40):
            actions = rng.integers(0, 2, 2)
            stepped = simulators.step(actions)
            for index, each in enumerate(alone):
                observation, reward, terminated, truncated, _ = each.step(actions[index])
                assert (stepped.reward[index], stepped.done[index]) == (reward, terminated)
                assert not truncated
                if terminated:
                    observation, _ = each.reset()
                    ends += 1
                np.testing.assert_array_equal(stepped.observation["depth"][index], observation)
        assert ends > 0
        processes = list(simulators._processes)
    assert [process.returncode for process in processes] == [0, 0]


def test_goals_scores_and_limits():
    with gym.Simulators(f"{MAZES}:Corridor-v0", 1, 60.0) as simulators:
        assert simulators.spaces == ((4,), True, 2)
        left = int(simulators.reset([0])["goal"][0, 0])
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # a job is asked to stop, and will
            simulators._processes[0].send_signal(number)
        for _ in range(left):
            stepped = simulators.step(np.array([0]))
            assert stepped.success == [0]
        stepped = simulators.step(np.array([1]))
        assert (stepped.done, stepped.truncated, stepped.success, stepped.spl) == ([True], [False], [1], [1])
        assert stepped.observation["goal"][0, 0] >= 1  # the next episode's
        begin = stepped.observation["goal"][0, 0]
        for _ in range(6):
            stepped = simulators.step(np.array([0]))
        assert (stepped.done, stepped.truncated, stepped.success) == ([False], [True], [0])
        assert stepped.final["goal"][0, 0] == begin - 6
        assert stepped.observation["goal"][0, 0] >= 1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("Raises", "raised ZeroDivisionError: no such wall"),
        ("Dies", "was ended by SIGKILL"),
        ("Exits", "has exited with status 7"),
        ("Hangs", "has not answered step 3 within 3 s, and was killed"),
    ],
)
def test_a_simulator_that_breaks_is_named_and_all_end(kind, message):
    simulators = gym.Simulators(f"{MAZES}:{kind}-v0", 2, 60.0, "worker 1's simulator")
    processes = list(simulators._processes)
    simulators._timeout = 3.0
    simulators.reset([0, 1])
    begun = time.monotonic()
    with pytest.raises(GaveUpError, match=rf"worker 1's simulator 0 \({MAZES}:{kind}-v0\) {message}: mend it"):
        all(simulators.step(np.array([0, 0])) for _ in range(3))
    assert time.monotonic() - begun < 20
    assert all(process.returncode is not None for process in processes)


def test_what_cannot_be_started_or_learned_is_refused():
    with pytest.raises(ValueError, match=r"--simulator: simulator 0 \(Nowhere-v0\) raised NameNotFound"):
        gym.probe("Nowhere-v0", 60.0)
    import gymnasium

    pendulum = gymnasium.make("Pendulum-v1")
    with pytest.raises(ValueError, match="the actions of a simulator must be a Discrete space, got Box"):
        simulator.spaces_of(pendulum)
    with pytest.raises(ValueError, match="a simulator must show an array"):
        simulator.spaces_of(gymnasium.make("FrozenLake-v1"))
    with pytest.raises(ValueError, match="--simulator habitat:x needs habitat-lab"):
        gym.check_installed("habitat:x")


class Old:
    """What habitat-lab's environments look like: gym's older interface."""

    def __init__(self):
        import gymnasium

        box = gymnasium.spaces.Box
        self.observation_space = gymnasium.spaces.Dict(
            depth=box(0, 1, (2, 3, 1)), pointgoal_with_gps_compass=box(-9, 9, (2,)), rgb=box(0, 255, (2, 3, 3))
        )
        self.action_space = gymnasium.spaces.Discrete(4)
        self.time = 0

    def reset(self):
        self.time = 0
        return {"depth": np.zeros((2, 3, 1)), "pointgoal_with_gps_compass": np.array([2.0, 1.0]), "rgb": None}

    def step(self, action):
        self.time += 1
        return self.reset() | {"depth": np.ones((2, 3, 1))}, 0.5, action == 0, {"success": 1.0, "spl": 0.75}


def test_the_older_interface_of_habitat_is_understood():
    adapted = simulator.Simulator(Old())
    assert adapted.spaces == ((2, 3, 1), True, 4)
    seen = adapted.reset(3)
    assert (seen["depth"].shape, seen["goal"].tolist()) == ((2, 3, 1), [2.0, 1.0])
    observation, reward, terminated, truncated, final, scores = adapted.step(0)
    assert (reward, terminated, truncated, scores) == (0.5, True, False, (1.0, 0.75))
    assert final["depth"].min() == 1
    assert observation["depth"].max() == 0
