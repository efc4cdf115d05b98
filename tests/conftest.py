"""Eight virtual CPU devices for all tests, and short compilations for each test process and those that it starts."""

import gc
import os
import shutil
import sys
import tempfile

import processes

# Before jax is imported. One cache of compilations for a run of the tests: workers of xdist and processes that tests
# start get it from the environment. With a limit of its size JAX locks it, for it writes entries in place.
_OURS = "WAGMA_TEST_COMPILATIONS" not in os.environ
_CACHE = os.environ.setdefault(
    "WAGMA_TEST_COMPILATIONS", tempfile.mkdtemp(prefix="wagma-compilations-") if _OURS else ""
)
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(10 << 30)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
# Each process that tests start would compile our modules by itself.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ["PYTHONPATH"] = processes.python_path(os.environ.get("PYTHONPATH", ""))
# The second thread of OpenBLAS waits for work actively, for as long as a fifth of importing JAX takes.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Open MPI's component ofi sleeps for a second at the start of each process where it finds no fabric.
os.environ.setdefault("OMPI_MCA_btl", "^ofi")

import compilations  # noqa: E402

compilations.prepare()

import jax  # noqa: E402
import pytest  # noqa: E402
import ranks  # noqa: E402

_OUR_RANKS = ranks.prepare()

compilations.share()
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def optimized():
    """Compilations as users have them, for tests of single bits and of what is compiled."""
    with compilations.as_users_do():
        yield


def pytest_addoption(parser):
    parser.addoption(
        "--long",
        action="store_true",
        help="also run the tests that are marked long: further cases, minutes of CPU time",
    )


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "long: a larger or further case of what shorter tests cover; runs with --long only"
    )


# Files whose tests mostly wait, for the pool of ranks, for processes that they have started or for seconds to pass.
_WAITING = ("test_contract.py", "test_mpi.py", "test_doctor.py", "test_several_processes.py")
# Other files whose tests take long. Whoever comes to its end first then finds short ones to take over.
_LONG = (
    "test_navigation.py",
    "test_translation.py",
    "test_images.py",
    "test_resume.py",
    "test_real_runs.py",
    "test_ends.py",
)


def pytest_collection_modifyitems(config, items):
    items[:] = _ordered(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="long: runs with --long only"))


def _ordered(items, num_workers):
    """The tests in an order by which workers of xdist seldom wait for each other, nor the last one alone.

    Each worker begins with an equal part of the list, and takes over the end of another's when it has no more. The
    first part begins with tests that wait, one after the other, while other workers compute: first those of the
    exchange, whose bodies run one at a time on the pool of ranks. The other parts begin with tests that take long.
    """
    starts = [[] for _ in range(num_workers)]
    others = starts[1:] or starts
    exchange, waiting, rest = [], [], []
    for item in items:
        name = item.path.name
        if hasattr(item.module, "ranks") and item.path.parent.name == "exchange":
            exchange.append(item)
        elif name in _WAITING:
            waiting.append(item)
        elif name in _LONG:
            others[_LONG.index(name) % len(others)].append(item)
        else:
            rest.append(item)
    starts[0] += [*exchange, *sorted(waiting, key=lambda item: _WAITING.index(item.path.name))]
    ordered, size = [], -(-len(items) // num_workers)
    for number, start in enumerate(starts):
        fill = max(0, (number + 1) * size - len(ordered) - len(start))
        ordered += [*start, *rest[:fill]]
        del rest[:fill]
    return ordered + rest


def pytest_collection_finish():
    # Tracing makes so many objects that collections of all of JAX's took a fifth of the time.
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def pytest_unconfigure():
    if _OUR_RANKS:
        ranks.end()
    if _OURS:
        shutil.rmtree(_CACHE, ignore_errors=True)
