"""How far the times of the ranks are apart, by messages to and fro."""

import time

from wagma_jax.exchange import tags
from wagma_jax.exchange.gathering import Gathering
from wagma_jax.ledger.entries import Offset

ROUND_TRIPS = 32


def measure(gathering: Gathering) -> Offset:
    """Measures what is added to this rank's ``time.perf_counter`` to get rank 0's; called by all at the same time.

    The middle of a round trip is taken for the moment at which rank 0 has answered (Cristian, "Probabilistic clock
    synchronization", 1989); the shortest of some round trips is the best.
    """
    comm = gathering.comm
    if comm.rank == 0:
        for rank in range(1, comm.size):
            for _ in range(ROUND_TRIPS):
                gathering.receive(rank, tags.CLOCK)
                comm.send(time.perf_counter(), rank, tags.CLOCK)
        return Offset(time.perf_counter(), 0.0, 0.0)
    best = Offset(0.0, 0.0, float("inf"))
    for _ in range(ROUND_TRIPS):
        sent = time.perf_counter()
        comm.send(None, 0, tags.CLOCK)
        answered = gathering.receive(0, tags.CLOCK)
        received = time.perf_counter()
        middle, error = (sent + received) / 2, (received - sent) / 2
        if error < best.error:
            best = Offset(middle, answered - middle, error)
    return best
