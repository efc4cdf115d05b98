"""The benchmark of the environment runs."""

import json

import pytest

from benchmarks.environment import Config, main


@pytest.mark.long
def test_it_measures_and_writes(tmp_path, capsys):
    out = tmp_path / "result.json"
    main(Config(environments=4, pool=8, steps=5, passes=3, episodes=4, out=out))
    found = json.loads(out.read_text())
    assert found["steps_per_second"]["n"] == 3
    assert found["agents"]["oracle"]["spl"] > 0.9
    assert "| oracle" in capsys.readouterr().out.replace("|   oracle", "| oracle")
