"""Tables and picture of times."""

from benchmarks.xla_collectives.time_report import time_figure, time_tables


def test_time_tables_and_figure(measurements, tmp_path):
    text = time_tables(1.0, measurements, ["matrix (vmap, S = 4) needs 9.9 GB"])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    times = ["vmap", "2", "ppermute", "1.00", "1.00", "2.50", "4.40", "0.25", "0.25 - 0.25", "0.33", "1.0", "7"]
    assert times in rows
    assert ["vmap", "2", "matrix", "ppermute", "2.20", "2.20 - 2.20", "2.20 - 2.20", "SLOWER by 120 %"] in rows
    assert "differ by up to 10.0 %" in text
    assert "9.9 GB" in text
    time_figure(1.0, measurements, "a note").savefig(tmp_path / "time.png")
    assert (tmp_path / "time.png").stat().st_size > 10_000
