"""Tables, picture and JSON of counted bytes."""

import json

import pytest
from rich.console import Console

from benchmarks.xla_collectives.byte_report import run_bytes
from benchmarks.xla_collectives.config import Config


@pytest.mark.usefixtures("small_model")
def test_byte_report(tmp_path):
    with open(tmp_path / "console.txt", "w") as file:
        run_bytes(Config(sizes=(0.004,), out=tmp_path), Console(file=file))
    document = json.loads((tmp_path / "xla_bytes.json").read_text())
    assert [row["num_workers"] for row in document["rows"]] == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert document["rows"][0]["ordinary"]["bytes"] == pytest.approx(4000)
    table = (tmp_path / "xla_bytes.md").read_text()
    assert table.count("\n| 1024 |") == 1
    assert (tmp_path / "xla_bytes.png").stat().st_size > 10_000
