"""One contract for every algorithm across processes; inside one program it is that of ``test_algorithms``."""

import numpy as np
import pytest

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)

import ranks
from papers import reference
from processes import ROOT, run_ranks

from wagma_jax.algorithms import ALGORITHMS, Settings, find

# whose results do not depend on times, with a quorum of all
DETERMINISTIC = ("wagma", "allreduce", "local", "eager", "dpsgd", "sgp")
KEEP_THE_MEAN = ("wagma", "local", "dpsgd", "sgp", "adpsgd")  # of models, where nobody is late
OPTIONS = [(name, 0) for name in DETERMINISTIC] + [("sgp", 1)]


def test_every_algorithm_is_in_the_contract():
    assert set(DETERMINISTIC) | set(KEEP_THE_MEAN) == set(ALGORITHMS)


@pytest.mark.parametrize(
    ("name", "overlap", "num_ranks"),
    [(name, overlap, num_ranks) for name, overlap in OPTIONS for num_ranks in ((2, 3, 4) if name == "wagma" else (3,))],
)
def test_models_are_those_of_the_papers(name, overlap, num_ranks):
    targets = np.random.default_rng(0).normal(size=(num_ranks, 3))
    per_rank = ranks.run("contract.trajectory", name, targets, 9, overlap, num_ranks=num_ranks)
    expected = reference(name, num_ranks, 9, targets, overlap)
    np.testing.assert_allclose(np.moveaxis(np.array(per_rank), 0, 1), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("body", ["converges", pytest.param("fits", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_it_converges_with_every_kind_of_straggler(name, body):
    ranks.run(f"contract.{body}", name, 60, num_ranks=4)


@pytest.mark.parametrize("name", KEEP_THE_MEAN)
def test_averages_keep_the_mean(name):
    ranks.run("contract.keeps_the_mean", name, num_ranks=4)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_workers_may_take_unequal_numbers_of_steps(name):
    ranks.run("contract.unequal", name, num_ranks=3)


@pytest.mark.parametrize(("name", "overlap"), OPTIONS)
def test_it_goes_on_bit_for_bit(name, overlap):
    ranks.run("contract.resumes", name, 10, overlap, num_ranks=3)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_one_worker_is_the_local_optimizer(name):
    ranks.run("contract.alone", name, num_ranks=1)


@pytest.mark.long
def test_five_workers():
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    status, output = run_ranks(5, ROOT / "tests/programs/contract.py", timeout=300, environment=environment)
    assert status == 0, output


def test_what_needs_processes_says_so_in_one_program():
    with pytest.raises(ValueError, match="process"):
        find("adpsgd").xla(Settings(4))
