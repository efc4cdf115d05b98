"""Running a plan: what is finished is not run again, what fails is told, and nothing runs on after an interruption."""

import dataclasses
import importlib
import json
import re
import signal
import subprocess
import sys
import time

import pytest
from processes import ROOT

from train.bench import __main__ as command
from train.bench import cases as cases_of
from train.bench import plan, running, tuning
from train.bench.__main__ import Config
from train.bench.estimate import Estimates
from train.task import Score

QUICK = """
seeds = [1, 2]
[options]
transport = "xla"
workers = 2
steps = 4
[workloads.quick]
module = "tests.programs.quick_run"
[arms.wagma]
[arms.local]
[scenarios.none]
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "quick.toml").write_text(QUICK)
    return Config(tmp_path / "quick.toml", out=tmp_path / "runs", picture=False)


def starts(config):
    return [
        line.rpartition("-")[0] + line.partition(" ")[2]
        for line in (config.out / "quick" / "none" / "starts").read_text().splitlines()
    ]


def planned(config):
    return cases_of.cases(plan.read(config.plan), {})


def test_an_interrupted_bench_goes_on_where_it_stopped(config, monkeypatch, capsys):
    every = planned(config)

    def interrupted(left):
        if len(left) == 2:
            raise KeyboardInterrupt
        return "some time"

    monkeypatch.chdir(ROOT)
    with running.alone(config.out), pytest.raises(KeyboardInterrupt):
        running.run_all(every, config.out, 60.0, interrupted)
    assert starts(config) == ["wagma-1new", "local-1new"]
    # a run that was killed without a checkpoint begins anew, one with a checkpoint goes on
    (folder := every[2].folder(config.out)).mkdir()
    (folder / "options.json").write_text("")
    (every[3].folder(config.out) / "checkpoints" / "2").mkdir(parents=True)
    capsys.readouterr()
    assert command.bench(config, []) == 0
    assert starts(config) == ["wagma-1new", "local-1new", "wagma-2new", "local-2resumed"]
    output = " ".join(capsys.readouterr().out.split())
    assert re.search(
        r"2 of 4 runs are finished already \[3/4\] quick / none / wagma / seed 2; about \d+ s left", output
    )
    found = json.loads((config.out / "quick.json").read_text())
    assert [row["seeds"] for row in found["rows"]] == [[1, 2], [1, 2]]
    assert f"{' '.join((config.out / 'quick.md').read_text().split())} results:" in output
    assert command.bench(config, []) == 0  # nothing is left
    assert len(starts(config)) == 4
    # other seeds are other runs, beside those that are there
    assert command.bench(Config(config.plan, seeds=(2, 7), out=config.out, picture=False), []) == 0
    assert starts(config)[4:] == ["wagma-7new", "local-7new"]


def test_failures_are_told_and_the_others_run(config, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    config.plan.write_text(QUICK.replace("[1, 2]", "[1]").replace("[arms.local]", "[arms.local]\nsteps = 1"))
    quick = plan.read(config.plan)
    good, bad = cases_of.cases(quick, {})
    stopped = running.run_all([bad, good], config.out, 60.0)
    assert [one.case for one in stopped] == [bad]
    assert stopped[0].failed
    assert "one step is not enough" in stopped[0].reason
    assert running.is_finished(good, config.out)
    slow = planned(config)[0]
    slow.options["pause"] = 30
    (late,) = running.run_all([slow], config.out, 0.2)
    assert "not done after 0 s" in late.reason


def test_two_benches_do_not_share_a_folder(config, tmp_path):
    with (
        running.alone(tmp_path / "runs"),
        pytest.raises(ValueError, match="another bench is running in"),
        running.alone(tmp_path / "runs"),
    ):
        pass


def test_nothing_runs_on_after_a_signal(config, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "train.bench", config.plan, "--out", config.out, "--no-picture", "--", "--pause", "60"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 100
        while not (config.out / "quick" / "none" / "starts").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, output
    assert "interrupted: start the bench again to go on" in output
    with running.alone(config.out):  # no run holds the folder any more
        pass
    assert not (config.out / "quick.json").exists()  # there is nothing to tell


def test_tuning_takes_the_best_rate_of_every_arm(config, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    text = QUICK.replace("[1, 2]", "[1]\nrates = [0.4, 0.2, 0.8]")
    config.plan.write_text(text.replace("[arms.local]", '[arms.local]\ntuned_as = "wagma"'))
    with pytest.raises(ValueError, match="has no learning rates for quick / wagma: add --tune"):
        command.bench(config, [])
    assert command.bench(Config(config.plan, out=config.out, picture=False, tune=True), []) == 0
    rates = json.loads((config.out / "quick-rates.json").read_text())
    assert rates["quick"]["wagma"]["rate"] == 0.2  # the lowest error
    assert rates["quick"]["wagma"]["edge"]
    assert list(rates["quick"]) == ["wagma"]
    found = json.loads((config.out / "quick.json").read_text())
    assert [row["learning_rate"] for row in found["rows"]] == [[0.2], [0.2]]
    output = " ".join(capsys.readouterr().out.split())
    assert "| workload | arm | 0.4 | 0.2 | 0.8 | best |" in output
    assert "| quick | wagma | 0.8 | 0.4 | 1.6 | 0.2 (at the edge) |" in output
    assert command.bench(config, []) == 0  # the rates are kept
    assert len(starts(config)) == 2


def test_no_arm_is_trained_at_the_rate_of_the_script(config, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    text = QUICK.replace("[1, 2]", "[1]\nrates = [0.2, 0.4]")
    config.plan.write_text(text + '[arms.other]\nalgorithm = "wagma"\ntuned_as = "wagma"\n')
    tune = dataclasses.replace(config, tune=True, algorithms=("local", "other"))
    with pytest.raises(ValueError, match="has no learning rates for quick / wagma: add --tune"):
        command.bench(tune, [])
    assert json.loads((config.out / "quick-rates.json").read_text())["quick"]["local"]["rate"] == 0.2  # is kept
    with pytest.raises(ValueError, match="has no learning rates for quick / wagma: add --tune"):
        command.bench(dataclasses.replace(tune, algorithms=("local", "wagma"), rates=(2.0,)), [])
    assert "quick / wagma came to no score at any of the rates" in " ".join(capsys.readouterr().out.split())
    # rates that were tried with --rates hold for a plan that names none
    config.plan.write_text(QUICK.replace("[1, 2]", "[1]"))
    assert command.bench(dataclasses.replace(config, algorithms=("local",)), []) == 0
    found = json.loads((config.out / "quick.json").read_text())
    assert [row["learning_rate"] for row in found["rows"]] == [[0.2]]


def test_a_run_that_ends_badly_after_its_summary_is_not_finished(config, monkeypatch):
    monkeypatch.chdir(ROOT)
    case = planned(config)[0]
    (folder := case.folder(config.out)).mkdir(parents=True)
    (folder / "options.json").write_text("{}")
    (folder / "summary.json").write_text("{}")
    assert not running.is_finished(case, config.out)
    assert running.run_one(case, config.out, 60.0) is None
    assert running.is_finished(case, config.out)


def test_every_interruption_of_the_end_of_a_run_takes_a_harder_step(monkeypatch):
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, process_group=0)
    with process:
        process.stdout.read(1)
        waits = iter([KeyboardInterrupt, KeyboardInterrupt, None])
        wait = process.wait

        def interrupted(timeout=None):
            error = next(waits)
            if error is not None:
                raise error
            return wait(timeout)

        monkeypatch.setattr(process, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            running._end(process)
        assert process.poll() == -signal.SIGKILL
        monkeypatch.undo()


def test_choosing_a_rate():
    assert tuning.choose({0.1: 0.5, 0.2: 0.9, 0.4: None}, Score("accuracy", "%")) == 0.2
    assert tuning.choose({0.1: 0.5, 0.2: 0.9, 0.4: None}, Score("error", higher=False)) == 0.1
    assert tuning.choose({0.1: None}, Score("error", higher=False)) is None


def test_a_dry_run_runs_nothing_and_estimates(config, capsys):
    config.plan.write_text(
        QUICK.replace('transport = "xla"\n', "").replace("tests.programs.quick_run", "tests.train.toy")
        + '[scenarios.slow]\nstraggler = "fixed:1:2"\n'
    )
    assert command.bench(Config(config.plan, out=config.out, dry_run=True), []) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert not config.out.exists()
    assert "12 runs, in" in output
    assert "quick / none: no communication, wagma, local: 6 of 6 runs left, about 72 s" in output  # 12 s each to start
    # twice Allreduce's 4 steps of 2 seconds each in 4 of the runs, and 1 of them in the two without communication
    assert "quick / slow: no communication, wagma, local: 6 of 6 runs left, about 2 min" in output


def test_an_estimate_leaves_compilations_out_and_makes_each_task_once(config):
    config.plan.write_text(
        QUICK.replace("steps = 4", "steps = 40000").replace("quick_run", "ragged_run")
        + "[arms.small]\nalgorithm = 'wagma'\nbatch_size = 8\n"
    )
    every = planned(config)
    found = Estimates(config.out)
    for case in every:
        seconds = found.seconds(case, every)
        assert seconds is not None
        assert seconds < 2000, "40,000 steps of 2 workers; compiling at each would take 8,000"
    assert importlib.import_module("tests.programs.ragged_run").Ragged.made == 2  # of wagma and local, and of small
