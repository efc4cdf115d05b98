"""Every section once, tiny, on two ranks; and its command line."""

import importlib.util
import json
import re

import pytest
import ranks

from benchmarks.exchange.__main__ import parse

needs_mpi = pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="the extra mpi is not installed")


@needs_mpi
def test_every_section_on_two_ranks(tmp_path):
    output, _ = ranks.run("benchmark_bodies.sections", tmp_path, num_ranks=2, timeout=120)
    results = {}
    for section in ("sizes", "straggler", "rotating", "slow", "idle", "local"):
        document = json.loads((tmp_path / f"exchange-{section}-2.json").read_text())
        assert document["about"]["config"]["group_size"] == (1 if section == "local" else 2)
        assert all(line in output for table in document["tables"] for line in table.splitlines())
        assert (tmp_path / f"exchange-{section}-2.png").exists() == (section not in ("idle", "local"))
        results[section] = document["results"]
    for one in results["sizes"]:
        assert {name: len(values) for name, values in one["seconds"].items()} == dict.fromkeys(one["seconds"], 2)
    (straggler,) = results["straggler"]
    assert list(straggler["arms"]) == ["nobody", "asleep", "jit", "python", "allreduce, nobody", "allreduce, asleep"]
    assert straggler["arms"]["allreduce, asleep"]["waits"][0] > 0.05  # whoever averages globally waits for the late one
    rotating = results["rotating"]
    assert rotating["steps_per_second"]["allreduce"][0] <= rotating["bound_steps_per_second"]["allreduce"][0]
    assert rotating["steps_per_second"]["wagma"][0] <= rotating["bound_steps_per_second"]["wagma"][0]
    assert [one["steps_of_last"] for one in results["slow"] if one["how"] != "round"] == [[8]] * 4
    assert results["slow"][2]["steps_of_last"][0] <= 8
    assert all(len(values) == 2 for values in results["idle"]["latency"].values())
    assert {len(values) for values in results["local"]["seconds_per_step"].values()} == {4}
    memory = results["idle"]["memory"]["5 ordinary rounds, one late each round"]
    assert {kind: len(peaks) for kind, peaks in memory.items()} == {"resident": 2, "allocated": 2}


def test_options():
    section = parse(["sizes", "--sizes", "4K", "1M", "--dtypes", "float32"])
    assert (section.name, section.sizes, section.dtypes, section.group_size) == ("sizes", ("4K", "1M"), ("float32",), 2)
    assert parse(["slow"]).rounds == 200


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("rotating --rounds 25", "whole sync periods of 10, got 25"),
        ("sizes --sizes many", "positive numbers of bytes"),
        ("idle --memory 0", "positive numbers of bytes"),
        ("all", "sizes, straggler, rotating, slow, idle, local"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(words, message, capsys):
    with pytest.raises(SystemExit):
        parse(words.split())
    assert message in " ".join(re.sub("[│─╭╮╰╯]", " ", capsys.readouterr().err).split())
