"""GroupExchange under the user's settings of JAX."""

import sys

import pytest

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)

import ranks
from processes import run_all


def test_every_setting_gives_the_same_bits():
    names = ("none", "mesh", "mesh_of_the_thread", "x64", "disable_jit", "everything", "process_wide")
    ranks.run("exchange_settings.same_bits", names, num_ranks=2)


@pytest.mark.parametrize("body", ["nothing_is_compiled_again", "wide", "refusals"])
def test_under_settings(body):
    ranks.run(f"exchange_settings.{body}", num_ranks=2)


def test_without_the_cpu():
    code = "import numpy, wagma_jax; wagma_jax.GroupExchange(None, {'w': numpy.zeros(3)}, group_size=1)"
    ((status, output),) = run_all(
        [[sys.executable, "-c", code]], timeout=100, environment={"JAX_PLATFORMS": "cuda", "NPROC": "2"}
    )
    assert status != 0
    assert "RuntimeError: JAX_PLATFORMS=cuda leaves out the CPU" in output
    assert "JAX_PLATFORMS=cuda,cpu" in output
