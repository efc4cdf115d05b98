"""What a worker has to do grows like the logarithm of their number."""

import pytest

pytest.importorskip("mpi4jax", reason="the extra mpi is not installed", exc_type=ImportError)

from benchmarks import scale


@pytest.mark.parametrize("num_workers", [16, 100, 256])
def test_control_messages_and_connections_of_any_worker(num_workers):
    bits = (num_workers - 1).bit_length()
    _, at_sync = scale.sync_round(num_workers)
    at_end = scale.end(num_workers)
    for traffic in (at_sync, at_end):
        assert max(traffic.messages) <= 4 * bits
        assert max(map(len, traffic.partners)) <= bits
    # SYNC crosses each edge of the hypercube, READY and GO each of the tree
    assert sum(at_sync.messages) / 2 <= num_workers * bits + 2 * (num_workers - 1)
    assert sum(at_end.messages) / 2 == 4 * (num_workers - 1), "REST, WAKE, a count and the verdict"


def test_the_exchange_of_many_members_has_few_partners():
    _, steps, partners = scale.data(64)
    assert partners == {1, 2, 4, 8, 16, 32}
    assert steps <= 3 * 6
