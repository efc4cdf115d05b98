"""The benchmark of the exchange: its pure parts by hand, and every section once, tiny, on two ranks."""

import importlib.util
import json
import math
import sys

import numpy as np
import pytest
from processes import run_all

from benchmarks import exchange
from benchmarks.exchange import Call

needs_mpi = pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="the extra mpi is not installed")


def test_sizes_are_powers_of_ten():
    assert [exchange.parse_size(text) for text in ("4K", "64k", "1.5M", "2G", "17")] == [
        4000,
        64000,
        1500000,
        2 * 10**9,
        17,
    ]
    for text in ("", "M", "-1K", "many"):
        with pytest.raises(ValueError, match="positive numbers of bytes"):
            exchange.parse_size(text)


@pytest.mark.parametrize("elements", [500, 1000, 99_999, 100_000, 1_000_001])
def test_models_have_exactly_the_elements_asked_for(elements):
    sizes = [math.prod(shape) for shape in exchange.leaf_shapes(elements).values()]
    assert sum(sizes) == elements
    assert min(sizes) > 0
    assert len(sizes) == (64 if elements >= 100_000 else 4)


@pytest.mark.parametrize(
    ("size", "itemsize", "members", "received"),
    [
        (1000, 4, 1, 0),
        (1000, 4, 2, 4000),
        (10**6, 2, 2, 2 * 10**6),  # the first hop carries bfloat16
        (1000, 4, 8, 3 * 4000),  # three hops of a small block
        (1000, 2, 4, 2000 + 4000),  # bfloat16, then a float32 sum
        (2**18, 2, 4, 2**18 * (0.5 * 2 + 0.25 * 4 + 0.75 * 4)),  # half, a quarter; and back
        (2**20, 4, 4, 1.5 * 2**22),  # sent ahead: three quarters, twice
        (2**20, 2, 4, 2**20 * 0.75 * (2 + 4)),
        (3 * 2**18, 4, 3, 2 * 2 / 3 * 3 * 2**20),
    ],
)
def test_received_bytes_by_hand(size, itemsize, members, received):
    assert exchange.received_bytes(size, itemsize, 4, members, 1 << 20, 1 << 16) == pytest.approx(received)


def test_moved_bytes_by_hand():
    assert exchange.moved_bytes(1000, 4, 4, 4000) == 5 * 4000
    assert exchange.moved_bytes(1000, 2, 4, 2000) == 2 * 2000 + 2000 + 2000 + 4000 + 4000 + 2000
    assert exchange.moved_bytes(1000, 4, 4, 6000, 4) == 4 * 4000 + 6000 + 2000


def test_delays_hit_one_worker_a_round_and_are_reproducible():
    delays = exchange.draw_delays(1000, 4, 0.15, (0, 1))
    assert delays.shape == (1000, 4)
    assert ((delays > 0).sum(1) == 1).all()
    assert delays.max() == 0.15
    assert np.abs((delays > 0).mean(0) - 0.25).max() < 0.05
    np.testing.assert_array_equal(delays, exchange.draw_delays(1000, 4, 0.15, (0, 1)))
    assert (delays != exchange.draw_delays(1000, 4, 0.15, (0, 2))).any()


def test_bound_by_hand():
    delays = np.array([[5, 0], [0, 5], [0, 5], [5, 0], [5, 0]])
    assert exchange.bound_seconds(delays, 1, 1) == 5 * 6  # Allreduce: all wait for the late one
    assert exchange.bound_seconds(delays, 1, 2) == (2 + 5) + (2 + 5) + (1 + 5)
    assert exchange.bound_seconds(delays, 1, 5) == 5 + 15
    assert exchange.bound_seconds(np.zeros((30, 4)), 0.1, 10) == pytest.approx(3)


def calls():
    ends = [0.0, 1.0, 2.0, 9.0, 10.0, 12.0, 30.0, 31.0]
    return [Call(end, i in (0, 3, 6), 0.1 * i, 0, i % 2 == 0) for i, end in enumerate(ends)]


def test_rates_between_syncs_leave_out_the_waits_at_syncs():
    assert exchange.rates_between_syncs(calls()) == [1.0, 2 / 3]  # the last period is not complete
    assert exchange.rates_between_syncs(calls()[:3]) == []


def test_waits_are_those_of_ordinary_rounds():
    assert exchange.waits(calls()) == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.7])
    assert exchange.waits(calls(), until=10) == pytest.approx([0.1, 0.2, 0.4])
    assert exchange.waits(calls(), with_late=True) == pytest.approx([0.2, 0.4])


def test_text():
    assert exchange.text([0.001, 0.002, 0.003], 1e3) == "2.00 (1.50 - 2.50; 2.90)"
    assert exchange.text([]) == "-"


PROGRAM = """
import sys
from pathlib import Path
from benchmarks.exchange import Idle, Rotating, Sizes, Slow, Straggler, main

out = Path(sys.argv[1])
main(Sizes(sizes=("4K",), dtypes=("bfloat16",), repeats=2, out=out))
main(Straggler(floats=(1000,), late_seconds=0.15, repeats=1, step_seconds=0.01, out=out))
main(Rotating(floats=1000, rounds=4, sync_period=4, repeats=1, step_seconds=0.005, late_seconds=0.01, out=out))
main(Slow(floats=1000, rounds=8, sync_period=4, repeats=1, step_seconds=0.005, out=out))
main(Idle(floats=1000, rounds=2, seconds=0.1, activations=2, repeats=1, memory="40K", late_seconds=0.02, out=out))
"""


@needs_mpi
def test_every_section_on_two_ranks(tmp_path):
    launch = [sys.executable, "-m", "wagma_jax", "launch", "-n", 2, "--no-prefix", "--"]
    ((status, output),) = run_all([[*launch, sys.executable, "-c", PROGRAM, tmp_path]], timeout=120)
    assert status == 0, output
    results = {}
    for section in ("sizes", "straggler", "rotating", "slow", "idle"):
        document = json.loads((tmp_path / f"exchange-{section}-2.json").read_text())
        assert document["about"]["config"]["group_size"] == 2
        assert all(table in output for table in document["tables"])
        assert (tmp_path / f"exchange-{section}-2.png").exists() == (section != "idle")
        results[section] = document["results"]
    for one in results["sizes"]:
        assert {name: len(values) for name, values in one["seconds"].items()} == dict.fromkeys(one["seconds"], 2)
    (straggler,) = results["straggler"]
    assert list(straggler["arms"]) == ["nobody", "asleep", "jit", "python", "allreduce, nobody", "allreduce, asleep"]
    assert straggler["arms"]["allreduce, asleep"]["waits"][0] > 0.1  # whoever averages globally waits for the late one
    rotating = results["rotating"]
    assert rotating["steps_per_second"]["allreduce"][0] <= rotating["bound_steps_per_second"]["allreduce"][0]
    assert rotating["steps_per_second"]["wagma"][0] <= rotating["bound_steps_per_second"]["wagma"][0]
    assert [one["steps_of_last"] for one in results["slow"] if one["how"] != "round"] == [[8]] * 4
    assert results["slow"][2]["steps_of_last"][0] <= 8
    assert all(len(values) == 2 for values in results["idle"]["latency"].values())
    memory = results["idle"]["memory"]["5 ordinary rounds, one late each round"]
    assert {kind: len(peaks) for kind, peaks in memory.items()} == {"resident": 2, "allocated": 2}
