"""Costs of group averaging and allreduce against ones worked by hand."""

import pytest

import wagma_jax as wagma
from benchmarks.xla_collectives.costs import average_costs, lower_allreduce, row, sqrt_group_size
from benchmarks.xla_collectives.stablehlo import Cost, count


@pytest.mark.parametrize(
    ("lowering", "check_vma", "sent", "messages"),
    [
        ("psum", False, 4000, 2),  # 2 (S-1)/S of 1,000 float32, S = 2
        ("reduce_scatter", True, 4000, 2),
        ("auto", True, 4000, 2),
        ("auto", False, 4000, 2),
        ("ppermute", True, 4000, 1),  # log2 S models
        ("matrix", True, 7 * 4000, 3),  # all other workers' models
    ],
)
def test_ordinary_round_of_eight_workers_in_pairs(lowering, check_vma, sent, messages):
    shapes = {"kernel": (30, 30), "bias": (100,)}
    schedule = wagma.GroupSchedule(8, 2, sync_period=10)
    ordinary, average = average_costs(schedule, shapes, lowering, check_vma)
    assert ordinary[:2] == pytest.approx((sent, messages))
    assert average[:2] == pytest.approx((0.9 * sent + 0.1 * 7000, 0.9 * messages + 0.1 * 6))  # 7000 = 2 * 7/8 * 4000
    never = average_costs(wagma.GroupSchedule(8, 2, sync_period=None), shapes, lowering, check_vma)
    assert never == (ordinary, ordinary)


@pytest.mark.parametrize("sync_period", [10, None])
@pytest.mark.parametrize(("lowering", "check_vma"), [("auto", True), ("reduce_scatter", True), ("psum", False)])
def test_one_group_costs_what_allreduce_costs(lowering, check_vma, sync_period):
    shapes = {"a": (128,)}
    (allreduce,) = count(lower_allreduce(8, shapes), 8)
    ordinary, average = average_costs(wagma.GroupSchedule(8, 8, sync_period), shapes, lowering, check_vma)
    assert allreduce == Cost(2 * 7 / 8 * 512, 6, 1)
    assert ordinary[:2] == pytest.approx(allreduce[:2])
    assert average[:2] == pytest.approx(allreduce[:2])


def test_row_of_1024_workers():
    one = row(1024, {"a": (1024,)}, sync_period=10)
    assert (one.num_workers, one.group_size) == (1024, 32)
    assert one.allreduce[:2] == pytest.approx((2 * 1023 / 1024 * 4096, 20))
    assert one.ordinary[:2] == pytest.approx((2 * 31 / 32 * 4096, 10))
    sent = 0.9 * 2 * 31 / 32 * 4096 + 0.1 * 2 * 1023 / 1024 * 4096
    assert one.average[:2] == pytest.approx((sent, 0.9 * 10 + 0.1 * 20))


def test_group_sizes():
    assert [sqrt_group_size(1 << p) for p in range(3, 11)] == [2, 4, 4, 8, 8, 16, 16, 32]
