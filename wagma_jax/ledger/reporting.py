"""What `wagma ledger` does: prints the summary of a run, and saves its trace and its picture."""

import json
from collections.abc import Sequence
from pathlib import Path

from wagma_jax.ledger.alignment import align
from wagma_jax.ledger.picture import plot
from wagma_jax.ledger.plain_text import text
from wagma_jax.ledger.segments import RankLedger
from wagma_jax.ledger.summary import summarize
from wagma_jax.ledger.tracing import trace


def report(ledgers: Sequence[RankLedger], out: Path | str) -> None:
    """Prints what the ledgers of a run say, and writes ``trace.json`` and ``ledger.png``.

    Args:
        ledgers: From ``read``.
        out: Where the files go.

    Raises:
        OSError: A file cannot be written.
        ModuleNotFoundError: As ``plot``; all but the picture is there then.
    """
    out = Path(out)
    aligned = align(ledgers)
    print(text(summarize(ledgers, aligned)))
    out.mkdir(parents=True, exist_ok=True)
    (out / "trace.json").write_text(json.dumps(trace(ledgers, aligned), separators=(",", ":")))
    print(f"\nThe run by time: {out / 'trace.json'}, which https://ui.perfetto.dev opens")
    plot(ledgers, out / "ledger.png", aligned)
    print(f"The run by rank and round: {out / 'ledger.png'}")
