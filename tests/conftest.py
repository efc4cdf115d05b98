"""Eight virtual CPU devices for all tests, and a compilation cache for each test process and those that it starts."""

import os
import shutil
import tempfile

# Before jax is imported. A cache of its own for each test process: jax writes entries in place, so that a process
# could read what another has half written.
_CACHE = tempfile.mkdtemp(prefix="wagma-test-compilations-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


def pytest_unconfigure():
    shutil.rmtree(_CACHE, ignore_errors=True)
