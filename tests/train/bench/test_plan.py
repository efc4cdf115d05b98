"""Plans, and the runs that follow from them."""

import dataclasses
import json
import re

import pytest
from processes import ROOT

from train.bench import __main__ as command
from train.bench import cases as cases_of
from train.bench import plan, tuning
from train.bench.__main__ import Config
from train.bench.cases import slug, words_of
from train.bench.plan import REFERENCE, Network

TOY = """
title = "Two against each other"
seeds = [3, 4]
baseline = "b"
rates = [0.1, 0.2]

[options]
workers = 2
epochs = 10
batch-size = 4

[workloads.toy]
module = "tests.train.toy"
noise = 0.5
target = 0.3

[arms.a]
algorithm = "wagma"
group_size = 2
[arms.b]
algorithm = "local"
tuned_as = "a"
batch_size = 8

[scenarios.none]
[scenarios.slow]
straggler = "fixed:1:0.1"
network = {rate = "1mbit"}
"""


@pytest.fixture
def toy(tmp_path):
    path = tmp_path / "toy.toml"
    path.write_text(TOY)
    return plan.read(path)


def test_a_file_is_a_plan(toy):
    assert (toy.name, toy.title, toy.seeds, toy.baseline) == ("toy", "Two against each other", (3, 4), "b")
    assert toy.workloads["toy"] == plan.Workload(
        "tests.train.toy", {"workers": 2, "epochs": 10, "batch_size": 4, "noise": 0.5}, target=0.3
    )
    assert toy.arms["b"] == plan.Arm({"algorithm": "local", "batch_size": 8}, tuned_as="a")
    assert toy.scenarios["slow"] == plan.Scenario({"straggler": "fixed:1:0.1"}, Network("1mbit"))


def test_cases_are_all_combinations_and_later_options_win(toy):
    found = cases_of.cases(toy, {"toy": {"a": 0.2}})
    assert len(found) == 2 * 2 * 3
    assert [case.seed for case in found] == [3] * 6 + [4] * 6  # a bench that is stopped early has whole rows
    assert {(case.scenario, case.arm) for case in found} == {
        (scenario, arm) for scenario in ("none", "slow") for arm in ("a", "b", REFERENCE)
    }
    by = {(case.scenario, case.arm, case.seed): case for case in found}
    b = by["slow", "b", 3]
    assert b.options["batch_size"] == 8
    assert b.options["learning_rate"] == 0.2  # that of a
    assert b.network == Network("1mbit")
    options = cases_of.parsed(b)
    assert (options.workers, options.straggler, options.seed, options.transport) == (2, "fixed:1:0.1", 3, "mpi")
    reference = cases_of.parsed(by["slow", REFERENCE, 4])
    assert (reference.epochs, reference.group_size, reference.sync_period) == (pytest.approx(3.4), 1, None)
    assert reference.straggler == "fixed:1:0.1"  # the same delays
    cases_of.check(found)


def test_an_arm_may_have_more_seeds(tmp_path):
    path = tmp_path / "toy.toml"
    path.write_text(TOY.replace("group_size = 2", "more_seeds = [7]"))
    found = [(case.seed, case.scenario, case.arm) for case in cases_of.cases(plan.read(path), {})]
    assert found[-4:] == [(7, scenario, arm) for scenario in ("none", "slow") for arm in (REFERENCE, "a")]
    assert len(found) == 2 * 2 * 3 + 4
    made = command.planned(Config(path, seeds=(1,)), [])
    assert {case.seed for case in cases_of.cases(made, {})} == {1}


def test_the_reference_is_shorter_wherever_its_length_is_said(toy):
    reference = lambda made: cases_of.parsed(cases_of.cases(made, {})[0])
    assert reference(dataclasses.replace(toy, extra=("--epochs", "5"))).epochs == pytest.approx(1.7)
    made = plan.from_words(["tests.train.toy"], ["local"], [], [], workers=3)
    assert (reference(made).steps, reference(made).workers) == (102, 3)


def test_delays_in_a_file_that_has_changed_are_other_delays(tmp_path):
    (path := tmp_path / "own.csv").write_text("1,2\n")
    case = cases_of.cases(plan.from_words(["tests.train.toy"], ["local"], [f"trace:{path}:0.1"], [], 2), {})[1]
    before = case.folder(tmp_path)
    assert before == case.folder(tmp_path)
    path.write_text("1,3\n")
    assert before != case.folder(tmp_path)


def test_other_options_make_other_folders(toy, tmp_path):
    one = cases_of.cases(toy, {})[1]
    folder = one.folder(tmp_path)
    assert folder.parent == tmp_path / "toy" / "none"
    assert folder == cases_of.cases(toy, {})[1].folder(tmp_path)
    others = [
        dataclasses.replace(one, options={**one.options, "noise": 0.25}),
        dataclasses.replace(one, extra=("--noise", "0.25")),
        dataclasses.replace(one, network=Network("1mbit")),
        dataclasses.replace(one, module="train.other"),
    ]
    assert len({folder, *(other.folder(tmp_path) for other in others)}) == 5


def test_words():
    assert words_of({"group_size": 2, "picture": False, "sgp.overlap": 1, "steps": [1, 2], "resume": True}) == [
        "--group-size", "2", "--no-picture", "--sgp.overlap", "1", "--steps", "1", "2", "--resume",
    ]  # fmt: skip
    assert plan.flat({"a-b": 1, "sgp": {"over-lap": 2}}) == {"a_b": 1, "sgp.over_lap": 2}
    assert slug("WAGMA, S = 2 (a/b)") == "wagma-s-2-a-b"


