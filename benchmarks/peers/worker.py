"""One process of a peer: ``worker.py PEER FLOATS REPEATS LATE_SECONDS OUT [RANK SIZE PORT]``.

Writes seconds to ``OUT/RANK.json``: of calls that all begin together, and of some calls in a row before which the last
process is late. Without a rank, it is that of MPI.
"""

import json
import pathlib
import sys
import time

from adapters import LATE_CALLS, PEERS

WARM_UP = 12  # the exchange of wagma_jax takes fresh memory in its first rounds


def main(name, floats, repeats, late, out, *place):
    """Measures, and writes."""
    if not place:
        from mpi4py import MPI

        place = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size, 0
    rank, size, port = map(int, place)
    repeats = int(repeats)
    peer = PEERS[name](rank, size, port, int(floats))
    times, waits = [], []
    for repeat in range(-WARM_UP, repeats):
        peer.barrier()
        seconds = _timed(peer)
        if repeat >= 0:
            times.append(seconds)
    for _ in range(max(repeats // 4, 1)):
        peer.barrier()
        if rank == size - 1:
            time.sleep(float(late))
        waits.append(sum(_timed(peer) for _ in range(LATE_CALLS)))
    pathlib.Path(out, f"{rank}.json").write_text(json.dumps({"times": times, "late": waits}))
    peer.close()


def _timed(peer):
    begun = time.perf_counter()
    peer.average()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main(*sys.argv[1:])
