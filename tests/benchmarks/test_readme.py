"""What benchmarks/README.md says can be run and looked up."""

import re

import pytest
from processes import ROOT

from benchmarks.exchange.__main__ import parse

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
