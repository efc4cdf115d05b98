"""What bodies of several modules share: a model, steps that differ everywhere, and comparisons."""

import time

import jax
import numpy as np


def tree(value, dtype=np.float32):
    """A model that is not equal in any two elements."""
    grid = np.linspace(-1, 1, 2000, dtype=np.float64)
    return {
        "scalar": np.asarray(value, dtype),
        "matrix": (value + np.arange(35).reshape(5, 7) / 10).astype(dtype),
        "large": (value * grid).astype(dtype),
        "steps": np.asarray(3, np.int32),
    }


def local_step(params, worker, t):
    """W' = W + U, different on every worker and at every round."""
    rng = np.random.default_rng((worker, t))
    kick = rng.normal(size=3)
    return {
        "scalar": params["scalar"] * np.float32(0.9) + np.float32(kick[0]),
        "matrix": params["matrix"] * np.float32(0.8) + np.float32(kick[1]),
        "large": params["large"] * np.float32(0.7) + np.float32(kick[2]),
        "steps": params["steps"],
    }


def close(ours, reference, tolerance):
    for name in ours:
        np.testing.assert_allclose(
            np.asarray(ours[name]), reference[name], rtol=tolerance, atol=tolerance, err_msg=name
        )


def wait_for(condition, seconds=60):
    end = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < end, "waited too long"
        time.sleep(0.001)


def bits(params):
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params))
