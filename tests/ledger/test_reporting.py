"""The command `wagma ledger`."""

import json
import subprocess
import sys

import pytest
from ledger.constructed import ONE, OTHER, write
from processes import ROOT, run_all

from wagma_jax.commands.main import main
from wagma_jax.ledger import reporting


def test_command(tmp_path, capsys, monkeypatch, uneven):
    folder = write(tmp_path / "run", *uneven)
    assert main(["ledger", str(folder)]) == 0
    output = capsys.readouterr().out
    assert "Who waited for whom" in output
    assert str(folder / "trace.json") in output
    assert (folder / "ledger.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "trace.json").read_text())["traceEvents"]
    monkeypatch.setattr(reporting, "plot", lambda ledgers, path, aligned: path.touch())
    assert main(["ledger", str(folder), "--out", str(tmp_path / "a" / "b")]) == 0
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["ledger.png", "trace.json"]
    capsys.readouterr()

    assert main(["ledger", str(tmp_path / "nothing")]) == 1
    assert "wagma ledger: expected files ledger-RANK.jsonl" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["ledger", str(folder), "--", "python"])
    assert "expected nothing after --" in capsys.readouterr().err


def test_text_and_trace_need_neither_matplotlib_nor_jax(tmp_path):
    folder = write(tmp_path / "run", ONE, OTHER)
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({['matplotlib', 'rich', 'mpi4py', 'mpi4jax', 'jax']}));"
        f"from wagma_jax.commands.main import main; sys.exit(main(['ledger', {str(folder)!r}]))"
    )
    ((status, output),) = run_all([[sys.executable, "-c", code]], timeout=60)
    assert status == 1, output
    assert "Who waited for whom" in output
    assert "the picture needs matplotlib, which the extra 'train' brings" in output
    assert (folder / "trace.json").exists()
    assert not (folder / "ledger.png").exists()


def test_other_commands_start_without_it():
    code = "import sys; import wagma_jax.commands.main; sys.exit('wagma_jax.ledger' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
