"""How far the times of the ranks are apart, by messages to and fro along the tree of ranks."""

import time

from wagma_jax.exchange import tags
from wagma_jax.exchange.gathering import Gathering
from wagma_jax.ledger.entries import Offset
from wagma_jax.protocol import tree

ROUND_TRIPS = 32


def measure(gathering: Gathering) -> Offset:
    """Measures what is added to this rank's ``time.perf_counter`` to get rank 0's; called by all at the same time.

    The middle of a round trip is taken for the moment at which the parent has answered (Cristian, "Probabilistic clock
    synchronization", 1989); the shortest of some round trips is the best. Offsets and errors add up on the way to rank
    0, which so has no more to answer than log2 P ranks.
    """
    comm = gathering.comm
    to_parent = Offset(time.perf_counter(), 0.0, 0.0)
    from_parent = 0.0, 0.0  # the parent's own offset, and its error
    if comm.rank:
        to_parent, from_parent = _asked(gathering, tree.parent(comm.rank))
    own = Offset(to_parent.time, to_parent.offset + from_parent[0], to_parent.error + from_parent[1])
    for child in tree.children(comm.rank, comm.size):
        for _ in range(ROUND_TRIPS):
            gathering.receive(child, tags.CLOCK)
            comm.send(time.perf_counter(), child, tags.CLOCK)
        gathering.receive(child, tags.CLOCK)
        comm.send((own.offset, own.error), child, tags.CLOCK)
    return own


def _asked(gathering: Gathering, parent: int) -> tuple[Offset, tuple[float, float]]:
    """The offset to the parent's time, and the parent's own offset and error."""
    comm = gathering.comm
    best = Offset(0.0, 0.0, float("inf"))
    for _ in range(ROUND_TRIPS):
        sent = time.perf_counter()
        comm.send(None, parent, tags.CLOCK)
        answered = gathering.receive(parent, tags.CLOCK)
        received = time.perf_counter()
        middle, error = (sent + received) / 2, (received - sent) / 2
        if error < best.error:
            best = Offset(middle, answered - middle, error)
    comm.send(None, parent, tags.CLOCK)
    return best, gathering.receive(parent, tags.CLOCK)
