"""Numbers as text."""

from benchmarks.samples import summarize
from benchmarks.tables import markdown, spread


def test_spread():
    assert spread([0.001, 0.002, 0.003], 1e3) == "2.00 (1.50 - 2.50; 2.90)"
    assert spread(summarize([1, 2, 3]), digits=0) == "2 (2 - 2; 3)"
    assert spread([]) == "-"


def test_columns_are_aligned():
    lines = markdown(("name", "n"), [("a", 1), ("longer", 1000)]).splitlines()
    assert lines == ["|   name |    n |", "|-------:|-----:|", "|      a |    1 |", "| longer | 1000 |"]