def test_a_part_of_a_plan(toy):
    part = toy.only(arms=["b"], scenarios=["none"])
    assert list(part.arms) == ["b"]
    assert list(part.scenarios) == ["none"]
    assert toy.only(arms=["a"]).baseline == "a"
    with pytest.raises(ValueError, match="scenarios names 'slower', which is none of 'none', 'slow'"):
        toy.only(scenarios=["slower"])


def test_a_plan_of_words():
    made = plan.from_words(["tests.train.toy"], ["wagma:clock=round,sync-period=20", "local"], ["none"], [5], 2)
    assert made.arms["wagma:clock=round,sync-period=20"].options == {
        "algorithm": "wagma", "clock": "round", "sync_period": "20",
    }  # fmt: skip
    options = cases_of.parsed(cases_of.cases(made, {})[1])
    assert (options.clock, options.sync_period, options.seed, options.workers) == ("round", 20, 5, 2)
    with pytest.raises(ValueError, match="an algorithm is NAME or NAME:OPTION=VALUE"):
        plan.from_words(["tests.train.toy"], ["wagma:round"], [], [], 2)


@pytest.mark.parametrize("named", [True, False])
def test_in_which_scenario_rates_are_tried(tmp_path, named):
    path = tmp_path / "toy.toml"
    path.write_text(('tuning_scenario = "slow"\n' if named else "") + TOY)
    tried = tuning.tuning_cases(plan.read(path).only(scenarios=["none"]))
    assert list(tried) == [("toy", "a", 0.1), ("toy", "a", 0.2)]
    for case in tried.values():
        assert case.options.get("straggler") == ("fixed:1:0.1" if named else None)
        assert case.network == (Network("1mbit") if named else None)
        assert (case.scenario, case.seed) == ("tuning", 100)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("baseline = ", "base = ", "a plan has no base: it has baseline"),
        ('baseline = "b"', 'baseline = "c"', "baseline names 'c', which is none of 'a', 'b'"),
        ('tuned_as = "a"', 'tuned_as = "c"', "tuned_as names 'c'"),
        ("[3, 4]", "[3, 3]", "of arm .a., must be different integers"),
        (
            "group_size = 2",
            "more_seeds = [5, 3]",
            r"more_seeds of arm .a., must be different integers .* got \[3, 4, 5, 3\]",
        ),
        ("[3, 4]", "3", "seeds must be a list of numbers, got 3: write for example seeds = "),
        ("group_size = 2", 'more_seeds = ["5"]', "more_seeds must be a list of numbers"),
        ("[3, 4]", "[3, 4]\ntuning_seed = 4", "tuning_seed must be none of the seeds, got 4"),
        ("[3, 4]", '[3, 4]\ntuning_scenario = "late"', "tuning_scenario names 'late', which is none of 'none', 'slow'"),
        ("[3, 4]", "[3, 4]\ntuning_scenario = {}", r"tuning_scenario names {}, which is none of 'none', 'slow'"),
        ("[0.1, 0.2]", "[0.1, 0]", "rates must be above 0"),
        ('{rate = "1mbit"}', '{speed = "1mbit"}', "the network of scenario 'slow' has a rate"),
        ("[arms.a]", '[arms."no communication"]', "is that of the bench itself"),
        ("[arms.a]", "[[arms.a]]", r"arms must be tables"),
        ("[options]", "[options", "cannot be read"),
        ("[options]", "reference = 2\n[options]", "reference must be a share between 0 and 1, got 2"),
    ],
)
def test_what_is_no_plan(tmp_path, before, after, message):
    path = tmp_path / "toy.toml"
    assert before in TOY
    path.write_text(TOY.replace(before, after))
    with pytest.raises(ValueError, match=message) as raised:
        plan.read(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"tests.train.toy"', '"train.nothing"', "train.nothing is no training script"),
        ('"tests.train.toy"', '"train.budget"', "train.budget is no training script"),
        ("noise = 0.5", "nois = 0.5", "none of tests.train.toy, as is said above"),
        ('"fixed:1:0.1"', '"fixed:7:0.1"', "toy / slow / a / seed 3: --straggler names 8 workers"),
        ('"fixed:1:0.1"', '"trace:absent.csv"', "there is no file absent.csv"),
    ],
)
def test_options_that_a_script_does_not_have(tmp_path, before, after, message):
    path = tmp_path / "toy.toml"
    path.write_text(TOY.replace(before, after))
    made = dataclasses.replace(plan.read(path), reference=0)
    with pytest.raises(ValueError, match=message):
        cases_of.check(cases_of.cases(made, {}))


def test_the_plan_of_the_documentation(tmp_path):
    (text,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/comparing.md").read_text(), re.DOTALL)
    (tmp_path / "own.toml").write_text(text)
    made = plan.read(tmp_path / "own.toml")
    part = dataclasses.replace(made.only(scenarios=["none", "rotating", "slow-network"]), reference=0.34)
    cases_of.check(cases_of.cases(part, {}))
    assert list(made.arms) == ["allreduce", "wagma", "wagma, round clock"]


def test_plans_need_something_to_compare():
    with pytest.raises(ValueError, match="a plan needs scenarios, got none"):
        plan.from_table("x", {"workloads": {"toy": {}}, "arms": {"a": {}}})
    assert json.dumps(plan.from_table("x", {"workloads": {"toy": {}}, "arms": {"a": {}}, "scenarios": {"n": {}}}).seeds)
