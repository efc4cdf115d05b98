"""Bytes received and moved, by hand."""

import pytest

from benchmarks.exchange.traffic import moved_bytes, received_bytes


@pytest.mark.parametrize(
    ("size", "itemsize", "members", "received"),
    [
        (1000, 4, 1, 0),
        (1000, 4, 2, 4000),
        (10**6, 2, 2, 2 * 10**6),  # the first hop carries bfloat16
        (1000, 4, 8, 3 * 4000),  # three hops of a small block
        (1000, 2, 4, 2000 + 4000),  # bfloat16, then a float32 sum
        (2**18, 2, 4, 2**18 * (0.5 * 2 + 0.25 * 4 + 0.75 * 4)),  # half, a quarter; and back
        (2**20, 4, 4, 1.5 * 2**22),  # sent ahead: three quarters, twice
        (2**20, 2, 4, 2**20 * 0.75 * (2 + 4)),
        (3 * 2**18, 4, 3, 2 * 2 / 3 * 3 * 2**20),
    ],
)
def test_received_bytes_by_hand(size, itemsize, members, received):
    assert received_bytes(size, itemsize, 4, members, 1 << 20, 1 << 16) == pytest.approx(received)


def test_moved_bytes_by_hand():
    assert moved_bytes(1000, 4, 4, 4000) == 5 * 4000
    assert moved_bytes(1000, 2, 4, 2000) == 2 * 2000 + 2000 + 2000 + 4000 + 4000 + 2000
    assert moved_bytes(1000, 4, 4, 6000, 4) == 4 * 4000 + 6000 + 2000
