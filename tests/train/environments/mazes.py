"""Environments of gymnasium for tests: a corridor, and some that break."""

import os
import signal
import time

import gymnasium
import numpy as np


class Corridor(gymnasium.Env):
    """The goal is some steps ahead: 0 goes forward, 1 stops."""

    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Dict(
        depth=gymnasium.spaces.Box(0, 1, (4,), np.float32), goal=gymnasium.spaces.Box(-10, 10, (2,), np.float32)
    )

    def __init__(self, breaks="", limit=6):
        self.breaks, self.limit, self.steps, self.left = breaks, limit, 0, 0

    def seen(self):
        return {"depth": np.full(4, self.left / 10, np.float32), "goal": np.array([self.left, 0], np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.left = 0, int(self.np_random.integers(1, 5))
        return self.seen(), {}

    def step(self, action):
        self.steps += 1
        if self.steps == 3 and self.breaks == "raises":
            raise ZeroDivisionError("no such wall")
        if self.steps == 3 and self.breaks == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.steps == 3 and self.breaks == "exits":
            os._exit(7)
        if self.steps == 3 and self.breaks == "hangs":
            time.sleep(1000)
        success = action == 1 and self.left == 0
        self.left -= action == 0
        info = {"success": float(success), "spl": float(success)}
        return self.seen(), float(success) - 0.01, action == 1, self.steps >= self.limit, info


gymnasium.register("Corridor-v0", Corridor)
for how in ("raises", "dies", "exits", "hangs"):
    gymnasium.register(f"{how.capitalize()}-v0", Corridor, kwargs={"breaks": how})
gymnasium.register("Unmakable-v0", Corridor, kwargs={"color": "red"})
