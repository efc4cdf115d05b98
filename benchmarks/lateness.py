"""Who was late at which round of a real run, from its ledgers, for ``--late-trace`` of a simulation.

    python -m benchmarks.lateness RUN > benchmarks/lateness/NAME.csv

A row for each ordinary round, a column for each worker: how many rounds old its contribution was, 0 on time.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from wagma_jax import ledger
from wagma_jax.ledger import RankLedger


def staleness(ledgers: Sequence[RankLedger]) -> list[list[int]]:
    """Age in rounds of each rank's contribution to each ordinary round that all ranks know: [rounds, num_workers]."""
    ages: list[dict[int, int]] = []
    for one in ledgers:
        found = {}
        for segment in one.segments:
            for entry in segment.rounds:
                if not segment.schedule.is_sync(entry.round):
                    found[entry.round] = entry.staleness(one.rank)
        ages.append(found)
    rounds = sorted(set.intersection(*(set(found) for found in ages)))
    return [[found[round_] for found in ages] for round_ in rounds]


def main(run: Path, /) -> None:
    """Writes the lateness of a run to the standard output.

    Args:
        run: Its folder, with a ledger of every rank.
    """
    ledgers = ledger.read(run)
    rows = staleness(ledgers)
    if not rows:
        sys.exit(f"{run} has no ordinary round that all ranks know: give a run of groups that do not wait for all")
    print("# rounds by which each worker's contribution was old; one row per ordinary round")
    print(",".join(f"worker_{one.rank}" for one in ledgers))
    for row in rows:
        print(",".join(map(str, row)))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
