"""What the benchmark reports: counted bytes against hand-worked ones, statistics, tables. Nothing here is timed."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from rich.console import Console
from rich.progress import Progress

import wagma_jax as wagma
from benchmarks import collective_bytes, xla_collectives
from benchmarks.collective_bytes import Cost, average_costs, count
from benchmarks.xla_collectives import Candidate, Config, Measured, Summary, ratios, summarize, verdict

PAIRS = [[0, 1], [2, 3], [4, 5], [6, 7]]


def counted(function, *shapes, dtype=jnp.float32, platform="tpu"):
    """Costs of a per-device function on 8 abstract devices."""
    mesh = AbstractMesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("data")
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    arguments = [jax.ShapeDtypeStruct((8 * shape[0], *shape[1:]), dtype) for shape in shapes]
    return count(jax.jit(mapped).trace(*arguments).lower(lowering_platforms=(platform,)), 8)


# Each device holds [64] float32, 256 bytes.
COLLECTIVES = {
    "psum": (lambda x: lax.psum(x, "data"), 2 * 7 / 8 * 256, 6),
    "psum, groups of 2": (lambda x: lax.psum(x, "data", axis_index_groups=PAIRS), 256, 2),
    "psum, groups of 3 and 5": (
        lambda x: lax.psum(x, "data", axis_index_groups=[[0, 1, 2], [3, 4, 5, 6, 7]]),
        256 * (3 * 2 * 2 / 3 + 5 * 2 * 4 / 5) / 8,
        2 * 3,
    ),
    "psum_scatter": (lambda x: lax.psum_scatter(x, "data", tiled=True), 7 / 8 * 256, 3),
    "all_gather": (lambda x: lax.all_gather(x, "data", tiled=True), 7 * 256, 3),
    "all_gather, groups of 2": (
        lambda x: lax.all_gather(x, "data", axis_index_groups=PAIRS, tiled=True),
        256,
        1,
    ),
    "all_to_all": (lambda x: lax.all_to_all(x, "data", 0, 0, tiled=True), 7 / 8 * 256, 7),
    "ppermute of all": (lambda x: lax.ppermute(x, "data", [(i, i ^ 1) for i in range(8)]), 256, 1),
    "ppermute of two, one to itself": (lambda x: lax.ppermute(x, "data", [(0, 1), (2, 2)]), 256 / 8, 1),
}


@pytest.mark.parametrize("name", COLLECTIVES)
@pytest.mark.parametrize("platform", ["tpu", "cuda", "cpu"])
def test_count_of_one_collective_by_hand(name, platform):
    if "3 and 5" in name and platform == "tpu":
        pytest.skip("JAX has no unequal groups on TPUs")
    function, sent, messages = COLLECTIVES[name]
    (cost,) = counted(function, (64,), platform=platform)
    assert cost == pytest.approx((sent, messages, 1))


@pytest.mark.parametrize(("dtype", "width"), [("bfloat16", 2), ("float32", 4), ("complex64", 8), ("int8", 1)])
def test_count_of_bytes_per_element(dtype, width):
    (cost,) = counted(lambda x: lax.ppermute(x, "data", [(i, i ^ 1) for i in range(8)]), (6, 5), dtype=dtype)
    assert cost.bytes == 30 * width


def test_messages_are_those_of_the_longest_chain():
    @jax.jit
    def chain(x):  # a call within the program
        return lax.psum(lax.psum(x, "data") * 2, "data")

    assert counted(lambda x, y: (lax.psum(x, "data"), lax.psum(y, "data")), (4,), (4,))[0].messages == 6
    assert counted(lambda x, y: (chain(x), lax.psum(y, "data")), (4,), (4,)) == [Cost(3 * 28, 12, 3)]


def test_count_takes_branches_apart_and_refuses_unknown_counts():
    def switch(x):
        index = x[0].astype(int)
        return lax.switch(index, [lambda x: x, lambda x: lax.psum(x, "data"), lambda x: chain(x)], x)

    def chain(x):
        return lax.psum(lax.psum(x, "data") * 2, "data")

    assert counted(switch, (4,)) == [Cost(0, 0, 0), Cost(28, 6, 1), Cost(56, 12, 2)]
    with pytest.raises(ValueError, match="at most one switch"):
        counted(lambda x: switch(switch(x)), (4,))
    with pytest.raises(ValueError, match="how often"):
        counted(lambda x: lax.fori_loop(0, 3, lambda _, x: lax.psum(x, "data"), x), (4,))


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
    (allreduce,) = count(collective_bytes.lower_allreduce(8, shapes), 8)
    ordinary, average = average_costs(wagma.GroupSchedule(8, 8, sync_period), shapes, lowering, check_vma)
    assert allreduce == Cost(2 * 7 / 8 * 512, 6, 1)
    assert ordinary[:2] == pytest.approx(allreduce[:2])
    assert average[:2] == pytest.approx(allreduce[:2])


def test_row_of_1024_workers():
    row = collective_bytes.row(1024, {"a": (1024,)}, sync_period=10)
    assert (row.num_workers, row.group_size) == (1024, 32)
    assert row.allreduce[:2] == pytest.approx((2 * 1023 / 1024 * 4096, 20))
    assert row.ordinary[:2] == pytest.approx((2 * 31 / 32 * 4096, 10))
    sent = 0.9 * 2 * 31 / 32 * 4096 + 0.1 * 2 * 1023 / 1024 * 4096
    assert row.average[:2] == pytest.approx((sent, 0.9 * 10 + 0.1 * 20))


def test_group_sizes_and_models():
    assert [collective_bytes.sqrt_group_size(1 << p) for p in range(3, 11)] == [2, 4, 4, 8, 8, 16, 16, 32]
    for num_bytes in (4_000, 1_000_000, 25_000_000, 100_000_004):
        shapes = collective_bytes.model_shapes(num_bytes)
        sizes = sorted(map(math.prod, shapes.values()))
        assert 4 * sum(sizes) == num_bytes
        assert len(sizes) == 64
        assert sizes[0] > 0
    assert sum(sizes[-4:]) > 0.89 * sum(sizes)
    with pytest.raises(ValueError, match="multiple of 4"):
        collective_bytes.model_shapes(1_000_001)


def test_summary_by_hand():
    assert summarize([3.0]) == Summary(1, 3, 3, 3, 3, 3, 3)
    one = summarize([9, 1, 8, 2, 7, 3, 6, 4, 5, 10])
    assert one[:4] == (10, 5.5, 3.25, 7.75)
    assert one.p95 == pytest.approx(9.55)
    # P(Binomial(10, 1/2) <= 1) = 11/1024, P(<= 2) = 56/1024: leave out one value on either side
    assert (one.low, one.high) == (2, 9)
    assert summarize(range(6))[-2:] == (0, 5)  # 1/64 on either side
    assert summarize(range(100))[-2:] == (39, 60)  # the 40th and the 61st, as in tables
    with pytest.raises(ValueError, match="at least one"):
        summarize([])


def test_interval_of_the_median_covers():
    samples = np.random.default_rng(0).exponential(size=(400, 15))
    hits = [one.low <= math.log(2) <= one.high for one in map(summarize, samples)]
    assert np.mean(hits) > 0.93


def test_ratios_are_taken_within_a_pass():
    drift = [1, 10, 100]
    assert ratios([2 * d for d in drift], drift)[:4] == (3, 2, 2, 2)
    assert ratios([2, 20], drift).n == 2  # dropped after two passes


def test_verdicts():
    def of(median, q1, low):
        return verdict(Summary(10, median, q1, 2.0, 2.0, low, 2.0), same_program=False, floor=0.03)

    assert of(0.98, 0.9, 0.9) == "auto is fastest"
    assert of(1.02, 0.9, 0.97) == "within noise"
    assert of(1.5, 1.1, 0.97) == "within noise"
    assert of(1.05, 0.99, 1.01) == "within noise"
    assert of(1.02, 1.01, 1.01) == "within noise"
    assert of(1.05, 1.01, 1.01) == "SLOWER by 5 %"
    assert verdict(summarize([2] * 5), same_program=False, floor=0) == "too few passes"
    assert verdict(summarize([2] * 9), same_program=True, floor=0) == "same program"


def measurements():
    """Under vmap, matrix takes twice as long as ppermute, and "auto" is matrix, a tenth slower by chance."""
    scale = {"pmean": 4.0, "consensus": 3.0, "auto": 2.2, "matrix": 2.0, "ppermute": 1.0}
    drift = [1.0, 3.0, 1.0, 2.0, 5.0, 1.0, 1.0]
    return [
        Measured(
            Candidate(context, 2 if name in ("auto", "matrix", "ppermute") else 8, name),
            "same" if name in ("auto", "matrix") else name,
            1e6,
            [1e-3 * factor * d for d in drift],
        )
        for context in xla_collectives.LOWERINGS_OF
        for name, factor in scale.items()
    ]


def test_comparison_with_the_best():
    comparisons = xla_collectives.compare(measurements())
    assert [one.context for one in comparisons] == list(xla_collectives.LOWERINGS_OF)
    one = comparisons[-1]
    assert (one.best, one.equals, one.verdict) == ("ppermute", ("matrix",), "SLOWER by 120 %")
    assert one.ratio.median == pytest.approx(2.2)
    assert xla_collectives.noise_floor(measurements()) == pytest.approx(0.1)


def test_time_tables_and_figure(tmp_path):
    text = xla_collectives.time_tables(1.0, measurements(), ["matrix (vmap, S = 4) needs 9.9 GB"])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    times = ["vmap", "2", "ppermute", "1.00", "1.00", "2.50", "4.40", "0.25", "0.25 - 0.25", "0.33", "1.0", "7"]
    assert times in rows
    assert ["vmap", "2", "matrix", "ppermute", "2.20", "2.20 - 2.20", "2.20 - 2.20", "SLOWER by 120 %"] in rows
    assert "differ by up to 10.0 %" in text
    assert "9.9 GB" in text
    xla_collectives.time_figure(1.0, measurements(), "a note").savefig(tmp_path / "time.png")
    assert (tmp_path / "time.png").stat().st_size > 10_000


@pytest.fixture
def small_model(monkeypatch):
    monkeypatch.setattr(collective_bytes, "model_shapes", lambda _: {"kernel": (30, 30), "bias": (100,)})


@pytest.mark.usefixtures("small_model")
def test_measuring_takes_every_candidate(monkeypatch):
    monkeypatch.setattr(xla_collectives, "LOWERINGS_OF", {"check_vma=False": ("auto",), "vmap": ("auto", "matrix")})
    with Progress(disable=True) as progress:
        measured, left_out = xla_collectives.measure(0.004, Config(group_sizes=(2,), repeats=1), progress)
    assert left_out == []
    assert [one.candidate.name for one in measured] == ["pmean", "consensus", "auto"] * 2 + ["matrix"]
    assert all(len(one.seconds) == 1 for one in measured)
    (comparison,) = xla_collectives.compare(measured)
    assert comparison.equals == ("matrix",)


@pytest.mark.usefixtures("small_model")
def test_byte_report(tmp_path):
    with open(tmp_path / "console.txt", "w") as file:
        xla_collectives.run_bytes(Config(sizes=(0.004,), out=tmp_path), Console(file=file))
    document = json.loads((tmp_path / "xla_bytes.json").read_text())
    assert [row["num_workers"] for row in document["rows"]] == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert document["rows"][0]["ordinary"]["bytes"] == pytest.approx(4000)
    table = (tmp_path / "xla_bytes.md").read_text()
    assert table.count("\n| 1024 |") == 1
    assert (tmp_path / "xla_bytes.png").stat().st_size > 10_000


def test_config_is_checked():
    with pytest.raises(ValueError, match="exclude each other"):
        Config(bytes_only=True, time_only=True)
    with pytest.raises(ValueError, match="group_sizes"):
        Config(group_sizes=(3,))
