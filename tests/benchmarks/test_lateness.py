"""Who was late, from the ledgers of a run."""

import pytest
from ledger.constructed import END, call, exchange, offset, start, write

from benchmarks import lateness
from train import lateness as simulated


def test_a_row_for_each_ordinary_round(tmp_path, capsys):
    settings = {"sync_period": 3}
    rounds = [
        exchange(0, [0, 1], [0, -1], 1.0, 1.1), exchange(1, [0, 1], [1, 1], 2.0, 2.1),
        exchange(2, [0, 1], [2, 2], 3.0, 3.1),  # a sync round
        exchange(3, [0, 1], [2, 3], 4.0, 4.1),
    ]  # fmt: skip
    ranks = [[start(rank, **settings), *rounds, call(3, 4.0, 4.0, 4.1, 4.2), offset(6.0), END] for rank in range(2)]
    lateness.main(write(tmp_path / "run", *ranks))
    (tmp_path / "late.csv").write_text(capsys.readouterr().out)
    assert (tmp_path / "late.csv").read_text().splitlines()[1:] == ["worker_0,worker_1", "0,1", "0,0", "1,0"]
    simulated.check(0.0, str(tmp_path / "late.csv"))  # a simulation takes it
    with pytest.raises(SystemExit, match="has no ordinary round that all ranks know"):
        lateness.main(write(tmp_path / "sync", *([start(rank, sync_period=1), rounds[0], END] for rank in range(2))))
