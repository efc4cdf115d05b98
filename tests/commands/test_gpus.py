"""One GPU for each rank: the decision, and what ranks see."""

import importlib.util
import sys

import pytest
from processes import run_all

from wagma_jax.commands.launch.gpus import assigned, count

needs_mpi = pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="the extra mpi is not installed")


def open_mpi(rank, size, **users):
    return {"OMPI_COMM_WORLD_LOCAL_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_SIZE": str(size)} | users


def hydra(rank, size):
    return {"MPI_LOCALRANKID": str(rank), "MPI_LOCALNRANKS": str(size)}


def sees(gpu, fraction=None):
    variables = {"CUDA_VISIBLE_DEVICES": str(gpu), "JAX_LOCAL_DEVICE_IDS": "0"}
    return variables | ({"XLA_PYTHON_CLIENT_MEM_FRACTION": fraction} if fraction else {})


@pytest.mark.parametrize(
    ("environment", "num_gpus", "expected"),
    [
        # no GPU, no neighbour, or no launcher that we know
        (open_mpi(0, 2), 0, {}),
        (open_mpi(0, 1), 4, {}),
        ({}, 4, {}),
        # as many GPUs as ranks, or more
        (open_mpi(0, 2), 2, sees(0)),
        (open_mpi(1, 2), 2, sees(1)),
        (open_mpi(1, 2), 8, sees(1)),
        (hydra(3, 4), 4, sees(3)),
        # fewer: shared in turn, and their memory with them
        (open_mpi(0, 2), 1, sees(0, "0.375")),
        (open_mpi(1, 2), 1, sees(0, "0.375")),
        (open_mpi(2, 3), 2, sees(0, "0.375")),
        (open_mpi(1, 3), 2, sees(1)),
        (open_mpi(6, 7), 3, sees(0, "0.250")),
        (open_mpi(15, 16), 1, sees(0, "0.046")),
        # what the user has set
        (open_mpi(1, 2, CUDA_VISIBLE_DEVICES="0,1"), 2, {}),
        (open_mpi(1, 2, CUDA_VISIBLE_DEVICES=""), 2, {}),
        (open_mpi(1, 2, JAX_LOCAL_DEVICE_IDS="1"), 2, {"CUDA_VISIBLE_DEVICES": "1"}),
        (open_mpi(1, 2, XLA_PYTHON_CLIENT_MEM_FRACTION=".2"), 1, sees(0)),
        (open_mpi(1, 2, XLA_CLIENT_MEM_FRACTION=".2"), 1, sees(0)),
        (open_mpi(1, 2, XLA_PYTHON_CLIENT_PREALLOCATE="false"), 1, sees(0)),
        (open_mpi(1, 2, XLA_PYTHON_CLIENT_ALLOCATOR="platform"), 1, sees(0)),
    ],
)
def test_which_gpu_a_rank_gets(environment, num_gpus, expected):
    assert assigned(environment, num_gpus) == expected


def test_jax_reads_the_share_of_the_memory(monkeypatch):
    from jaxlib import xla_client

    for name, value in assigned(open_mpi(0, 3), 1).items():
        monkeypatch.setenv(name, value)
    assert xla_client.generate_pjrt_gpu_plugin_options()["memory_fraction"] == 0.25


def test_gpus_are_counted_by_their_files(tmp_path):
    (tmp_path / "dev").mkdir()
    for name in ("nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / "dev" / name).touch()
    assert count(str(tmp_path)) == 0
    for name in ("0000:17:00.0", "0000:65:00.0", "0000:ca:00.0"):
        (tmp_path / "proc" / "driver" / "nvidia" / "gpus" / name).mkdir(parents=True)
    assert count(str(tmp_path)) == 3, "no device file has been made yet"
    for name in ("nvidia2", "nvidia11"):
        (tmp_path / "dev" / name).touch()
    assert count(str(tmp_path)) == 2, "of three GPUs a container has been given two"


def test_a_gpu_that_cannot_be_opened_does_not_count(tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").symlink_to("nowhere")  # not even root may open it
    (tmp_path / "dev" / "nvidia1").touch()
    assert count(str(tmp_path)) == 1


@needs_mpi
def test_each_rank_sees_one_gpu(tmp_path, monkeypatch):
    for name in ("CUDA_VISIBLE_DEVICES", "JAX_LOCAL_DEVICE_IDS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "dev").mkdir()
    for i in range(2):
        (tmp_path / "dev" / f"nvidia{i}").touch()
    job = "Job(('sh', '-c', 'echo GPU $CUDA_VISIBLE_DEVICES, first of $JAX_LOCAL_DEVICE_IDS'), 3)"
    code = (
        "import sys; from wagma_jax.commands.launch.job import Job; from wagma_jax.commands.launch.launcher import run;"
        f"sys.exit(run({job}, root={str(tmp_path)!r}))"
    )
    ((status, output),) = run_all([[sys.executable, "-c", code]], timeout=100)
    assert status == 0, output
    assert sorted(output.splitlines()) == [f"[{rank}] GPU {rank % 2}, first of 0" for rank in range(3)]
