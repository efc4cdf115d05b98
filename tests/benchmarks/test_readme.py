"""What benchmarks/README.md says can be run and looked up."""

import json
import re

import pytest
from processes import ROOT

from benchmarks import readme
from benchmarks.exchange.__main__ import parse
from train.bench import plan

README = (ROOT / "benchmarks/README.md").read_text()


def test_sections_and_options_exist():
    commands = re.findall(r"-- python -m benchmarks\.exchange (?!SECTION)(.*)", README)
    sections = {"sizes", "straggler", "rotating", "slow", "idle", "local"}
    assert {parse(command.split()).name for command in commands} == sections


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m (benchmarks\.\w+)", README))))
def test_modules_exist(module):
    path = ROOT / module.replace(".", "/")
    assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"results/[a-z\d_-]+\.[a-z]+", README))))
def test_results_exist(name):
    assert (ROOT / "benchmarks" / name).exists()


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/plans").glob("*.toml")), ids=lambda path: path.stem)
def test_plans_can_be_read(path):
    made = plan.read(path)
    assert made.rates_of is None or (path.parent / f"{made.rates_of}.toml").exists()
    assert f"python -m train.bench benchmarks/plans/{path.name}" in path.read_text()  # how to run it


@pytest.mark.parametrize("name", sorted(set(re.findall(r"benchmarks/plans/[a-z\d-]+\.toml", README))))
def test_plans_exist(name):
    assert (ROOT / name).exists()


def test_tables_of_benches_are_those_of_the_json_files():
    for path, text in readme.asked_for():
        assert path.read_text() == text, f"run python -m benchmarks.readme: {path.name} has other numbers"


SPREAD = {"median": 2.0, "low": 1.0, "high": 3.0, "n": 3}


def row(scenario, arm, **values):
    known = dict.fromkeys(("of_ideal", "of_rule", "waited", "goodput", "seconds_to_target", "examples_to_target"))
    return {
        "workload": "w", "scenario": scenario, "arm": arm, "seeds": [0, 1, 2], "unequal": False, "reached": 0,
        "throughput": SPREAD, "score": SPREAD, "learning_rate": [], **known, **values,
    }  # fmt: skip


def test_a_page_is_filled(tmp_path):
    about = {"name": "w", "unit": "rows", "score": {"name": "error", "unit": "", "higher": False}, "target": None}
    rows = [row("none", "a"), row("none", "b", faster=SPREAD), row("slow", "a")]
    found = {"workloads": {"w": about}, "rows": rows, "seeds": [0, 1, 2]}
    (tmp_path / "x.json").write_text(json.dumps(found))
    page = "before\n\n<!-- bench: x; scenarios=none; columns=error | rows/s -->\n| stale |\n|---|\n\nafter\n"
    expected = """before

<!-- bench: x; scenarios=none; columns=error | rows/s -->
| scenario | arm |                  error |     rows/s |
|----------|-----|-----------------------:|-----------:|
| none     | a   | 2.000 (1.000 to 3.000) | 2 (1 to 3) |
| none     | b   | 2.000 (1.000 to 3.000) | 2 (1 to 3) |

after
"""
    assert readme.filled(page, tmp_path) == expected
    assert readme.filled(expected, tmp_path) == expected
    medians = "<!-- bench: x; scenarios=slow, none; medians=rows/s -->\n"
    assert (
        readme.filled(medians, tmp_path)
        == medians
        + """| arm | slow | none |
|-----|-----:|-----:|
| a   |    2 |    2 |
| b   |      |    2 |
"""
    )
    assert readme.filled("<!-- bench: x -->\n", tmp_path).count("\n") == 1 + 2 + 3
    with pytest.raises(ValueError, match="there is no 'slower': there are 'none', 'slow'"):
        readme.filled("<!-- bench: x; scenarios=slower -->\n", tmp_path)
    with pytest.raises(ValueError, match="got seeds"):
        readme.filled("<!-- bench: x; seeds=1 -->\n", tmp_path)
