"""Eight virtual CPU devices for all tests, and short compilations for each test process and those that it starts."""

import os
import shutil
import tempfile

# Before jax is imported. A cache of its own for each test process: jax writes entries in place, so that a process
# could read what another has half written.
_CACHE = tempfile.mkdtemp(prefix="wagma-test-compilations-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
# Most of the tests' time goes into compiling what runs for milliseconds: LLVM need not optimize it.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def optimized():
    """Compilations as users have them, for tests of single bits and of what is compiled."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def pytest_unconfigure():
    shutil.rmtree(_CACHE, ignore_errors=True)
