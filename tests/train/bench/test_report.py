"""From finished runs to JSON, table and pictures, on runs whose results are written down by hand."""

import dataclasses
import functools
import json
import re

import pytest
from PIL import Image

from train.bench import cases as cases_of
from train.bench import drawing, plan, report
from train.bench.collecting import collect
from train.bench.plan import REFERENCE
from train.bench.running import Stopped

ROWS = 240  # of the toy

PLAN = plan.from_table(
    "duel",
    {
        "title": "A duel",
        "seeds": [0, 1, 2],
        "baseline": "allreduce",
        "options": {"workers": 2, "batch_size": 4, "steps": 30, "sync_period": 10},
        "workloads": {"toy": {"module": "tests.train.toy", "target": 0.3}},
        "arms": {"wagma": {}, "allreduce": {}, "lost": {"algorithm": "local"}},
        "scenarios": {"none": {}, "slow": {"straggler": "fixed:1:0.3"}},
    },
)


@functools.cache
def every():
    return cases_of.cases(PLAN, {})


def write(case, out, seconds, error, examples=ROWS, work=(3.0, 12.0), steps=(30, 30)):
    """A finished run: the error falls from 1.0 to ``error`` in four evaluations."""
    folder = case.folder(out)
    folder.mkdir(parents=True)
    curve = [(k / 4, 1.0 + (error - 1.0) * k / 4) for k in (1, 2, 3, 4)]
    rows = [{"step": 1, "loss": 1.0}]
    rows += [
        {"step": 9, "seconds": seconds * share, "examples": int(examples * share), "eval": {"error": value}}
        for share, value in curve
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {
        "wall_seconds": seconds, "examples": examples, "examples_per_second": examples / seconds, "unit": "rows",
        "wait_seconds": [seconds - work[0], 0.0], "work_seconds": list(work), "local_steps": list(steps),
        "late_fraction": 0.25, "max_staleness": 4, "eval": {"error": error},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "bench.json").write_text('{"seconds": 9.0}')


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def found(out):
    stopped = []
    for case in every():
        slow = case.scenario == "slow"
        if case.arm == "wagma":
            write(case, out, 10.0 if slow else 8.0, 0.2 + 0.02 * case.seed)
        elif case.arm == "allreduce":
            write(case, out, 20.0 + case.seed if slow else 8.0, 0.2)
        elif case.arm == "lost" and case.seed == 0:
            write(case, out, 8.0, 0.4, examples=2 * ROWS)
        elif case.arm == REFERENCE:
            write(case, out, 9.0, 9.9, work=(1.0, 4.0 if slow else 1.0), steps=(10, 10))
        else:
            stopped.append(Stopped(case, "status 1, in x.log:\n    no luck", failed=True))
    return collect(PLAN, every(), out, stopped)


def row_of(found, scenario, arm):
    (row,) = [row for row in found["rows"] if (row["scenario"], row["arm"]) == (scenario, arm)]
    return row


def test_rows_against_numbers_by_hand(found):
    row = row_of(found, "slow", "wagma")
    assert row["throughput"] == {"median": 24.0, "low": 24.0, "high": 24.0, "n": 3}
    assert row["faster"] == pytest.approx({"median": 2.1, "low": 2.0, "high": 2.2, "n": 3})
    # a step takes 0.1 s, and 0.4 s on the worker that is late by 0.3 s
    assert row["of_ideal"]["median"] == pytest.approx(24 / (4 / 0.1 + 4 / 0.4))
    assert row["of_rule"]["median"] == pytest.approx(24 / (8 / 0.4))
    assert row["waited"]["median"] == (10 - 3) / 2
    assert row["goodput"]["median"] == pytest.approx(60 / (100 + 25))
    assert row["score"] == pytest.approx({"median": 0.22, "low": 0.2, "high": 0.24, "n": 3})
    # the error is 1 - 0.8 s at the share s of the run: 0.3 at 0.875, between the last two evaluations
    assert row["reached"] == 3
    assert row["seconds_to_target"]["low"] == pytest.approx(8.75)
    assert row["examples_to_target"]["low"] == 210
    assert row["difference"]["mean"] == pytest.approx(0.02)
    assert row["difference"]["noise"]
    assert "difference" not in row_of(found, "slow", "allreduce")
    lost = row_of(found, "none", "lost")
    assert (lost["seeds"], lost["reached"], lost["seconds_to_target"], lost["unequal"]) == ([0], 0, None, True)
    assert not row["unequal"]


def test_the_table_is_that_of_the_json(found):
    again = json.loads(json.dumps(found))
    text = report.markdown(again)
    assert text == report.markdown(found)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == [
        "scenario", "arm", "rows/s", "faster", "of ideal", "of its rule", "waited, s", "goodput", "error", "difference",
        "time to 0.3000, s", "rows to 0.3000",
    ]  # fmt: skip
    by = {tuple(line[:2]): line[2:] for line in lines[2:]}
    assert by["slow", "wagma"] == [
        "24 (24 to 24)", "2.10 (2.00 to 2.20)", "0.48 (0.48 to 0.48)", "1.20 (1.20 to 1.20)", "3.5 (3.5 to 3.5)",
        "0.48 (0.48 to 0.48)", "0.2200 (0.2000 to 0.2400)", "+0.02 (-0.0297 to +0.0697), noise", "9.0 (8.8 to 9.2)",
        "215 (210 to 221)",
    ]  # fmt: skip
    assert by["slow", "allreduce"][1] == by["slow", "allreduce"][7] == ""
    lost = by["none", "lost (1 of 3 runs), other number of examples"]
    assert lost[0] == "60"
    assert lost[-2:] == ["never", "never"]
    assert "3 seeds (0, 1, 2)" in text
    assert "other options" not in text
    assert "the plan's: `--steps 9`." in report.markdown({**found, "extra": ["--steps", "9"]})
    assert "*slow*: straggler fixed:1:0.3." in text
    assert "- toy / none / lost / seed 1: failed, status 1, in x.log:" in text
    assert "that reaches error 0.3000" in " ".join(text.split())
    assert not re.search(r"\b(UNIT|BASELINE|TARGET)\b", text)
    assert "Learning rates: wagma 0.1; allreduce 0.1; lost 0.1." in text


def test_without_a_target_it_is_what_all_runs_of_the_baseline_reach(found, out):
    plain = plan.Workload("tests.train.toy", PLAN.workloads["toy"].options)
    other = collect(dataclasses.replace(PLAN, workloads={"toy": plain}), every(), out)
    assert other["workloads"]["toy"]["target"] == 0.2
    assert row_of(other, "slow", "wagma")["reached"] == 1  # the seed that reaches it as well


def test_pictures(found, tmp_path):
    paths = drawing.draw(found, tmp_path / "pictures")
    assert [path.name for path in paths] == [f"duel-{n}.png" for n in ("throughput", "score-time", "score-examples")]
    for path in paths:
        with Image.open(path) as image:
            assert min(image.size) > 300
    figure = drawing.throughput(found, "toy")
    (axis,) = figure.axes
    assert axis.get_ylim()[0] == 0
    assert axis.get_ylabel() == "rows per second, all workers"
    assert {24.0, 30.0, 60.0} <= {bar.get_height() for bar in axis.patches}
    panels = drawing.against_time(found, "toy").axes
    assert [panel.get_title() for panel in panels[:2]] == ["none", "slow"]
    assert panels[0].get_ylabel() == "error of the consensus model"
    line = panels[1].get_lines()[0]  # of the first arm
    assert line.get_xdata()[-1] == pytest.approx(10.0)
    assert line.get_ydata()[-1] == pytest.approx(0.22)
    assert drawing.against_examples(found, "toy").axes[1].get_lines()[0].get_xdata()[-1] == ROWS


def test_a_long_legend_leaves_the_panel_its_room(found):
    def height(rows):
        figure = drawing.throughput({**found, "rows": rows}, "toy")
        figure.canvas.draw()
        return figure.axes[0].get_position().height * figure.get_figheight()

    few = found["rows"][:1]
    many = [{**few[0], "arm": f"{number:02} with a name that fills more than half of a line"} for number in range(12)]
    assert height(many) > 0.85 * height(few)


def test_ticks_are_not_rounded(found):
    panel = drawing.against_time(found, "toy").axes[1]  # of more than ten seconds
    panel.set_xlim(0, 20)
    panel.set_xticks([0, 2.5, 12.5, 15])
    panel.figure.canvas.draw()
    assert [label.get_text() for label in panel.get_xticklabels()] == ["0", "2.5", "12.5", "15"]
